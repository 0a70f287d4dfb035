"""The shipped samples: complete, credited, small, true to their manifests, read through TFDS."""

import io
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import sentencepiece
import soundfile
from PIL import Image

from bind.data.samples import FOLDER
from bind.errors import DataError

LICENCES = {
    "Public-Domain",
    "CC0-1.0",
    "CC-BY-2.0",
    "CC-BY-4.0",
    "Free-Art-1.2",
    "BSD-3-Clause",
}
COUNTS = {"photos": 77, "depth": 24, "sounds": 9, "imu": 80}


def manifest(name):
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]


def files():
    found = (p for p in FOLDER.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {path.relative_to(FOLDER).as_posix(): path for path in found}


def test_the_folder_is_small():
    assert sum(path.stat().st_size for path in files().values()) < 8e6


def test_every_file_is_credited_and_used():
    credits = (FOLDER / "CREDITS.md").read_text()
    assert not [name for name in files() if name not in credits]
    used = {
        line[field]
        for name in COUNTS
        for line in manifest(name)
        for field in ("image", "depth", "audio", "imu")
        if field in line
    }
    media = {name for name in files() if "/" in name and not name.endswith(".txt")}
    assert media == used


@pytest.mark.parametrize("name", COUNTS)
def test_manifest_lines(name):
    lines = manifest(name)
    assert len(lines) == COUNTS[name]
    for line in lines:
        assert line["licence"] in LICENCES and line["author"] and line["source"]
        assert 2 <= len(line["text"]) == len(set(line["text"])) <= 4
        assert all(text == text.lower() for text in [line["label"], *line["text"]])


def test_attribution_only_where_allowed():
    owed = {line["image"] for line in manifest("photos") if line["licence"] == "CC-BY-2.0"}
    assert owed == {"photos/didgeridoo.webp"}
    assert {line["licence"] for line in manifest("depth")} == {"CC-BY-4.0"}
    free_art = [line for line in manifest("sounds") if line["licence"] == "Free-Art-1.2"]
    assert [line["label"] for line in free_art] == ["dog", "dog"]
    assert "Free Art License" in (FOLDER / "sounds/LICENSE-FAL.txt").read_text(encoding="utf-8")
    assert "\x1b" not in (FOLDER / "sounds/LICENSE-FAL.txt").read_text(encoding="utf-8")


def test_photos_open():
    labels = [line["label"] for line in manifest("photos")]
    assert len(set(labels)) == len(labels)
    for line in manifest("photos"):
        image = np.asarray(Image.open(FOLDER / line["image"]))
        assert image.dtype == np.uint8 and image.shape[2] == 3 and min(image.shape[:2]) == 240
        assert image.std() > 10


def test_sounds_open_and_have_a_photo():
    photos = {line["label"] for line in manifest("photos")}
    for line in manifest("sounds"):
        wave, rate = soundfile.read(FOLDER / line["audio"])
        assert rate == line["rate_hz"] == 16000 and wave.ndim == 1
        assert 1.5 < len(wave) / rate <= 17
        assert np.abs(wave[: rate // 2]).max() > 0.01  # no silent start
        assert line["label"] in photos


def depth_m(line):
    """Metres f64[h, w] of a manifest line, NaN where unknown."""
    values = np.asarray(Image.open(FOLDER / line["depth"]))
    assert values.dtype == np.uint16
    scale = line["focal_length_px"] * line["baseline_m"] * line["disparity_scale"]
    return np.where(values > 0, scale / np.maximum(values, 1), np.nan)


def test_depth_is_plausible():
    assert len({line["label"] for line in manifest("depth")}) == 12
    for line in manifest("depth"):
        image = Image.open(FOLDER / line["image"])
        depth = depth_m(line)
        assert image.mode == "L" and image.size == depth.shape[::-1] == (304, 230)
        assert np.isfinite(depth).mean() > 0.3
        assert 0.2 < np.nanmedian(depth) < 15
        assert np.nanmin(depth) > 0.2 and np.nanmax(depth) < 15


def test_near_things_are_near():
    scenes = {line["image"].split("/")[1][:-4]: depth_m(line) for line in manifest("depth")}
    hands, room = scenes["pov_hands_left"], scenes["pov_hands_left"][40:100, 100:200]
    assert np.nanmedian(hands[150:210, 75:110]) < 0.7 < 1.5 < np.nanmedian(room)
    toy = scenes["toy_left"]
    assert np.nanmedian(toy[190:]) < 1 < 1.8 < np.nanmedian(toy[:60])


def test_imu_has_the_official_split():
    lines = manifest("imu")
    with np.load(FOLDER / "imu/basic_motions.npz", allow_pickle=False) as arrays:
        assert arrays["imu"].shape == (80, 100, 6) and arrays["imu"].dtype == np.float32
        assert np.isfinite(arrays["imu"]).all() and arrays["rate_hz"] == 10
        assert arrays["label"].tolist() == [line["label"] for line in lines]
        assert arrays["split"].tolist() == [line["split"] for line in lines]
    assert [line["index"] for line in lines] == list(range(80))
    counts = Counter((line["split"], line["label"]) for line in lines)
    labels = ("walking", "running", "standing", "badminton")
    assert counts == {(split, label): 10 for split in ("train", "test") for label in labels}


def test_tokenizer_covers_the_captions():
    model = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / "captions.model"))
    assert (model.pad_id(), model.unk_id(), model.bos_id(), model.eos_id()) == (0, 1, 2, 3)
    assert model.vocab_size() == 400
    for name in COUNTS:
        for text in (text for line in manifest(name) for text in line["text"]):
            ids = model.encode(text)
            assert model.unk_id() not in ids and model.decode(ids) == text
    assert model.encode("A Photo of a DOG") == model.encode("a photo of a dog")
    assert model.decode(model.encode("ünder 7 犬")) == "ünder 7 犬"  # byte fallback


@pytest.mark.parametrize("name", COUNTS)
def test_tfds_gives_back_the_files(name, tmp_path):
    from bind.data.tfds_samples import samples

    source = samples(name, "all", tmp_path)
    assert len(source) == COUNTS[name]
    for line, record in zip(manifest(name), source, strict=True):
        assert record["label"].decode() == line["label"]
        assert [text.decode() for text in record["text"]] == line["text"]
        if "image" in line:
            pixels = np.asarray(Image.open(FOLDER / line["image"]))
            np.testing.assert_array_equal(record["image"].reshape(pixels.shape), pixels)
        for field in {"depth", "audio"} & set(line):
            assert record[field] == (FOLDER / line[field]).read_bytes()
        for field in {"focal_length_px", "baseline_m", "disparity_scale", "rate_hz"} & set(line):
            assert record[field] == pytest.approx(line[field], rel=1e-6)  # stored as f32
    if name == "depth":
        stored = np.asarray(Image.open(io.BytesIO(source[5]["depth"])))
        assert stored.dtype == np.uint16 and stored.max() > 255


def test_tfds_imu_splits(tmp_path):
    from bind.data.tfds_samples import samples

    arrays = np.load(FOLDER / "imu/basic_motions.npz")
    for split, rows in (("train", slice(0, 40)), ("test", slice(40, 80))):
        records = [record["imu"] for record in samples("imu", split, tmp_path)]
        np.testing.assert_array_equal(np.stack(records), arrays["imu"][rows])
    with pytest.raises(DataError, match="no such split"):
        samples("imu", "validation", tmp_path)
    with pytest.raises(DataError, match="no such samples"):
        samples("smells", "all", tmp_path)


def test_tfds_needs_no_tensorflow(tmp_path):
    code = (
        "import sys; from bind.data.tfds_samples import samples\n"
        f"assert len(samples('depth', 'all', {str(tmp_path)!r})[0]['depth']) > 1000\n"
        "assert not {'tensorflow', 'torch', 'jax'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
