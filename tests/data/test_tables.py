"""From a config to batches: sample data, held-out parts, and what a wrong word in it says."""

import json

import numpy as np
import pytest
from PIL import Image

from bind.data import inputs, tables
from bind.data.pipeline import Batches
from bind.errors import ConfigError, DataError
from bind.zoo import ZOO

INPUTS = ZOO["imagebind_demo"].inputs
PAIR = {
    "modalities": ("vision", "depth"),
    "source": {"kind": "samples", "name": "depth"},
    "fields": {"vision": "image", "depth": "depth", "text": "text"},
    "train": {"where": {"camera": "left"}, "crop": (0.5, 1.0)},
    "test": {"where": {"camera": "right"}},
}


def first_batch(stream, size=4):
    batches = Batches([stream], batch_size=size)
    try:
        return next(batches)
    finally:
        batches.close()


def test_a_training_stream_has_the_pair_and_its_part_only():
    stream = tables.make_stream(INPUTS, "depth", PAIR)
    assert len(stream.source) == 12
    batch = first_batch(stream)
    assert {n: (x.shape, str(x.dtype)) for n, x in batch.items()} == {
        "vision": ((4, 48, 48, 3), "float32"),
        "depth": ((4, 48, 48, 1), "float32"),
        "_damaged": ((4,), "uint32"),
    }


def test_a_held_out_stream_has_every_modality_and_the_label():
    stream = tables.make_stream(INPUTS, "depth", PAIR, "test")
    batch = first_batch(stream)
    assert set(batch) == {"vision", "depth", "text", "label", "_damaged"}
    assert batch["text"].shape == (4, 40) and (batch["text"][:, 0] == 2).all()
    cameras = {stream.source[i]["camera"] for i in range(12)}
    assert cameras == {"right"}


def test_caching_changes_no_batch():
    plain, cached = (
        first_batch(tables.make_stream(INPUTS, "depth", {**PAIR, "cache": c}))
        for c in (False, True)
    )
    for name in plain:
        np.testing.assert_array_equal(plain[name], cached[name])


def test_a_picture_and_its_depth_get_the_same_crop_and_flip(tmp_path):
    ramp = np.tile(np.arange(200, dtype=np.uint8), (120, 1))
    Image.fromarray(ramp).save(tmp_path / "x.png")
    Image.fromarray(ramp.astype(np.uint16) * 64).save(tmp_path / "d.png")
    (tmp_path / "m.jsonl").write_text(json.dumps({"image": "x.png", "depth": "d.png"}) + "\n")
    pair = {
        "modalities": ("vision", "depth"),
        "source": {"kind": "jsonl", "path": str(tmp_path / "m.jsonl"), "files": ("image", "depth")},
        "fields": {"vision": "image", "depth": "depth"},
    }
    batch = first_batch(tables.make_stream(INPUTS, "x", pair), size=8)
    vision = batch["vision"][..., 0] * inputs.CLIP_STD[0] + inputs.CLIP_MEAN[0]
    depth = (batch["depth"][..., 0] * 0.129 + 0.112) * 128
    inner = (slice(None), slice(4, -4), slice(4, -4))  # the ends of the ramp are unknown or clipped
    near = depth[inner] < 120
    assert np.abs(vision[inner] * 255 - depth[inner])[near].max() < 6
    slopes = np.sign(vision[:, 24, 30] - vision[:, 24, 18])
    assert set(slopes) == {-1.0, 1.0}  # some are flipped, and their depth with them


def test_the_region_hides_the_rest_of_a_picture():
    half = np.zeros((60, 100, 3), np.uint8)
    half[:, 60:] = 255
    steps = inputs.finishers(INPUTS, ["vision"], train=False, region=(0, 0, 0.5, 1))
    out = tables.apply(steps, {"vision": half})["vision"]
    assert (out < 0).all()  # black everywhere: nothing of the white side is seen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sorce": {}}, "did you mean 'source'"),
        ({"source": {"kind": "jsnl"}}, "one of .*jsonl"),
        ({"source": {"kind": "jsonl", "pth": "x"}}, "does not fit the kind 'jsonl'"),
        ({"fields": {"vision": "image"}}, "which field holds 'depth'"),
        ({"train": {"regoin": 1}}, "did you mean 'region'"),
        (
            {"modalities": ("vision", "smell"), "fields": {"vision": "image", "smell": "s"}},
            "'smell'.* not one of",
        ),
    ],
)
def test_a_wrong_word_in_a_config_is_named_with_the_nearest(change, message):
    with pytest.raises(ConfigError, match=message):
        tables.make_stream(INPUTS, "depth", {**PAIR, **change})


def test_a_part_that_selects_nothing_is_an_empty_dataset():
    with pytest.raises(DataError, match="middle"):
        tables.make_stream(INPUTS, "depth", {**PAIR, "train": {"where": {"camera": "middle"}}})
