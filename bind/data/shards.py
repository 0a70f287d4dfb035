"""Sources for data in bulk: Parquet, WebDataset tar shards, ArrayRecord, TFDS. See `sources`."""

import contextlib
import functools
import hashlib
import json
import os
import tarfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bind.data.records import File, Source, find, names, resolve, title
from bind.errors import DataError


def _parquet(path: str, call: Callable):
    """`call(pyarrow.parquet.ParquetFile)`, its faults as DataError."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(path, "needs pyarrow", "pip install bind-jax[parquet]") from error
    try:
        with parquet.ParquetFile(path) as file:
            return call(file)
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise DataError(path, f"is not a sound Parquet file: {error}") from error


@functools.lru_cache(maxsize=4)
def _row_group(path: str, written: int, group: int, columns: tuple[str, ...]):
    """One row group as a pyarrow Table; the last few stay in memory, of each process its own."""
    columns = list(columns) or None
    return _parquet(path, lambda f: f.read_row_group(group, columns=columns, use_threads=False))


class Parquet(Source):
    """Parquet files, read by row groups; the last four groups of a process stay in memory.

    Reading in order costs one group at a time, reading at random many: write groups of about 100
    rows. Needs the extra `parquet`. Raises DataError without it, and for a damaged file.
    """

    def __init__(self, paths, root: str | None = None, files=(), columns=()):
        self.paths, self.root, self.files = find(paths), root, names(files)
        self.columns, groups = names(columns), []
        self.written = [os.stat(path).st_mtime_ns for path in self.paths]
        for number, path in enumerate(self.paths):
            meta = _parquet(path, lambda f: f.metadata)
            absent = set(self.columns) - set(meta.schema.to_arrow_schema().names)
            if absent:
                raise DataError(path, f"has no column {absent.pop()!r}", "see Parquet(columns=...)")
            groups += [(number, g, meta.row_group(g).num_rows) for g in range(meta.num_row_groups)]
        self.groups = np.array(groups, np.int64).reshape(-1, 3)
        self.ends = np.cumsum(self.groups[:, 2])
        super().__init__(title(self.paths), self.groups[:, 2].sum())

    def read(self, i: int) -> dict:
        at = int(np.searchsorted(self.ends, i, side="right"))
        number, group, rows = self.groups[at].tolist()
        path = self.paths[number]
        table = _row_group(path, self.written[number], group, self.columns)
        record = table.slice(i - int(self.ends[at]) + rows, 1).to_pylist()[0]
        return resolve(record, self.root or os.path.dirname(path), self.files)


class _Shard(NamedTuple):
    """The index of one tar file, as columns: it stays small with millions of records."""

    file: File
    keys: np.ndarray  # S[R] the records' names
    first: np.ndarray  # i64[R + 1] where each record's members begin
    kinds: list[str]  # the extensions that occur
    kind: np.ndarray  # i32[M] of each member, an index into `kinds`
    offset: np.ndarray  # i64[M]
    size: np.ndarray  # i64[M] in bytes


def _scan(path: str) -> dict:
    """The headers of a tar file as the columns of `_Shard`. Raises DataError if it is damaged."""
    records, end = {}, 0
    with open(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise DataError(path, "is compressed", "gunzip it: random access needs a plain tar")
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    end = member.offset_data + -(-member.size // 512) * 512 * member.isreg()
                    folder, _, base = member.name.rpartition("/")
                    stem, dot, kind = base.partition(".")
                    if not member.isreg() or not stem or not dot:
                        continue  # folders, links, hidden files: no part of a record
                    kind = kind.lower()
                    parts = records.setdefault(f"{folder}/{stem}" if folder else stem, {})
                    if kind in parts:
                        raise DataError(path, f"has two members named {member.name!r}")
                    parts[kind] = member.offset_data, member.size
        except (tarfile.TarError, ValueError, OSError, OverflowError, MemoryError) as error:
            raise DataError(path, f"is not a sound tar file: {error}") from error
        # tarfile takes any unreadable header for the end; a whole archive ends in a block of zeros
        file.seek(end)
        if file.read(512) != bytes(512):
            raise DataError(path, f"is cut off or damaged at byte {end}", "copy the shard again")
    members = [(kind, *span) for parts in records.values() for kind, span in parts.items()]
    kinds = sorted({kind for kind, _, _ in members})
    return {
        "keys": list(records),
        "first": np.cumsum([0, *map(len, records.values())]).tolist(),
        "kinds": kinds,
        "kind": [kinds.index(kind) for kind, _, _ in members],
        "offset": [offset for _, offset, _ in members],
        "size": [size for _, _, size in members],
    }


def _load(path: str, columns: dict) -> _Shard:
    keys = np.array([key.encode("utf-8", "surrogateescape") for key in columns["keys"]], "S")
    first, offset, size = (np.array(columns[c], np.int64) for c in ("first", "offset", "size"))
    kind = np.array(columns["kind"], np.int32)
    return _Shard(File(path), keys, first, columns["kinds"], kind, offset, size)


def _sidecar(name: str) -> dict | None:
    """The columns kept in an index file; None where there are none: the tar itself is the truth."""
    try:
        with open(name, encoding="utf-8") as file:
            columns = json.load(file)
    except (OSError, ValueError):
        return None
    return columns if isinstance(columns, dict) else None


def _index(path: str, cache: str | None) -> _Shard:
    """The index of a shard: its sidecar if that was made of this very file, else by scanning."""
    stat, name = os.stat(path), f"{path}.index.json"
    if cache:
        digest = hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:16]
        name = os.path.join(cache, f"{os.path.basename(path)}.{digest}.index.json")
    stamp = [1, stat.st_size, stat.st_mtime_ns]  # the format, and what the index was made of
    columns = _sidecar(name)
    if columns and columns.get("stamp") == stamp:
        return _load(path, columns)
    columns, part = {"stamp": stamp, **_scan(path)}, f"{name}.{os.getpid()}.part"
    try:
        with open(part, "w", encoding="utf-8") as file:
            json.dump(columns, file)
        os.replace(part, name)  # in one step: other processes see a whole index or none
    except OSError:  # a read-only folder or a full disk: the next run scans again
        with contextlib.suppress(OSError):
            os.remove(part)
    return _load(path, columns)


class TarShards(Source):
    """WebDataset shards: members that share a name up to its first dot are one record.

    A record is `{"__key__": name, extension: bytes, ...}`. The headers are scanned once; the index
    is kept in `SHARD.index.json` beside each shard, or in the folder `cache`, and made anew when
    the shard's size or time of writing changes. Nothing is extracted. Raises DataError for a
    truncated or damaged shard.
    """

    def __init__(self, paths, cache: str | None = None):
        self.shards = [_index(path, cache) for path in find(paths)]
        self.ends = np.cumsum([len(shard.keys) for shard in self.shards])
        super().__init__(title([shard.file.path for shard in self.shards]), self.ends[-1])

    def read(self, i: int) -> dict:
        at = int(np.searchsorted(self.ends, i, side="right"))
        shard, i = self.shards[at], i - int(self.ends[at]) + len(self.shards[at].keys)
        record = {"__key__": shard.keys[i].decode("utf-8", "surrogateescape")}
        for m in range(shard.first[i], shard.first[i + 1]):
            record[shard.kinds[shard.kind[m]]] = shard.file.read(
                int(shard.offset[m]), int(shard.size[m])
            )
        return record


class ArrayRecords(Source):
    """ArrayRecord files; `decode` makes a record (a dict) of the bytes of one.

    `decode` is a function of a module (it must pickle). Raises DataError for a missing or damaged
    file and for bytes that `decode` refuses.
    """

    def __init__(self, paths, decode: Callable[[bytes], dict]):
        from array_record.python import array_record_data_source

        paths, self.decode = find(paths), decode
        try:
            self.data = array_record_data_source.ArrayRecordDataSource(paths)
        except (RuntimeError, ValueError, OSError) as error:
            reason = f"is not a sound ArrayRecord file: {error}"
            raise DataError(title(paths), reason, "write it again") from error
        super().__init__(title(paths), len(self.data))

    def read(self, i: int) -> dict:
        try:
            record = self.decode(self.data[i])
        except DataError:
            raise
        except Exception as error:  # whatever `decode` raises, the user must learn of which record
            reason = f"cannot be decoded: {type(error).__name__}: {error}"
            raise DataError(f"{self.name}[{i}]", reason) from error
        if not isinstance(record, dict):
            raise DataError(f"{self.name}[{i}]", f"decodes to {type(record).__name__}, not a dict")
        return record


class Tfds(Source):
    """A split of a TensorFlow dataset prepared as ArrayRecord or Parquet; TensorFlow is not needed.

    Images stay encoded bytes (`vision.DecodeImage` reads them), texts are str. Raises DataError if
    the dataset or split does not exist or has not been prepared in a format of random access.
    """

    def __init__(self, name: str, split: str = "train", data_dir: str | None = None):
        self.dataset, self.split, self.data_dir = name, split, data_dir
        self._data, self._texts = self._open()
        super().__init__(f"{name}[{split}]", len(self._data))

    def _open(self):
        import tensorflow_datasets as tfds

        remedy = (
            f"tfds.builder({self.dataset!r}, file_format='array_record').download_and_prepare()"
        )
        try:
            builder = tfds.builder(self.dataset, data_dir=self.data_dir)
            features = builder.info.features
            images = [key for key, f in features.items() if isinstance(f, tfds.features.Image)]
            texts = [key for key, f in features.items() if isinstance(f, tfds.features.Text)]
            raw = {key: tfds.decode.SkipDecoding() for key in images}
            return builder.as_data_source(self.split, decoders=raw), texts
        except (ValueError, RuntimeError, AttributeError, OSError) as error:
            reason = f"cannot be opened: {(str(error).splitlines() or ['unknown'])[0]}"
            raise DataError(f"{self.dataset}[{self.split}]", reason, remedy) from error

    def read(self, i: int) -> dict:
        if self._data is None:
            self._data, self._texts = self._open()
        record = dict(self._data[i])
        return record | {key: record[key].decode("utf-8", "replace") for key in self._texts}

    def __getstate__(self):  # the builder is large: each process opens its own
        return self.__dict__ | {"_data": None}
