"""Records, and what every reader and transform needs: fields by name, media by path or bytes.

A record is a dict of Python scalars, strings, lists, bytes and numpy arrays. A *transform* is a
frozen dataclass of plain parameters that maps one record to a new one and never changes the one it
was given; a pipeline is a list of them. A random transform draws from the generator it is handed
and from nothing else.
"""

import glob
import io
import operator
import os
from collections.abc import Iterable

from grain import transforms

from bind.errors import DataError

MAX_PIXELS = 64_000_000  # of one picture; as u8[H, W, 3] that is 183 MiB


def where(record: dict, key: str) -> str:
    """What to call a field of a record in an error."""
    return f"field {key!r}" + (f" of record {record['__key__']!r}" if "__key__" in record else "")


def field(record: dict, key: str):
    """`record[key]`. Raises DataError where the field is missing or None."""
    if record.get(key) is None:
        known = ", ".join(sorted(k for k, v in record.items() if v is not None)) or "nothing"
        raise DataError(where(record, key), "is missing", f"the record has: {known}")
    return record[key]


def names(keys: str | Iterable[str]) -> tuple[str, ...]:
    """`keys` as a tuple, for transforms that take one field or several."""
    return (keys,) if isinstance(keys, str) else tuple(keys)


def media(record: dict, key: str) -> tuple[str, str | io.BytesIO]:
    """The name of a media file, and the path or the stream to open it by.

    Raises DataError where it is neither a path nor bytes, does not exist, is not a file, or is
    empty.
    """
    value, name = field(record, key), where(record, key)
    if isinstance(value, bytes | bytearray | memoryview):
        if not len(value):
            raise DataError(name, "is empty (0 bytes)")
        return name, io.BytesIO(value)
    if not isinstance(value, str | os.PathLike):
        raise DataError(name, f"holds {type(value).__name__}, not a path or the bytes of a file")
    name = os.fspath(value)
    # only regular files: opening a pipe or a device would wait for ever
    if "\0" in name or not os.path.isfile(name):
        raise DataError(
            name, "no such file", "check the manifest and the folder it is read against"
        )
    if not os.path.getsize(name):
        raise DataError(name, "is empty (0 bytes)")
    return name, name


class File:
    """A file read at offsets by any number of threads: pread keeps no position to race for.

    Opened on first use and never pickled, so that copies for other processes open their own.
    """

    def __init__(self, path: str):
        self.path, self._handle = path, None

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`. Raises DataError if the file is gone or became shorter."""
        try:
            handle = self._handle
            if handle is None:
                handle = self._handle = open(self.path, "rb", buffering=0)  # noqa: SIM115
            data = os.pread(handle.fileno(), size, offset)
            while data and len(data) < size:  # one pread gives at most 2 GiB
                more = os.pread(handle.fileno(), size - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise DataError(self.path, f"cannot be read: {error.strerror}") from error
        if len(data) != size:
            reason = f"ends after {offset + len(data)} bytes, but its index expects {offset + size}"
            raise DataError(self.path, reason, "it has changed since it was opened; start again")
        return data

    def __getstate__(self):
        return {"path": self.path, "_handle": None}

    def __del__(self):
        if self.__dict__.get("_handle"):
            self._handle.close()


class Source:
    """What the sources share: indices are checked, a source has samples, and names itself."""

    def __init__(self, name: object, length: int):
        self.name, self.length = str(name), int(length)
        if not self.length:
            raise DataError(self.name, "has no samples")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        i = operator.index(index)
        if not -self.length <= i < self.length:
            raise IndexError(f"{self.name} has {self.length} samples; there is no sample {i}")
        return self.read(i % self.length)

    def read(self, i: int) -> dict:
        """The record at 0 <= i < len(self)."""
        raise NotImplementedError

    def __repr__(self):  # grain compares it on resuming: no addresses in it
        return f"{type(self).__name__}({self.name!r}, {self.length} samples)"


def find(paths: str | os.PathLike | Iterable) -> list[str]:
    """Paths and glob patterns as existing files. Raises DataError where one matches nothing."""
    found = []
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        path = os.fspath(path)
        matches = (
            [path] if os.path.isfile(path) else sorted(filter(os.path.isfile, glob.glob(path)))
        )
        if not matches:
            raise DataError(path, "no such file", "give the path of a file or a glob pattern")
        found += matches
    return found


def resolve(record: dict, root: str, files: Iterable[str]) -> dict:
    """`record` with the media named in `files` as paths, or as bytes where they lie in the record.

    Hugging Face writes media into Parquet as {"bytes": ..., "path": ...}.
    """
    for key in files:
        value = record.get(key)
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        record[key] = os.path.join(root, value) if isinstance(value, str) and value else value
    return {key: value for key, value in record.items() if value is not None}


def title(paths: list[str]) -> str:
    """What to call several files in an error."""
    return paths[0] + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


class Keep(transforms.Map):
    """Drops all fields but these. Raises DataError where one is missing."""

    def __init__(self, *keys: str):
        self.keys = keys

    def __repr__(self):
        return f"Keep{self.keys!r}"

    def map(self, record: dict) -> dict:
        return {key: field(record, key) for key in self.keys}


class Rename(transforms.Map):
    """`Rename(a="b")`: what was `a` is called `b`. Raises DataError where one is missing."""

    def __init__(self, **new: str):
        self.new = new

    def __repr__(self):
        return f"Rename({', '.join(f'{a}={b!r}' for a, b in self.new.items())})"

    def map(self, record: dict) -> dict:
        moved = {b: field(record, a) for a, b in self.new.items()}
        return {k: v for k, v in record.items() if k not in self.new} | moved


class Transform(transforms.Map):
    """A transform of one field: subclasses have `key`, `to` (None: the same) and `apply`."""

    key: str
    to: str | None

    def apply(self, record: dict):
        """The new value."""
        raise NotImplementedError

    def map(self, record: dict) -> dict:
        return {**record, self.to or self.key: self.apply(record)}
