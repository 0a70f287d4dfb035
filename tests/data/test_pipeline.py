"""Batches are a function of the step: not of threads, workers, processes or where a run began."""

import multiprocessing
import subprocess
import sys
import threading
from collections import Counter

import grain
import numpy as np
import pytest

from bind.data.pipeline import DAMAGED, MAX_ATTEMPTS, Batches, Stream
from bind.errors import ConfigError, DataError


class Numbers:
    """Record i is i and an array drawn from it; those in `damaged` cannot be read."""

    def __init__(self, size, damaged=()):
        self.size, self.damaged = size, damaged

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        index = int(index) % self.size
        if index in self.damaged:
            raise DataError(f"number {index}", "is damaged")
        x = np.random.default_rng(index).normal(size=40).astype(np.float32)
        return {"id": np.int64(index), "x": x}


class Jitter(grain.transforms.RandomMap):
    def random_map(self, record, rng):
        return {**record, "x": record["x"] + rng.normal(size=40).astype(np.float32)}


STREAMS = [
    Stream("a", Numbers(20), [Jitter()], 2.0),
    Stream("b", Numbers(16, damaged=(3, 5)), [Jitter()], 1.0),
]


def take(count, streams=STREAMS, **options):
    """`count` batches as {name: array}, and everything closed."""
    batches = Batches(streams, **{"batch_size": 8, "threads": 1, **options})
    try:
        return [dict(next(batches)) for _ in range(count)]
    finally:
        batches.close()


def same(one, other):
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape)
            np.testing.assert_array_equal(a[name], b[name])


@pytest.fixture(scope="module")
def reference():
    return take(12)


@pytest.mark.parametrize("options", [{"threads": 4}, {"workers": 2}, {"workers": 1}])
def test_threads_and_workers_do_not_change_a_bit(options, reference):
    same(take(12, **options), reference)


@pytest.mark.parametrize("start, workers", [(1, 0), (5, 0), (11, 0), (3, 2)])
def test_a_start_further_on_gives_the_same_batches(start, workers, reference):
    same(take(12 - start, start=start, workers=workers), reference[start:])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_make_the_rows_of_one_batch(processes, reference):
    share = 8 // processes
    parts = [take(12, rows=(i * share, (i + 1) * share)) for i in range(processes)]
    whole = [
        {name: np.concatenate([batch[name] for batch in at]) for name in at[0]}
        for at in zip(*parts, strict=True)
    ]
    same(whole, reference)


def test_the_seed_changes_order_and_augmentation():
    one, other = take(2, seed=0), take(2, seed=1)
    assert not np.array_equal(one[0]["id"], other[0]["id"])
    plain = [Stream("a", Numbers(20), [], 1.0)]
    twins = [*plain, Stream("a2", Numbers(20), [], 1.0)]
    ids = [batch["id"].tolist() for batch in take(2, twins)]
    assert ids[0] != ids[1]  # two streams over one source do not march in step


def test_an_epoch_has_every_record_once_and_the_next_another_order():
    batches = take(10, [Stream("a", Numbers(40), [Jitter()])])
    epochs = [np.concatenate([b["id"] for b in batches[i : i + 5]]) for i in (0, 5)]
    for ids in epochs:
        assert sorted(ids) == list(range(40))
    assert epochs[0].tolist() != epochs[1].tolist()
    draws = [
        {int(i): x for b in batches[k : k + 5] for i, x in zip(b["id"], b["x"], strict=True)}
        for k in (0, 5)
    ]
    assert all((draws[0][i] != draws[1][i]).any() for i in range(40))  # augmented anew


def test_a_batch_that_does_not_divide_the_epoch_runs_on_into_the_next():
    ids = np.concatenate([b["id"] for b in take(5, [Stream("a", Numbers(20), [])])])
    assert Counter(ids.tolist()) == {i: 2 for i in range(20)}


@pytest.mark.parametrize("weights", [(2, 1), (0.7, 0.3), (5, 3, 1)])
def test_weights_are_kept_to_the_batch(weights):
    class Named(Numbers):
        def __init__(self, name):
            super().__init__(8)
            self.name = name

        def __getitem__(self, index):
            return {"name": np.int64(self.name)}

    streams = [Stream(str(i), Named(i), [], w) for i, w in enumerate(weights)]
    drawn = [int(batch["name"][0]) for batch in take(60, streams)]
    for count in range(1, 61):
        for i, weight in enumerate(weights):
            assert abs(drawn[:count].count(i) - count * weight / sum(weights)) <= 1


def test_a_damaged_record_gets_a_stand_in_and_a_mark_of_its_own():
    stream = Stream("b", Numbers(16, damaged=(3, 5)), [])
    whole = take(4, [Stream("b", Numbers(16), [])])
    marks = set()
    for batch, good in zip(take(4, [stream]), whole, strict=True):
        assert batch[DAMAGED].dtype == np.uint32
        bad = np.isin(good["id"], (3, 5))
        np.testing.assert_array_equal(batch[DAMAGED] != 0, bad)
        np.testing.assert_array_equal(batch["id"][~bad], good["id"][~bad])
        assert not np.isin(batch["id"], (3, 5)).any() and batch["x"].shape == (8, 40)
        marks |= set(batch[DAMAGED].tolist())
    assert len(marks) == 3  # none, and one for each


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_readable_is_an_error_and_no_hang(workers):
    everything = Stream("b", Numbers(16, damaged=range(16)), [])
    with pytest.raises(DataError, match=f"stream 'b': {MAX_ATTEMPTS} records in a row cannot"):
        take(1, [everything], workers=workers)


def test_what_makes_no_sense_is_an_error_at_construction():
    with pytest.raises(DataError, match="stream 'a': has no records"):
        Batches([Stream("a", Numbers(0), [])], batch_size=8)
    with pytest.raises(ConfigError, match="is empty"):
        Batches([], batch_size=8)
    with pytest.raises(ConfigError, match="weight <= 0"):
        Batches([Stream("a", Numbers(4), [], 0.0)], batch_size=8)


@pytest.mark.parametrize("options", [{"threads": 4}, {"workers": 2}])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_closing_leaves_no_thread_and_no_process(options, count):
    before = set(threading.enumerate())
    batches = Batches(STREAMS, batch_size=8, **options)
    given = [next(batches) for _ in range(count)]
    batches.close()
    batches.close()
    assert multiprocessing.active_children() == []
    readers = [t for t in set(threading.enumerate()) - before if "prefetch" in t.name]
    for thread in readers:
        thread.join(60)  # they were told; one may still be at its last record
    assert not any(thread.is_alive() for thread in readers)
    assert all(np.isfinite(batch["x"]).all() for batch in given)  # still there


JOB = """
import os, sys
sys.path.insert(0, {folder!r})
import numpy as np
from test_pipeline import STREAMS, Batches

alive = []  # at exit as well

def main():
    batches = Batches(STREAMS, batch_size=8, workers=2)
    alive.extend(next(batches) for _ in range(5))
    {end}

if __name__ == "__main__":
    main()
"""


def job(tmp_path, end):
    script = tmp_path / "job.py"
    script.write_text(JOB.format(folder=str(__file__).rsplit("/", 1)[0], end=end))
    # Workers inherit the pipes: their end is reached only when the last worker is gone.
    return subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("end", ["batches.close()", "pass", "sys.exit(3)", "del batches"])
def test_no_way_out_leaks_shared_memory(end, tmp_path):
    done = job(tmp_path, end)
    assert "leaked" not in done.stderr
    assert done.returncode == (3 if "exit" in end else 0)


def test_no_worker_outlives_a_killed_job(tmp_path):
    done = job(tmp_path, "os.kill(os.getpid(), 9)")
    assert done.returncode == -9
    assert "Traceback" not in done.stderr
