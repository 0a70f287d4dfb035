"""Whatever ends a run, the same command goes on, and the history is that of a run nothing ended."""

import os
import random
import signal

import pytest
import runs
import tiny

from bind import metrics, train
from bind.ckpt.store import Store, read
from bind.errors import CheckpointError, DataError

SAVES = {"steps": 24, "save_every": 3, "log_every": 1}
FLAGS = [f"--config.{name}={value}" for name, value in SAVES.items()]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The folder of a run of 24 steps that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("reference") / "run"
    runs.finish(runs.start(workdir, *FLAGS))
    assert len(runs.losses(workdir)) == 24
    return workdir


def torn(workdir) -> list[str]:
    """Checkpoints that were begun and never committed."""
    folders = (workdir / "checkpoints").glob("*")
    return [folder.name for folder in folders if not (folder / "MANIFEST.json").exists()]


def kill_often(workdir, flags, kills, rng) -> int:
    """Kills the run `kills` times and then lets it end; returns how many kills fell into a save.

    Every other kill comes as soon as a save has begun, the rest after a random number of steps.
    """
    into_a_save = 0
    for i in range(kills):
        job = runs.start(workdir, *flags)
        first = job.stderr.readline()
        while first and not first.startswith(("step ", "resumed")):
            first = job.stderr.readline()
        for _ in range(rng.randrange(1, 5)):
            job.stderr.readline()
        while i % 2 == 0 and job.poll() is None and not torn(workdir):
            pass
        job.kill()
        job.communicate()
        assert job.returncode == -signal.SIGKILL, "the run ended before its kill"
        into_a_save += bool(torn(workdir))
    runs.finish(runs.start(workdir, *flags))
    assert torn(workdir) == []
    return into_a_save


def test_kill_9_loses_and_repeats_no_step(reference, tmp_path):
    into_a_save = kill_often(tmp_path, FLAGS, 3, random.Random(1))
    assert into_a_save >= 1
    assert runs.history(tmp_path) == runs.history(reference)


@pytest.mark.slow
def test_kill_9_at_ten_moments(tmp_path):
    flags = [*FLAGS, "--config.steps=60"]
    runs.finish(runs.start(tmp_path / "whole", *flags))
    into_a_save = kill_often(tmp_path / "killed", flags, 10, random.Random(2))
    assert into_a_save >= 3
    assert len(runs.losses(tmp_path / "killed")) == 60
    assert runs.history(tmp_path / "killed") == runs.history(tmp_path / "whole")


def test_sigterm_saves_says_so_and_ends_well(reference, tmp_path):
    flags = [*FLAGS, "--config.save_every=1000"]
    job = runs.start(tmp_path, *flags)
    assert runs.read_until(job, 4)
    job.terminate()
    (said,) = runs.finish(job)
    (step,) = Store(tmp_path / "checkpoints").steps()
    assert 4 <= step < 24
    assert f"stopped by a signal at step {step}, saved" in said
    assert runs.history(tmp_path) == runs.history(reference)[:step]
    (said,) = runs.finish(runs.start(tmp_path, *flags))
    assert f"resumed from step {step}" in said
    assert runs.history(tmp_path) == runs.history(reference)


def test_a_signal_to_the_whole_job_leaves_the_workers_to_their_parent(tmp_path):
    flags = ["--config.steps=100000", "--config.log_every=1", "--config.data.workers=2"]
    job = runs.start(tmp_path, *flags, start_new_session=True)
    assert runs.read_until(job, 4)
    os.killpg(job.pid, signal.SIGINT)
    (said,) = runs.finish(job)
    (step,) = Store(tmp_path / "checkpoints").steps()
    assert f"stopped by a signal at step {step}, saved" in said
    assert "leaked" not in said and "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_both_at_the_same_step(stop, tmp_path):
    flags = ["--config.steps=100000", "--config.log_every=1", "--config.save_every=100000"]
    pair = runs.start_pair(tmp_path, *flags, devices=1)
    try:
        assert runs.read_until(pair[0], 3)
        pair[1].send_signal(stop)
    finally:
        said = runs.finish(*pair)
    (step,) = Store(tmp_path / "checkpoints").steps()
    assert f"stopped by a signal at step {step}, saved" in said[0]
    assert len(runs.losses(tmp_path)) == step


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The same run in this process, which may compile with other flags than those it starts."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.add(patch.setitem)
        workdir = tmp_path_factory.mktemp("here") / "run"
        runs.fit(workdir, SAVES, devices=1)
    return workdir


def test_a_flipped_bit_costs_one_checkpoint_and_no_loss(here, tmp_path, caplog):
    workdir = runs.back_to(21, here, tmp_path / "run")
    file = max((workdir / "checkpoints/21").rglob("d/*"), key=lambda path: path.stat().st_size)
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    runs.fit(workdir, SAVES, devices=1)
    assert [r.getMessage() for r in caplog.records if file.name in r.getMessage()]
    assert (workdir / "checkpoints/21.damaged").is_dir()
    assert runs.history(workdir) == runs.history(here)


def test_a_checkpoint_of_another_model_is_one_error(here, tmp_path, monkeypatch):
    workdir = runs.back_to(21, here, tmp_path / "run")
    less = {name: tower for name, tower in tiny.TOWERS.items() if name != "imu"}
    monkeypatch.setattr(tiny, "TOWERS", less)
    changes = {**SAVES, "trainable": "vision/.*"}
    with pytest.raises(CheckpointError, match=r"does not fit this model; unexpected .*imu"):
        runs.fit(workdir, changes, devices=1)
    assert runs.history(workdir) == runs.history(here)  # nothing was thrown away


def test_a_line_that_a_kill_cut_short_is_written_again(here, tmp_path):
    workdir = runs.back_to(21, here, tmp_path / "run")
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if '"step": 22' in line and "loss" in line)
    path.write_text("".join(lines[:last]) + lines[last][:40])
    runs.fit(workdir, SAVES, devices=1)
    assert runs.history(workdir) == runs.history(here)
    assert metrics.read(path)[-1]["step"] == 24


FROZEN = {"steps": 6, "save_every": 3, "trainable": r"(vision|imu)/.*|text/projection/.*"}


def test_frozen_leaves_are_saved_once_and_come_back(tmp_path):
    state, frozen = runs.fit(tmp_path / "run", FROZEN, devices=1)
    assert sorted(frozen) == ["text"] and "projection" not in frozen["text"]
    assert sorted(state.trainable["text"]) == ["projection"]
    moments = state.opt_state["text"].mu
    assert sorted(moments) == ["projection"]
    saved, _ = read(tmp_path / "run/frozen")
    assert runs.bits(saved) == runs.bits(frozen)
    assert Store(tmp_path / "run/frozen").steps() == [0]
    kept, _ = read(tmp_path / "run/checkpoints")
    assert sorted(kept["trainable"]["text"]) == ["projection"]
    # Another seed would draw other leaves: those of the resumed run are the saved ones.
    again, same = runs.fit(
        runs.back_to(3, tmp_path / "run", tmp_path / "again"), {**FROZEN, "seed": 5}, devices=1
    )
    assert int(again.step) == 6
    assert runs.bits(same) == runs.bits(frozen)


def test_a_run_killed_before_its_first_checkpoint_starts_anew(tmp_path, monkeypatch):
    def power_cut(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train._Loop, "_save", power_cut)
        with pytest.raises(KeyboardInterrupt):
            runs.fit(tmp_path / "run", {**FROZEN, "seed": 5}, devices=1)
    assert Store(tmp_path / "run/checkpoints").steps() == []
    state, frozen = runs.fit(tmp_path / "run", FROZEN, devices=1)
    whole, whole_frozen = runs.fit(tmp_path / "whole", FROZEN, devices=1)
    assert runs.bits((state, frozen)) == runs.bits((whole, whole_frozen))
    assert runs.bits(read(tmp_path / "run/frozen")[0]) == runs.bits(whole_frozen)


def test_a_damaged_line_in_the_middle_of_the_history_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\x00\x00\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: is damaged"):
        metrics.read(path)
