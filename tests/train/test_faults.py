"""Bad numbers and bad records: what a run survives, what it counts, and how it ends."""

import jax
import numpy as np
import pytest
import runs

from bind import metrics, task
from bind.ckpt.store import Store, read
from bind.data.pipeline import DAMAGED
from bind.errors import DataError, TrainingError

POISON = "pairs.words.source.poison"
BROKEN = "pairs.words.source.damaged"


def given(steps, changes):
    """The batches of a config, step by step."""
    made = runs.config(changes)
    data = task.contrastive(made).train_data((0, made.batch_size), 0)
    try:
        return [next(data) for _ in range(steps)]
    finally:
        data.close()


def test_training_goes_on_behind_a_poisoned_record(tmp_path):
    changes = {POISON: (5,)}
    state, _ = runs.fit(tmp_path, changes, devices=1)
    bad = [
        step
        for step, batch in enumerate(given(20, changes), 1)
        if not all(np.isfinite(x).all() for x in batch.values())
    ]
    assert 3 <= len(bad) <= 5  # once in each of the pair's epochs of three batches
    records = [r for r in metrics.read(tmp_path / "metrics.jsonl") if "loss" in r]
    assert [r["step"] for r in records if r["skipped"]] == bad
    assert [r["step"] for r in records if r["loss"] == "nan"] == bad
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.trainable, state.opt_state)))
    assert int(state.skipped) == 0 and int(state.step) == 20


def test_too_many_bad_steps_in_a_row_end_the_run_and_lose_nothing(tmp_path):
    changes = {"save_every": 2, "keep": 10, "max_skipped": 3, "pairs.motion.weight": 1e-3}
    runs.fit(tmp_path / "whole", changes, devices=1)
    workdir = runs.back_to(4, tmp_path / "whole", tmp_path / "run")
    good, _ = read(workdir / "checkpoints", 4)
    with pytest.raises(TrainingError) as caught:
        runs.fit(workdir, {**changes, POISON: tuple(range(48))}, devices=1)
    text = str(caught.value)
    assert text.startswith(
        "step 7 (text + vision): 3 steps in a row gave a loss or gradient that is not"
    )
    assert "nothing is lost" in text and text.endswith("the last checkpoint is step 6)")
    store = Store(workdir / "checkpoints")
    assert store.steps() == [2, 4, 6] and store.verify(6) == []
    kept, _ = read(workdir / "checkpoints", 6)
    for part in ("trainable", "opt_state"):
        assert runs.bits(kept[part]) == runs.bits(good[part])
    state, _ = runs.fit(workdir, changes, devices=1)  # the data was mended
    assert int(state.step) == 20 and int(state.skipped) == 0
    assert len(runs.losses(workdir)) == 20


def test_before_the_first_checkpoint_the_error_names_none(tmp_path):
    changes = {"max_skipped": 1, "pairs.motion.weight": 1e-3, POISON: tuple(range(48))}
    with pytest.raises(TrainingError, match=r"step 2 .*no checkpoint was due yet"):
        runs.fit(tmp_path, changes, devices=1)


def damage(workdir) -> list[int]:
    return [r["damaged"] for r in metrics.read(workdir / "metrics.jsonl") if "damaged" in r]


def test_damaged_records_are_replaced_and_counted_once_each(tmp_path):
    changes = {"log_every": 5, "save_every": 10, BROKEN: (3, 7)}
    for batch in given(10, changes):
        assert batch[DAMAGED].shape == (16,) and len({len(x) for x in batch.values()}) == 1
    runs.fit(tmp_path / "whole", changes, devices=1)
    workdir = runs.back_to(10, tmp_path / "whole", tmp_path / "run")
    runs.fit(workdir, changes, devices=1)
    assert damage(workdir)[-1] == 2  # five epochs met each of them
    assert len(read(workdir / "checkpoints", 20)[1]["damaged"]) == 2


def test_the_count_of_damaged_records_survives_a_resume(tmp_path):
    changes = {"save_every": 10, "max_damaged": 2}
    runs.fit(tmp_path / "whole", {**changes, BROKEN: (3, 7)}, devices=1)
    workdir = runs.back_to(10, tmp_path / "whole", tmp_path / "run")
    with pytest.raises(TrainingError) as caught:
        runs.fit(workdir, {**changes, BROKEN: (9,)}, devices=1)
    text = str(caught.value)
    assert "3 different records were damaged so far, more than config.max_damaged = 2" in text
    assert text.startswith("step 1") and "the last checkpoint is step 10" in text


def test_a_source_without_one_good_record_is_an_error_and_no_hang(tmp_path):
    with pytest.raises(DataError, match=r"stream 'words': 16 records in a row cannot be read"):
        runs.fit(tmp_path, {BROKEN: tuple(range(48))}, devices=1)


def test_a_source_without_records_is_an_error_at_once():
    with pytest.raises(DataError, match=r"stream 'words': has no records"):
        given(0, {"pairs.words.source.size": 0})


@pytest.mark.slow
def test_two_processes_count_the_damage_of_both(tmp_path):
    """The limit ends both at the same step, whichever met the records."""
    flags = ["--config.save_every=5", "--config.max_damaged=1", "--config.steps=100"]
    pair = runs.start_pair(tmp_path, *flags, f"--config.{BROKEN}=(3, 7)", devices=1)
    said = [job.communicate(timeout=300)[1] for job in pair]
    assert [job.returncode for job in pair] == [1, 1], said
    ends = [text.split("TrainingError: ")[1].split(":")[0] for text in said]
    assert ends[0] == ends[1]
