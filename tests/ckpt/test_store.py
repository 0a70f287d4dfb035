"""The checkpoint store: what was saved comes back bit for bit, or an error names the file."""

import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import saving_job as job

from bind.ckpt import manifest, store
from bind.ckpt.store import Store, read
from bind.errors import CheckpointError

MANIFEST = manifest.NAME


def mesh(shape, names=("x", "y")):
    kinds = (jax.sharding.AxisType.Auto,) * len(shape)
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, names, axis_types=kinds, devices=devices)


def like(tree, sharding=None):
    """The tree of shapes of `tree` on a sharding (default: one device); numpy stays on the host."""

    def shape(x):
        one = (
            jax.sharding.SingleDeviceSharding(jax.devices()[0])
            if isinstance(x, jax.Array)
            else None
        )
        return jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype, sharding=sharding or one)

    return jax.tree.map(shape, tree)


def equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def small(step):
    return {"w": jnp.arange(6, dtype=jnp.float32).reshape(2, 3) + step, "step": jnp.int32(step)}


def saved(directory, steps=(1, 2, 3), **options):
    """A store with these steps, closed."""
    with Store(directory, **options) as jobs:
        for step in steps:
            jobs.save(step, small(step), {"data": step * 10})
    return directory


def files(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


def flip(path, bit=0):
    raw = bytearray(path.read_bytes())
    raw[bit // 8] ^= 1 << bit % 8
    path.write_bytes(raw)


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt: optax.OptState
    nothing: dict
    none: None


def everything():
    key = jax.random.key(0)
    params = {
        "dense": {"kernel": jax.random.normal(key, (8, 16)), "a.b/c": jnp.arange(3.0)},
        "bf16": jax.random.normal(key, (5, 7), jnp.bfloat16),
        "list": [jnp.arange(4, dtype=jnp.int8), np.arange(5, dtype=np.int64)],
        "mask": jnp.array([True, False]),
        "nan": jnp.array([jnp.nan, -0.0, jnp.inf, 1e-45]),
    }
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, mu_dtype=jnp.bfloat16))
    opt = tx.init(params["dense"])
    nothing = {"empty": {}, "tuple": (), "rng": jax.random.key_data(key)}
    return State(jnp.int32(7), params, opt, nothing, None)


def test_round_trip(tmp_path):
    state, meta = everything(), {"data": {"next": 12}, "mesh": (2, 4), "name": "süß"}
    with Store(tmp_path) as jobs:
        assert jobs.restore(like(state)) is None
        jobs.save(7, state, meta)
        back, about, step = jobs.restore(like(state))
    equal(back, state)
    assert (about, step) == ({**meta, "mesh": [2, 4]}, 7)
    assert isinstance(back.params["list"].pop(), np.ndarray)
    assert all(leaf.committed for leaf in jax.tree.leaves(back))


def test_numbers_become_zero_dimensional_arrays(tmp_path):
    with Store(tmp_path) as jobs:
        jobs.save(0, {"i": 3, "f": 0.5, "np": np.float32(2)}, {})
    tree, _ = read(tmp_path)
    assert {k: (v.shape, v.dtype.name, float(v)) for k, v in tree.items()} == {
        "i": ((), "int64", 3.0),
        "f": ((), "float64", 0.5),
        "np": ((), "float32", 2.0),
    }


def test_read_needs_no_job_and_may_take_a_part(tmp_path):
    state = everything()
    with Store(tmp_path) as jobs:
        jobs.save(7, state, {"name": "m"})
    before = {path: path.read_bytes() for path in files(tmp_path)}
    tree, meta = read(tmp_path)
    assert meta == {"name": "m"} and isinstance(tree["params"]["bf16"], np.ndarray)
    equal(tree["params"], state.params)
    equal(tree["opt"][1][0]["mu"], state.opt[1][0].mu)
    part, _ = read(tmp_path, 7, {"params": {"dense": like(state.params["dense"])}})
    equal(part, {"params": {"dense": state.params["dense"]}})
    with pytest.raises(CheckpointError, match="missing in the checkpoint: params/new"):
        read(tmp_path, 7, {"params": {"new": like(jnp.zeros(3))}})
    assert before == {path: path.read_bytes() for path in files(tmp_path)}
    with pytest.raises(CheckpointError, match="holds no committed step"):
        read(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="8: is not a committed step"):
        read(tmp_path, 8)


def test_the_state_may_change_as_soon_as_save_returns(tmp_path):
    host = np.arange(1 << 20, dtype=np.float32)
    sharding = jax.NamedSharding(mesh((4, 2)), jax.P("x", "y"))
    bump = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    with Store(tmp_path) as jobs:
        for step in range(4):
            sharded = jax.device_put(host.reshape(1024, 1024) + step, sharding)
            state = {"sharded": sharded, "one": jnp.asarray(host) + step, "host": host + step}
            want = jax.tree.map(np.array, state)
            device = {name: state[name] for name in ("sharded", "one")}
            jobs.save(step, state, {})
            for _ in range(3):  # fills the memory that was given back, if it was
                device = bump(device)
            state["host"][:] = -1
            jax.block_until_ready(device)
            equal(read_when_done(jobs, step), want)


def read_when_done(jobs, step):
    jobs.wait()
    return read(jobs.directory, step)[0]


def test_retention(tmp_path):
    with Store(tmp_path, keep=2, keep_every=4) as jobs:
        for step in range(1, 11):
            jobs.save(step, small(step), {})
        jobs.wait()
        assert jobs.steps() == [4, 8, 9, 10]
        assert sorted(os.listdir(tmp_path)) == sorted(["4", "8", "9", "10"])
        assert not any(jobs.verify(step) for step in jobs.steps())


def test_an_old_step_goes_only_after_the_manifest_of_the_new(tmp_path, monkeypatch):
    seen, write = [], manifest.write

    def look(folder):
        seen.append(sorted(os.listdir(tmp_path)))
        return write(folder)

    monkeypatch.setattr(manifest, "write", look)
    saved(tmp_path, (1, 2, 3), keep=1)
    assert seen == [["1"], ["1", "2"], ["2", "3"]]
    assert os.listdir(tmp_path) == ["3"]


def test_a_flipped_bit_in_any_file_is_found(tmp_path):
    saved(tmp_path, (1,))
    folder = tmp_path / "1"
    names = [path.relative_to(folder).as_posix() for path in files(folder)]
    assert {MANIFEST, "_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"} < set(names)
    jobs = Store(tmp_path)
    for name in names:
        path, rng = folder / name, np.random.default_rng(len(name))
        for bit in {0, int(rng.integers(path.stat().st_size * 8)), path.stat().st_size * 8 - 1}:
            flip(path, bit)
            assert jobs.verify(1) == [name]
            with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
                jobs.restore(like(small(1)), step=1)
            flip(path, bit)
    assert jobs.verify(1) == []
    jobs.close()


def test_no_flipped_bit_of_the_manifest_passes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    folder = store.epath.Path(tmp_path)
    assert manifest.write(folder) == 3
    size = (tmp_path / MANIFEST).stat().st_size
    for bit in range(size * 8):
        flip(tmp_path / MANIFEST, bit)
        assert manifest.damaged(folder) == [MANIFEST]
        flip(tmp_path / MANIFEST, bit)
    for length in range(size):
        raw = (tmp_path / MANIFEST).read_bytes()
        (tmp_path / MANIFEST).write_bytes(raw[:length])
        assert manifest.damaged(folder) == [MANIFEST]
        (tmp_path / MANIFEST).write_bytes(raw)
    assert manifest.damaged(folder) == []


def test_a_manifest_of_a_newer_format_is_an_error_not_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "FORMAT", 2)
    saved(tmp_path, (1,))
    monkeypatch.undo()
    with Store(tmp_path) as jobs, pytest.raises(CheckpointError, match=r"has format 2.*update"):
        jobs.restore(like(small(1)))
    assert os.listdir(tmp_path) == ["1"]


def test_truncated_missing_and_surplus_files(tmp_path):
    saved(tmp_path, (1,))
    folder, data = tmp_path / "1", files(tmp_path / "1" / "d")[0]
    raw = data.read_bytes()
    with Store(tmp_path) as jobs:
        data.write_bytes(raw[:-1])
        assert jobs.verify(1) == [f"d/{data.name}"]
        data.unlink()
        assert jobs.verify(1) == [f"d/{data.name}"]
        data.write_bytes(raw)
        (folder / "d" / "stray").write_bytes(b"")
        assert jobs.verify(1) == ["d/stray"]
        (folder / "d" / "stray").unlink()
        assert jobs.verify(1) == []
        os.remove(folder / MANIFEST)
        assert jobs.verify(1) == [MANIFEST] and jobs.steps() == []


def test_falls_back_and_moves_the_damaged_step_aside(tmp_path, caplog):
    saved(tmp_path)
    bad = [files(tmp_path / step / "d")[0] for step in "23"]
    for path in bad:
        flip(path)
    raw = bad[1].read_bytes()
    with Store(tmp_path) as jobs:
        state, meta, step = jobs.restore(like(small(0)))
        equal(state, small(1))
        assert (step, meta, jobs.steps()) == (1, {"data": 10}, [1])
        assert all(path.name in caplog.text for path in bad)
        assert (tmp_path / "3.damaged" / "d" / bad[1].name).read_bytes() == raw
        jobs.save(3, small(30), {})  # the run goes on; if that is hit as well, both wrecks stay
        jobs.wait()
        flip(files(tmp_path / "3" / "d")[0])
        assert jobs.restore(like(small(0)))[2] == 1
    assert sorted(os.listdir(tmp_path)) == ["1", "2.damaged", "3.damaged", "3.damaged.2"]


def test_no_good_step_is_an_error_now_and_after_a_restart(tmp_path):
    saved(tmp_path, (1, 2))
    bad = [files(tmp_path / step / "d")[0] for step in "12"]
    for path in bad:
        flip(path)
    for _ in range(2):
        with Store(tmp_path) as jobs, pytest.raises(CheckpointError) as caught:
            jobs.restore(like(small(0)))
        assert all(
            f"{n}.damaged/d/{path.name}" in str(caught.value)
            for n, path in zip("12", bad, strict=True)
        )
        assert "bring back" in caught.value.remedy


def test_an_unreadable_file_is_not_called_damage(tmp_path, monkeypatch):
    saved(tmp_path, (1,))
    digest = manifest.hashlib.file_digest

    def broken(file, kind):
        if "/d/" in file.name:
            raise OSError(5, "Input/output error")
        return digest(file, kind)

    monkeypatch.setattr(manifest.hashlib, "file_digest", broken)
    with Store(tmp_path) as jobs, pytest.raises(CheckpointError, match=r"/1/.*cannot be read"):
        jobs.restore(like(small(0)))
    assert os.listdir(tmp_path) == ["1"]


def test_what_a_crash_leaves_is_ignored_and_removed(tmp_path, caplog):
    saved(tmp_path)
    os.remove(tmp_path / "3" / MANIFEST)
    (tmp_path / "4.orbax-checkpoint-tmp" / "d").mkdir(parents=True)
    (tmp_path / "5" / "n01440764").mkdir(parents=True)  # a number, but nothing of ours
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="3: is not a committed step"):
        read(tmp_path, 3)
    equal(read(tmp_path)[0], small(2))
    with Store(tmp_path) as jobs:
        assert jobs.steps() == [1, 2]
        assert sorted(os.listdir(tmp_path)) == ["1", "2", "5", "notes.txt"]
        assert "4.orbax-checkpoint-tmp: removed" in caplog.text and "/3: removed" in caplog.text
        assert "/5: ignored" in caplog.text
        assert jobs.restore(like(small(0)))[2] == 2
        jobs.save(5, small(5), {})
        jobs.wait()
    assert sorted(os.listdir(tmp_path)) == ["1", "2", "5", "5.damaged", "notes.txt"]


def test_another_model_is_one_error_with_all_differences(tmp_path):
    state = {
        "a": jnp.zeros((2, 3)),
        "b": jnp.zeros(4),
        "old": {str(i): jnp.zeros(1) for i in range(12)},
    }
    with Store(tmp_path) as jobs:
        jobs.save(1, state, {})
        jobs.wait()
        before = {path: path.read_bytes() for path in files(tmp_path)}
        other = {"a": jnp.zeros((2, 4)), "b": jnp.zeros(4, jnp.bfloat16), "new": jnp.zeros(1)}
        with pytest.raises(CheckpointError) as caught:
            jobs.restore(like(other))
        text = str(caught.value)
        assert "missing in the checkpoint: new;" in text
        assert "unexpected in the checkpoint: old/0, old/1, old/10" in text and "and 2 more" in text
        assert "a is float32[2,3], wanted float32[2,4]" in text
        assert "b is float32[4], wanted bfloat16[4]" in text
        split = jax.NamedSharding(mesh((8,), ("x",)), jax.P("x"))
        with pytest.raises(CheckpointError, match=r"a float32\[2,3\] cannot be split"):
            jobs.restore(like(state, split))
        assert before == {path: path.read_bytes() for path in files(tmp_path)}


def test_a_dtype_is_never_converted(tmp_path):
    with Store(tmp_path) as jobs:
        jobs.save(1, {"w": jnp.zeros(4)}, {})
        with pytest.raises(CheckpointError, match=r"w is float32\[4\], wanted bfloat16\[4\]"):
            jobs.restore(like({"w": jnp.zeros(4, jnp.bfloat16)}))
        jobs.save(2, {"n": np.arange(3)}, {})  # int64, which JAX would make int32 on a device
        one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        with pytest.raises(CheckpointError, match=r"n is int64\[3\], which JAX would cut"):
            jobs.restore(like({"n": np.arange(3)}, one))


@pytest.mark.parametrize(
    "state, reason",
    [
        ({}, "named leaves"),
        (np.zeros(3), "named leaves"),
        ({"a": {"b": 1}, "a.b": 2}, "two leaves have one name: a.b"),
        ({"k": {"key": jax.random.key(0)}}, "k/key is a typed PRNG key"),
        ({"z": np.zeros((0, 2))}, "zero size"),
        ({"s": "text"}, "s is not an array of numbers"),
        ({"o": np.array([None])}, "o is not an array of numbers"),
    ],
)
def test_what_cannot_be_saved_is_refused_at_once(tmp_path, state, reason):
    with Store(tmp_path) as jobs:
        with pytest.raises(CheckpointError, match=reason):
            jobs.save(1, state, {})
        with pytest.raises(CheckpointError, match="not JSON-able"):
            jobs.save(1, small(1), {"x": np.float32(1)})
        with pytest.raises(CheckpointError, match="negative"):
            jobs.save(-1, small(1), {})
    assert os.listdir(tmp_path) == []


def test_a_step_is_saved_once_and_donated_arrays_are_refused(tmp_path):
    state = small(1)
    with Store(tmp_path) as jobs:
        jobs.save(1, state, {})
        with pytest.raises(CheckpointError, match="/1: is saved already"):
            jobs.save(1, state, {})
        jax.jit(lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0)(state)
        with pytest.raises(CheckpointError, match="was donated"):
            jobs.save(2, state, {})
        assert jobs.steps() == [1]


@pytest.mark.parametrize("target", [(8, 1), (1, 8), (2, 4), (2, 2), (1, 1)])
def test_restores_onto_another_mesh(tmp_path, target):
    state = {"w": jnp.arange(1024.0).reshape(32, 32), "s": jnp.float32(3)}
    source = jax.NamedSharding(mesh((4, 2)), jax.P("x", "y"))
    with Store(tmp_path) as jobs:
        jobs.save(1, {**state, "w": jax.device_put(state["w"], source)}, {})
        wanted = jax.NamedSharding(mesh(target), jax.P("y", "x"))
        shapes = {"w": like(state["w"], wanted), "s": like(state["s"])}
        back, _, _ = jobs.restore(shapes)
    equal(back, state)
    assert back["w"].sharding == wanted and back["w"].committed
    assert back["w"].addressable_shards[0].data.shape == (32 // target[1], 32 // target[0])


def test_an_error_in_the_background_surfaces_once(tmp_path, monkeypatch):
    def fail(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    for later in ("save", "wait", "close"):
        directory = tmp_path / later
        jobs = Store(saved(directory, (1,)))
        monkeypatch.setattr(manifest, "write", fail)
        jobs.save(2, small(2), {})
        call = getattr(jobs, later)
        with pytest.raises(CheckpointError, match=r"2: could not be .*denied.*step 1 is intact"):
            call(3, small(3), {}) if later == "save" else call()
        monkeypatch.undo()
        assert os.listdir(directory) == ["1"]
        if later != "close":
            jobs.save(2, small(2), {})
            jobs.close()
            assert jobs.steps() == [1, 2]
        jobs.close()


def test_an_error_of_the_loop_is_not_hidden_by_the_store(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(manifest, "write", lambda folder: 1 / 0)
    with pytest.raises(KeyError, match="loop"), Store(tmp_path) as jobs:
        jobs.save(1, small(1), {})
        raise KeyError("loop")
    assert "the last save failed as well" in caplog.text


@pytest.fixture(params=["limit", "tmpfs"])
def small_disk(request, tmp_path):
    """(directory, how to fill it): a limit on file sizes, and a really full disk where we may."""
    if request.param == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as fault:
            pytest.skip(f"mounting a tmpfs is not permitted here: {fault}")
        yield tmp_path, lambda: None
        subprocess.run(["umount", str(tmp_path)], check=True)
        return
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield tmp_path, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, old[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_full_disk(small_disk):
    directory, fill = small_disk
    big = {"w": jax.random.normal(jax.random.key(0), (2048, 1024)), "step": jnp.int32(2)}
    with Store(directory) as jobs:
        jobs.save(1, small(1), {})
        jobs.wait()
        fill()
        with pytest.raises(CheckpointError) as caught:
            jobs.save(2, big, {})
            jobs.wait()
        text = str(caught.value)
        assert "/2: the disk is full (" in text and "free before" in text
        assert "the step has 8,388,612 bytes of arrays" in text
        assert "step 1 is intact" in text
        assert os.listdir(directory) == ["1"]
        equal(jobs.restore(like(small(0)))[0], small(1))
        jobs.save(3, small(3), {})
        jobs.wait()
        assert jobs.steps() == [1, 3] and jobs.verify(3) == []


def test_an_unusable_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file/sub: cannot be used"):
        Store(tmp_path / "file" / "sub")
    with pytest.raises(CheckpointError, match="cannot keep 0"):
        Store(tmp_path, keep=0)


def run(*arguments):
    command = [sys.executable, job.__file__, *map(str, arguments)]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize(
    "point, good",
    [
        ("writing", [2]),
        ("renamed", [2]),
        ("manifest", [2]),
        ("committed", [2, 3]),
        ("removing", [3]),
    ],
)
def test_kill_9_during_a_save(tmp_path, point, good):
    process = run("kill", point, tmp_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == -9, output
    with Store(tmp_path, keep=9) as jobs:
        assert jobs.steps() == good
        assert sorted(os.listdir(tmp_path)) == [str(step) for step in good]
        assert not any(jobs.verify(step) for step in good)
        state, meta, step = jobs.restore(like(job.values(0)))
        assert step == good[-1] and meta == {"step": step} and job.same(state, step)
        jobs.save(4, state, {})
        jobs.wait()
        assert jobs.steps() == [*good, 4]


def test_two_processes_and_then_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [run("pair", tmp_path, port, index) for index in range(2)]
    try:
        outputs = [process.communicate(timeout=180)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for index, output in enumerate(outputs):
        assert f"PASSED {index}" in output, "\n=====\n".join(outputs)
    assert sorted(os.listdir(tmp_path)) == ["2", "3.damaged", "4"]
    sharding = jax.NamedSharding(mesh((1, 4)), jax.P())
    rows = jax.NamedSharding(mesh((1, 4)), jax.P("y", "x"))
    shapes = {**like(job.values(0), sharding), "w": like(job.values(0)["w"], rows)}
    with Store(tmp_path) as jobs:
        state, meta, step = jobs.restore(shapes)
    assert step == 4 and meta == {"step": 4} and job.same(state, 2)
    assert state["w"].sharding == rows and json.dumps(meta)
