"""Sources: the same records by every road, faults named, copies for other processes."""

import io
import json
import multiprocessing
import os
import pickle
import sys
import tarfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

from bind.data import records, sources
from bind.errors import DataError

ROWS = [{"image": f"{i}.png", "text": f'a, "b"\nnumber {i} ü', "n": i} for i in range(7)]


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def decode(data: bytes) -> dict:
    return json.loads(data)


@pytest.fixture
def made(tmp_path):
    """The seven rows by every road: {name: source}."""
    import pyarrow
    from array_record.python import array_record_module
    from pyarrow import parquet

    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)  # blank lines between
    (tmp_path / "m.jsonl").write_text(lines, encoding="utf-8")
    quoted = [
        f'{r["image"]},"{r["text"].replace(chr(34), chr(34) * 2)}",{r["n"]}\r\n' for r in ROWS
    ]
    (tmp_path / "m.csv").write_text("\ufeffimage,text,n\r\n" + "".join(quoted), newline="")
    for part, rows in ((0, ROWS[:5]), (1, ROWS[5:])):
        table = pyarrow.Table.from_pylist(rows)
        parquet.write_table(table, tmp_path / f"m{part}.parquet", row_group_size=2)
        members = [(f"d/{r['n']}.a.json", json.dumps(r).encode()) for r in rows]
        write_tar(tmp_path / f"m{part}.tar", members)
    writer = array_record_module.ArrayRecordWriter(str(tmp_path / "m.ar"), "group_size:1")
    for row in ROWS:
        writer.write(json.dumps(row).encode())
    writer.close()
    media = {"files": "image", "root": "r"}
    return {
        "memory": sources.Memory(ROWS),
        "jsonl": sources.JsonLines(tmp_path / "m.jsonl", **media),
        "csv": sources.Csv(tmp_path / "m.csv", **media),
        "parquet": sources.Parquet(tmp_path / "m?.parquet", **media),
        "tar": sources.TarShards(str(tmp_path / "*.tar")),
        "array_record": sources.ArrayRecords(tmp_path / "m.ar", decode),
    }


def plain(name, record):
    """A record as it was before `name` wrote and read it."""
    if name == "tar":
        assert set(record) == {"__key__", "a.json"}
        row = json.loads(record["a.json"])
        assert record["__key__"] == f"d/{row['n']}"
        return row
    if name in ("jsonl", "csv", "parquet"):
        assert record["image"].startswith("r" + os.sep)
        record = record | {"image": record["image"][2:], "n": int(record["n"])}
    return record


def test_every_road_gives_the_same_records(made):
    for name, source in made.items():
        assert [plain(name, r) for r in source] == ROWS, name
        assert plain(name, source[-1]) == ROWS[-1]
        assert plain(name, source[np.int64(3)]) == ROWS[3]
        with pytest.raises(IndexError):
            source[7]
        assert "0x" not in repr(source)  # grain compares the repr when it resumes


def test_copies_and_threads(made):
    for name, source in made.items():
        with ThreadPoolExecutor(
            8
        ) as pool:  # before and after copying: no shared position to race for
            rows = list(pool.map(source.__getitem__, [i % 7 for i in range(200)]))
        assert [plain(name, r) for r in rows] == [ROWS[i % 7] for i in range(200)], name
        copy = pickle.loads(pickle.dumps(source))
        assert [plain(name, r) for r in copy] == ROWS, name
        assert repr(copy) == repr(source)


def third(named):
    return {name: source[3] for name, source in named.items()}


def test_worker_process_reads_the_same(made):
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        there = pool.submit(third, made).result(timeout=100)
        assert {name: plain(name, r) for name, r in there.items()} == dict.fromkeys(made, ROWS[3])
        fault = pool.submit(sources.JsonLines, "gone.jsonl").exception(timeout=100)
    assert isinstance(fault, DataError) and "gone.jsonl: no such file" in str(fault)


def test_paths_resolve_against_the_manifest(tmp_path):
    absolute = str(tmp_path / "x" / "2.png")
    rows = [{"image": "a/1.png", "text": "a/1.png"}, {"image": absolute}, {"text": "no image"}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = sources.JsonLines(tmp_path / "m.jsonl", files=("image",))
    assert source[0] == {"image": str(tmp_path / "a/1.png"), "text": "a/1.png"}
    assert source[1]["image"] == absolute and "image" not in source[2]


def test_parquet_media_in_the_record(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [{"image": {"bytes": b"xyz", "path": None}}, {"image": {"bytes": None, "path": "p.png"}}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "m.parquet")
    source = sources.Parquet(tmp_path / "m.parquet", files="image")
    assert [r["image"] for r in source] == [b"xyz", str(tmp_path / "p.png")]


@pytest.mark.parametrize("line", [b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"a": 1}{'])
def test_malformed_json_line(tmp_path, line):
    (tmp_path / "m.jsonl").write_bytes(b'\n{"a": 1}\n' + line + b"\n")
    source = sources.JsonLines(tmp_path / "m.jsonl")
    assert source[0] == {"a": 1}
    with pytest.raises(DataError, match=r"m\.jsonl:3: "):
        source[1]


def test_file_that_shrinks(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    source = sources.JsonLines(path)
    path.write_text('{"a": 1}\n')
    assert source[0] == {"a": 1}
    with pytest.raises(DataError, match="ends after 9 bytes"):
        source[1]


CSV_FAULTS = {
    "a,b\n1,2\n1\n": ":3: has 1 values, the header 2",
    "a,a\n1,2\n": ":1: is not a header",
    'a,b\n1,2\n1,"x\n': ":3: cannot be read",
    "a,b\n": "has no samples",
}


@pytest.mark.parametrize("text", CSV_FAULTS)
def test_csv_faults(tmp_path, text):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(DataError, match=rf"m\.csv:? ?{CSV_FAULTS[text]}"):
        sources.Csv(tmp_path / "m.csv")


def test_empty_sources(tmp_path):
    (tmp_path / "m.jsonl").write_text("\n \n")
    (tmp_path / "folder").mkdir()
    write_tar(tmp_path / "m.tar", [])
    memory = sources.Memory(ROWS)
    for make in (
        lambda: sources.Memory([]),
        lambda: sources.JsonLines(tmp_path / "m.jsonl"),
        lambda: sources.TarShards(tmp_path / "m.tar"),
        lambda: sources.where(memory, "n", 99),
        lambda: sources.Concat(),
    ):
        with pytest.raises(DataError, match="has no samples"):
            make()
    for make in (sources.JsonLines, sources.Csv, sources.Parquet, sources.TarShards):
        with pytest.raises(DataError, match="no such file"):
            make(tmp_path / "none*")
        with pytest.raises(DataError, match="no such file"):
            make(tmp_path / "folder")


def test_select_where_concat():
    memory = sources.Memory(ROWS)
    assert [r["n"] for r in sources.Select(memory, [5, 0, 5])] == [5, 0, 5]
    assert [r["n"] for r in sources.where(memory, "n", 6, 2)] == [2, 6]
    with pytest.raises(DataError, match="has no sample 7: there are 7"):
        sources.Select(memory, [0, 7])
    both = sources.Concat(sources.where(memory, "n", 4), memory, sources.Select(memory, [1]))
    assert [r["n"] for r in both] == [4, 0, 1, 2, 3, 4, 5, 6, 1] and both[-1]["n"] == 1
    assert [r["n"] for r in pickle.loads(pickle.dumps(both))] == [r["n"] for r in both]
    memory[0]["n"] = 99  # a record read is the reader's own
    assert memory[0]["n"] == 0


def test_damaged_bulk_files(tmp_path, made):
    for name in ("m0.parquet", "m.ar"):
        data = (tmp_path / name).read_bytes()
        for cut in (0, 10, len(data) // 2, len(data) - 3):
            (tmp_path / "bad").write_bytes(data[:cut])
            with pytest.raises(DataError, match="bad: "):
                if name == "m.ar":
                    list(sources.ArrayRecords(tmp_path / "bad", decode))
                else:
                    list(sources.Parquet(tmp_path / "bad"))
    with pytest.raises(DataError, match=r"m\.ar\[0\]: cannot be decoded: KeyError"):
        sources.ArrayRecords(tmp_path / "m.ar", {}.__getitem__)[0]
    with pytest.raises(DataError, match=r"decodes to bytes, not a dict"):
        sources.ArrayRecords(tmp_path / "m.ar", bytes)[0]
    with pytest.raises(DataError, match="nothing"):
        list(sources.Parquet(tmp_path / "m0.parquet", columns="nothing"))


def test_parquet_without_pyarrow(made, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install bind-jax\[parquet\]"):
        sources.Parquet(tmp_path / "m0.parquet")


def test_keep_and_rename():
    row = {"a": 1, "b": 2, "c": None}
    assert records.Keep("b", "a").map(row) == {"a": 1, "b": 2}
    assert records.Rename(a="b", b="a").map(row) == {"a": 2, "b": 1, "c": None}
    assert row == {"a": 1, "b": 2, "c": None}
    for transform in (records.Keep("c"), records.Rename(d="e")):
        with pytest.raises(DataError, match="is missing"):
            transform.map(row)
        assert repr(pickle.loads(pickle.dumps(transform))) == repr(transform)
