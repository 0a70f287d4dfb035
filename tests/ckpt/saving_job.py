"""A training job of nothing but saves, to be killed or run as several processes by test_store.py.

python tests/ckpt/saving_job.py kill POINT DIRECTORY
python tests/ckpt/saving_job.py pair DIRECTORY PORT INDEX
"""

import os
import resource
import signal
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bind.ckpt import manifest, store
from bind.errors import CheckpointError

SHAPES = {"w": (64, 1024), "b": (1024,), "half": (16, 8)}


def values(step):
    """The state that is saved at `step`, as numpy."""
    rng = np.random.default_rng(step)
    tree = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    return {**tree, "half": tree["half"].astype(jnp.bfloat16), "step": np.int32(step)}


def same(tree, step):
    want = values(step)
    return tree.keys() == want.keys() and all(
        np.asarray(tree[name]).tobytes() == np.asarray(want[name]).tobytes() for name in want
    )


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()  # a signal to oneself may take a moment: nothing happens meanwhile


def arm(point, directory):
    """Lets the process be killed at `point` of the save of step 3."""
    if point == "writing":  # orbax has begun to write

        def watch():
            while not list(directory.glob("3.orbax-checkpoint-tmp*/*")):
                pass
            die()

        threading.Thread(target=watch, daemon=True).start()
    elif point == "renamed":  # orbax is done
        manifest.write = die
    elif point == "manifest":  # half of it is on disk

        def half(path, raw):
            (path.parent / (path.name + ".tmp")).write_bytes(raw[: len(raw) // 2])
            die()

        manifest._publish = half
    elif point == "committed":  # the old steps are still there
        store.Store._retire = die
    elif point == "removing":  # an old step is half gone
        remove = manifest.remove

        def first(folder):
            type(folder).rmtree = die
            remove(folder)

        manifest.remove = first


def kill(point, directory):
    jobs = store.Store(directory, keep=1)
    for step in (1, 2):
        jobs.save(step, jax.tree.map(jnp.asarray, values(step)), {"step": step})
    jobs.wait()
    arm(point, Path(directory))
    jobs.save(3, jax.tree.map(jnp.asarray, values(3)), {"step": 3})
    jobs.close()


def place(mesh, tree):
    def put(x):
        spec = jax.P("x", "y") if np.ndim(x) == 2 else jax.P(None)
        spec = spec if np.ndim(x) else jax.P()
        sharding = jax.NamedSharding(mesh, spec)
        return jax.make_array_from_callback(np.shape(x), sharding, lambda i: np.asarray(x)[i])

    return jax.tree.map(put, tree)


def pair(directory, port, index):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, index, initialization_timeout=60)
    kinds = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=kinds)
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        place(mesh, values(0)),
    )
    bump = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    directory = Path(directory)
    with store.Store(directory, keep=2) as jobs:
        assert jobs.restore(like) is None
        for step in (1, 2, 3):
            state = place(mesh, values(step))
            jobs.save(step, state, {"step": step})
            bump(state)
        jobs.wait()
        assert jobs.steps() == [2, 3], jobs.steps()
        fails_alike(jobs, mesh)
        if index == 0:  # damage the newest: both processes must come back with the one before
            file = max((directory / "3").rglob("d/*"), key=lambda path: path.stat().st_size)
            raw = bytearray(file.read_bytes())
            raw[len(raw) // 2] ^= 1
            file.write_bytes(raw)
        state, meta, step = jobs.restore(like)
        assert (step, meta) == (2, {"step": 2}), (step, meta)
        wanted = place(mesh, values(2))
        for name, leaf in state.items():
            assert leaf.sharding == like[name].sharding
            for mine, good in zip(
                leaf.addressable_shards, wanted[name].addressable_shards, strict=True
            ):
                assert np.asarray(mine.data).tobytes() == np.asarray(good.data).tobytes()
        assert jobs.steps() == [2]
        if index == 1:  # alone
            assert same(store.read(directory, 2)[0], 2)
        jobs.save(4, state, {"step": 4})
    print("PASSED", index, flush=True)
    jax.distributed.shutdown()


def fails_alike(jobs, mesh):
    """No room for files: both processes get the error, and the step before stays."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        jobs.save(9, place(mesh, values(9)), {})
        jobs.wait()
    except CheckpointError as error:
        assert "the disk is full" in str(error) and "step 3 is intact" in str(error), error
    else:
        raise AssertionError("no error")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


if __name__ == "__main__":
    mode, *rest = sys.argv[1:]
    if mode == "kill":
        kill(*rest)
    else:
        pair(rest[0], int(rest[1]), int(rest[2]))
