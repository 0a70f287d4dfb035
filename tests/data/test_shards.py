"""Shards: tar files grouped, indexed and checked; TFDS without TensorFlow."""

import gzip
import io
import os
import pickle
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from bind.data import sources
from bind.errors import DataError


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


MEMBERS = [("b/x.png", b"P" * 700), ("b/x.txt", b"t"), ("b/x.Seg.PNG", b""), ("b/.hidden", b"h")]


def test_tar_groups_and_sidecar(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "s.tar", [*MEMBERS, ("y.txt", b"y"), ("README", b"r")])
    expected = [
        {"__key__": "b/x", "png": b"P" * 700, "txt": b"t", "seg.png": b""},
        {"__key__": "y", "txt": b"y"},
    ]
    assert list(sources.TarShards(path)) == expected
    index = tmp_path / "s.tar.index.json"
    assert index.exists()
    with monkeypatch.context() as patch:  # the second time the tar is not scanned
        patch.setattr(tarfile, "open", None)
        assert list(sources.TarShards(path)) == expected
    index.write_text(index.read_text()[:50])  # a damaged index is made again
    assert list(sources.TarShards(path)) == expected
    write_tar(path, [("z.txt", b"z")])  # and so is one of another file
    assert list(sources.TarShards(path)) == [{"__key__": "z", "txt": b"z"}]
    (tmp_path / "cache").mkdir()
    index.unlink()
    assert len(sources.TarShards(path, cache=str(tmp_path / "cache"))) == 1
    assert not index.exists() and len(os.listdir(tmp_path / "cache")) == 1
    assert len(sources.TarShards(path, cache=str(tmp_path / "nowhere"))) == 1  # cannot be written


def test_damaged_tars(tmp_path):
    whole = open(write_tar(tmp_path / "s.tar", MEMBERS), "rb").read()  # noqa: SIM115
    rng = np.random.default_rng(0)
    end = len(whole.rstrip(b"\0"))
    refused = 0
    for trial in range(200):
        bad = bytearray(whole[: rng.integers(end)] if trial % 2 else whole)
        if not trial % 2:
            bad[rng.integers(end)] ^= 1 << rng.integers(8)
        path = tmp_path / f"{trial}.tar"
        path.write_bytes(bad)
        try:
            for record in sources.TarShards(path):
                assert record["__key__"]
        except DataError as error:
            assert str(path) in str(error)
            refused += 1
            continue
        assert not trial % 2, f"cut to {len(bad)} bytes and not noticed"
    assert refused > 100
    (tmp_path / "z.tar").write_bytes(gzip.compress(whole))
    with pytest.raises(DataError, match="is compressed"):
        sources.TarShards(tmp_path / "z.tar")
    twice = write_tar(tmp_path / "t.tar", [("a.txt", b"1"), ("a.txt", b"2")])
    with pytest.raises(DataError, match=r"two members named 'a\.txt'"):
        sources.TarShards(twice)


def test_tfds_without_tensorflow(tmp_path):
    import tensorflow_datasets as tfds

    class BindTiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = None

        def _info(self):
            image, text = tfds.features.Image(shape=(None, None, 3)), tfds.features.Text()
            features = tfds.features.FeaturesDict({"image": image, "text": text, "n": np.int64})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(3):
                yield i, {"image": io.BytesIO(png(i)), "text": f"ü{i}", "n": i}

    def png(i):
        file = io.BytesIO()
        Image.new("RGB", (5, 4), (i, 0, 0)).save(file, "PNG")
        return file.getvalue()

    builder = BindTiny(data_dir=str(tmp_path), file_format="array_record")
    with pytest.raises(DataError, match="download_and_prepare"):
        sources.Tfds("bind_tiny", "train", str(tmp_path))
    builder.download_and_prepare()
    source = sources.Tfds("bind_tiny", "train", str(tmp_path))
    for read in (source, pickle.loads(pickle.dumps(source))):
        rows = sorted(read, key=lambda r: r["n"])
        expected = [{"image": png(i), "text": f"ü{i}", "n": i} for i in range(3)]
        assert rows == expected
    with pytest.raises(DataError, match="Unknown split 'test'"):
        sources.Tfds("bind_tiny", "test", str(tmp_path))
    with pytest.raises(DataError, match=r"no_such_set\[train\]: cannot be opened"):
        sources.Tfds("no_such_set", "train", str(tmp_path))
    assert "tensorflow" not in sys.modules
