"""Sources: where records come from. Anything with `len(source)` and `source[i] -> dict` is one.

| the data                             | the source                                       |
|--------------------------------------|--------------------------------------------------|
| a list in memory                     | `Memory(records)`                                |
| a manifest, one JSON object a line   | `JsonLines(path, root, files)`                   |
| a table                              | `Csv(path, root, files)`, `Parquet(paths, ...)`  |
| WebDataset shards                    | `TarShards(paths)`                               |
| ArrayRecord files                    | `ArrayRecords(paths, decode)`                    |
| a prepared TensorFlow dataset        | `Tfds(name, split, data_dir)`                    |
| a part, or several one after another | `Select`, `where`, `Concat`                      |

Manifests name media files: the fields listed in `files` become paths, relative ones against `root`
(by default the manifest's folder). Shards carry media as bytes. Sources are read at random and from
many threads, pickle small, and open their files again in each process. One without samples is a
DataError.
"""

import array
import csv
import json
import os
from collections.abc import Sequence

import numpy as np

from bind.data.records import File, Source, find, names, resolve
from bind.data.shards import ArrayRecords, Parquet, TarShards, Tfds
from bind.errors import DataError

__all__ = ["ArrayRecords", "Concat", "Csv", "JsonLines", "Memory", "Parquet", "Select", "TarShards"]
__all__ += ["Tfds", "where"]


class Memory(Source):
    """Records in memory. Each read gives a shallow copy."""

    def __init__(self, records: Sequence[dict], name: str = "records in memory"):
        self.records = list(records)
        super().__init__(name, len(self.records))

    def read(self, i: int) -> dict:
        return dict(self.records[i])


class JsonLines(Source):
    """One JSON object on each line (blank lines are skipped); a line is parsed when it is read.

    Raises DataError naming `file:line` for a line that is not a JSON object in UTF-8.
    """

    def __init__(self, path: str | os.PathLike, root: str | None = None, files=()):
        (path,) = find(path)
        self.root, self.files = root or os.path.dirname(path), names(files)
        rows, offset = array.array("q"), 0  # compact: manifests have millions of lines
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    rows.extend((number, offset, len(line)))
                offset += len(line)
        self.rows, self.file = np.array(rows, np.int64).reshape(-1, 3), File(path)
        super().__init__(path, len(self.rows))

    def read(self, i: int) -> dict:
        number, offset, size = self.rows[i].tolist()
        line, where = self.file.read(offset, size), f"{self.name}:{number}"
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise DataError(where, f"is not JSON: {error}", "one object on each line") from error
        if not isinstance(record, dict):
            raise DataError(where, f"is a JSON {type(record).__name__}, not an object")
        return resolve(record, self.root, self.files)


class Csv(Memory):
    """A table with a header row; values are strings, empty ones are left out. It is kept in memory.

    Raises DataError naming `file:line` for a row that does not fit the header.
    """

    def __init__(self, path: str | os.PathLike, root: str | None = None, files=(), delimiter=","):
        (path,) = find(path)
        root, records, rows = root or os.path.dirname(path), [], None
        try:
            with open(path, newline="", encoding="utf-8-sig") as text:
                rows = csv.reader(text, delimiter=delimiter, strict=True)
                header = next(rows, [])
                if len(set(header)) != len(header) or "" in header:
                    raise DataError(f"{path}:1", f"is not a header of unlike names: {header}")
                for row in rows:
                    if row and len(row) != len(header):
                        reason = f"has {len(row)} values, the header {len(header)}"
                        raise DataError(f"{path}:{rows.line_num}", reason)
                    pairs = {k: v for k, v in zip(header, row, strict=False) if v != ""}
                    records += [resolve(pairs, root, names(files))] if row else []
        except (csv.Error, UnicodeDecodeError) as error:
            line = rows.line_num if rows else 1
            raise DataError(f"{path}:{line}", f"cannot be read: {error}") from error
        super().__init__(records, path)


class Select(Source):
    """The samples of a source at `indices`. Raises DataError for one it does not have."""

    def __init__(self, source, indices: Sequence[int], name: str = ""):
        self.source, self.indices = source, np.array(indices, np.int64).reshape(-1)
        super().__init__(name or f"a selection from {source!r}", len(self.indices))
        bad = self.indices[(self.indices < 0) | (self.indices >= len(source))]
        if len(bad):
            raise DataError(self.name, f"has no sample {bad[0]}: there are {len(source)}")

    def read(self, i: int) -> dict:
        return self.source[int(self.indices[i])]


def where(source, field: str, *values) -> Select:
    """The samples whose `field` is one of `values`, e.g. `where(source, "split", "train")`.

    Reads every record once: meant for manifests, not for shards of media. Raises DataError if none
    fits.
    """
    name = f"{source!r} where {field} is {' or '.join(map(repr, values))}"
    return Select(
        source, [i for i, record in enumerate(source) if record.get(field) in values], name
    )


class Concat(Source):
    """Several sources one after another."""

    def __init__(self, *sources):
        self.sources, self.ends = sources, np.cumsum([len(source) for source in sources])
        super().__init__(" + ".join(map(repr, sources)), self.ends[-1] if sources else 0)

    def read(self, i: int) -> dict:
        at = int(np.searchsorted(self.ends, i, side="right"))
        return self.sources[at][i - int(self.ends[at]) + len(self.sources[at])]
