"""Batches as a pure function of the step: the same ones for any number of processes, threads or
workers.

A stream is a random-access source, a plain list of grain transforms and a weight. Position i of a
stream is a record: epoch after epoch, each shuffled anew from the seed. Batch k of a stream holds
the positions [k * B, (k + 1) * B); every process makes only its own rows of it. Steps go to the
streams in proportion to their weights. So the whole state of the input is the step, and a run
resumes exactly on any topology.

A batch is a dict of arrays with a leading row axis; what the keys are is between the transforms and
the task. The loop takes out DAMAGED, u32[rows]: 0, or a fingerprint of the damaged record that
stood in this row.
"""

import multiprocessing
import os
import signal
import sys
import threading
import weakref
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags, logging

from bind.errors import ConfigError, DataError

DAMAGED = "_damaged"
MAX_ATTEMPTS = 16  # unreadable records in a row at one position before the input is given up


class Stream(NamedTuple):
    """One kind of batch, such as a modality pair."""

    name: str
    source: Any  # __len__ and __getitem__(int) -> dict
    transforms: Sequence[Any]  # grain.transforms.Map and RandomMap over dicts
    weight: float = 1.0


class _Rows:
    """A process's rows of a stream, in batch order; a damaged record is replaced, and marked."""

    def __init__(self, stream: Stream, batch_size: int, rows: tuple[int, int], seed: int):
        if not len(stream.source):
            raise DataError(f"stream {stream.name!r}", "has no records", "look at its source")
        self.name, self.epoch = stream.name, len(stream.source)
        self.batch_size, self.first, self.count = batch_size, rows[0], rows[1] - rows[0]
        records = grain.MapDataset.source(stream.source).seed(seed).shuffle().repeat()
        self.records = records.apply(list(stream.transforms))

    def __len__(self) -> int:
        return sys.maxsize // (2 * self.batch_size) * self.count

    def __getitem__(self, index: int) -> dict:
        batch, row = divmod(index, self.count)
        position, mark = batch * self.batch_size + self.first + row, 0
        for attempt in range(MAX_ATTEMPTS):
            try:
                # The stand-in is the record at the same place of a later epoch's shuffle.
                record = self.records[position + attempt * self.epoch]
                return {**record, DAMAGED: np.uint32(mark)}
            except DataError as error:
                logging.warning("skipped a damaged record of %s: %s", self.name, error)
                mark = mark or zlib.crc32(str(error).encode()) or 1
        raise DataError(
            f"stream {self.name!r}",
            f"{MAX_ATTEMPTS} records in a row cannot be read",
            "the warnings above name them",
        )


class Batches:
    """An iterator over this process's rows of the global batches, from step `start` on. Close it
    when done.

    Args:
      streams: one or more, each with at least one batch worth of meaning; weights need not sum to
        1.
      batch_size: rows of a global batch. rows: the half-open range of them to make here.
      threads, workers: batches in the making at once, in threads of this process, or in processes.
    Raises: ConfigError for weights or streams that make no sense; DataError while iterating.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        *,
        batch_size: int,
        rows: tuple[int, int] | None = None,
        seed: int = 0,
        start: int = 0,
        threads: int = 4,
        workers: int = 0,
    ):
        if not streams:
            raise ConfigError("config.pairs", "is empty", "name at least one pair")
        if any(s.weight <= 0 for s in streams):
            raise ConfigError("config.pairs", "has a weight <= 0", "leave the pair out instead")
        rows = rows or (0, batch_size)
        # Streams with the same source must not march in step, so each has a seed of its own.
        seeds = [zlib.crc32(f"{seed}/{s.name}".encode()) for s in streams]
        parts = [
            grain.MapDataset.source(_Rows(s, batch_size, rows, k)).batch(rows[1] - rows[0])
            for s, k in zip(streams, seeds, strict=True)
        ]
        mixed = grain.MapDataset.mix(parts, [s.weight for s in streams])[start:]
        options = grain.ReadOptions(
            num_threads=0 if workers else threads,
            prefetch_buffer_size=0 if workers else 2 * threads,
        )
        batches = mixed.to_iter_dataset(options)
        if workers:
            if (
                not flags.FLAGS.is_parsed()
            ):  # grain's workers read absl flags, also outside absl.app
                flags.FLAGS.mark_as_parsed()
            batches = batches.mp_prefetch(
                grain.multiprocessing.MultiprocessingOptions(workers, per_worker_buffer_size=2),
                worker_init_fn=_follow_parent,
            )
        self._iterator = iter(batches)
        self._close = weakref.finalize(self, self._iterator.close)  # also at exit

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._iterator)
        for x in batch.values():
            _unname(x)
        return batch

    def close(self) -> None:
        """Stops the threads and processes behind the iterator. Batches already given stay good."""
        self._close()


def _follow_parent(*_) -> None:
    """In each worker: a job's signals are its parent's to handle, and no worker outlives it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, name="follow-parent", daemon=True).start()


def _unname(x: np.ndarray) -> None:
    """Takes the name of a worker's shared memory away; the memory itself goes with the array.

    grain does both later, in the background: arrays alive at exit, or at a kill, would leak.
    """
    if getattr(x, "_unlink_on_del", False):
        x._unlink_on_del = False
        x.shm.unlink()
