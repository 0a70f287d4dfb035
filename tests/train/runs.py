"""Runs of the tiny config, in this process and in others, and what they leave behind."""

import os
import shutil
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import tiny

from bind import metrics, sharding, task, train

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def config(changes=()):
    """The tiny config with {"dotted.field": value} changed."""
    made = tiny.get_config()
    made.update_from_flattened_dict(dict(changes))
    return made


def fit(workdir, changes=(), devices=None, mesh=None):
    """train.fit of the tiny config on the first `devices` devices; (state, frozen)."""
    made = config(changes)
    if mesh:
        made.mesh = {"data": 1, "fsdp": 1, "tensor": 1, **mesh}
    original = sharding.make_mesh
    if devices:
        sharding.make_mesh = partial(original, devices=jax.devices()[:devices])
    try:
        return train.fit(task.contrastive(made), made, workdir)
    finally:
        sharding.make_mesh = original


def history(workdir) -> list[tuple]:
    """(step, batch, loss, gradient norm) of every step, in the file's order."""
    records = metrics.read(Path(workdir) / "metrics.jsonl")
    return [(r["step"], r["batch"], r["loss"], r["grad_norm"]) for r in records if "loss" in r]


def losses(workdir) -> np.ndarray:
    """The losses; checks that each step is there once and in order."""
    steps = history(workdir)
    assert [step for step, *_ in steps] == list(range(1, len(steps) + 1))
    return np.array([loss for _, _, loss, _ in steps])


def start(workdir, *flags, devices=1, index=None, port=None, **options):
    """The same run as a process of its own, or as process `index` of two. options: Popen's."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(devices)}
    command = [
        sys.executable,
        HERE / "job.py",
        f"--config={HERE / 'tiny.py'}",
        f"--workdir={workdir}",
    ]
    if index is not None:
        command += [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
        command += [f"--process_id={index}"]
    return subprocess.Popen(
        [*command, *flags], env=env, stderr=subprocess.PIPE, text=True, **options
    )


def start_pair(workdir, *flags, devices=4):
    """Two processes of one job."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(workdir, *flags, devices=devices, index=i, port=port) for i in range(2)]


def finish(*jobs) -> list[str]:
    """What the jobs wrote to stderr, once all ended well."""
    try:
        said = [job.communicate(timeout=300)[1] for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    for job, text in zip(jobs, said, strict=True):
        assert job.returncode == 0, text
    return said


def read_until(job, step: int) -> bool:
    """Reads what the job says up to its line about `step`; False if it ended before."""
    return any(line.startswith(f"step {step}/") for line in job.stderr)


def back_to(step: int, workdir, target) -> Path:
    """A copy of a run as it was when `step` was its newest checkpoint."""
    shutil.copytree(workdir, target)
    for folder in (Path(target) / "checkpoints").iterdir():
        if int(folder.name) > step:
            shutil.rmtree(folder)
    return target


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]
