"""Pictures: equal to Pillow and torchvision to the pixel; bad files are refused, and only they."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from bind.data import sources, vision
from bind.errors import ConfigError, DataError

CLIP = [vision.DecodeImage(), vision.Resize(24), vision.CenterCrop(24), vision.Normalize()]


def smooth(height, width, channels=3):
    """u8[height, width, channels], with edges and slopes."""
    y, x, c = np.ogrid[:height, :width, :channels]
    return ((x * 5 + y * 3 + c * 60) % 256 * ((x // 9 + y // 7) % 3) // 2).astype(np.uint8)


def encode(pixels, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def run(transforms, record, seed=0):
    rng = np.random.default_rng(seed)
    for t in transforms:
        record = t.random_map(record, rng) if hasattr(t, "random_map") else t.map(record)
    return record


@pytest.mark.parametrize(
    "height, width", [(24, 24), (40, 61), (61, 40), (25, 90), (7, 11), (33, 24)]
)
def test_clip_preprocessing_is_pillow_and_torchvision(height, width):
    pixels = smooth(height, width)
    short, long = sorted((height, width))
    size = (24, int(24 * long / short))  # width, height
    picture = Image.fromarray(pixels).resize(
        size if width <= height else size[::-1], Image.Resampling.BICUBIC
    )
    left, top = (int(round((n - 24) / 2.0)) for n in picture.size)  # noqa: RUF046
    picture = picture.crop((left, top, left + 24, top + 24))
    expected = np.asarray(picture, np.float32) / np.float32(255)
    expected -= np.float32(vision.CLIP_MEAN)
    expected /= np.float32(vision.CLIP_STD)
    record = {"image": encode(pixels)}
    got = run(CLIP, record)["image"]
    assert got.dtype == np.float32 and got.shape == (24, 24, 3)
    np.testing.assert_array_equal(got, expected)
    assert isinstance(record["image"], bytes)  # the record given is not changed


def test_half_offsets_round_to_even():
    column = np.arange(8, dtype=np.uint8).reshape(1, 8, 1).repeat(8, 0)
    for width, first in ((5, 0), (7, 2)):  # (5 - 4) / 2 = 0.5 -> 0; (7 - 4) / 2 = 1.5 -> 2
        cut = vision.CenterCrop(4).map({"image": column[:4, :width]})["image"]
        assert cut[0, :, 0].tolist() == list(range(first, first + 4))


def test_modes_and_exif_are_as_upstream(tmp_path):
    pixels = smooth(6, 9)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me": ignored, as PIL's convert does
    path = tmp_path / "a.png"
    path.write_bytes(encode(pixels, exif=exif))
    for value in (str(path), path, path.read_bytes()):
        got = vision.DecodeImage(to="x").map({"image": value})
        np.testing.assert_array_equal(got["x"], pixels)
        assert got["image"] is value
    grey = vision.DecodeImage(mode="L").map({"image": str(path)})["image"]
    assert grey.shape == (6, 9, 1)
    np.testing.assert_array_equal(grey[..., 0], np.asarray(Image.fromarray(pixels).convert("L")))
    alpha = np.dstack([pixels, np.zeros((6, 9), np.uint8)])
    got = vision.DecodeImage().map({"image": encode(alpha)})["image"]
    np.testing.assert_array_equal(got, pixels)  # dropped, not blended


def bomb(side):
    """The PNG of a black square of one bit, about side^2 / 8000 bytes."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * side))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_bombs_are_refused_before_decoding(monkeypatch, tmp_path):
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    for side in (9000, 20000):  # Pillow's own limits warn of the one and refuse the other
        (tmp_path / "bomb.png").write_bytes(bomb(side))
        with pytest.raises(DataError, match=r"bomb\.png: "):
            vision.DecodeImage().map({"image": str(tmp_path / "bomb.png")})
        with pytest.raises(DataError):
            vision.DecodeDisparity().map({"depth": bomb(side)})
    thin = np.zeros((1, 100_000, 1), np.uint8)
    with pytest.raises(DataError, match="would become"):
        vision.Resize(224).map({"image": thin})


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_damaged_files_are_refused_or_read(kind):
    whole = encode(smooth(40, 50), kind)
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(200):
        bad = bytearray(whole[: rng.integers(len(whole) - 40)] if trial % 2 else whole)
        for _ in range(0 if trial % 2 else rng.integers(1, 6)):
            bad[rng.integers(len(bad))] = rng.integers(256)
        try:
            got = vision.DecodeImage().map({"image": bytes(bad), "__key__": "k7"})["image"]
        except DataError as error:
            assert str(error).startswith("field 'image' of record 'k7': is ")
            refused += 1
        else:
            assert got.dtype == np.uint8 and got.ndim == 3 and got.shape[2] == 3
            assert not trial % 2 or kind == "GIF", f"cut to {len(bad)} bytes and not noticed"
    assert refused >= (50 if kind == "GIF" else 100)


def test_what_is_no_picture(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "e.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    deep = Image.fromarray(np.full((4, 4), 300, np.uint16))
    deep.save(tmp_path / "deep.png")
    faults = {
        str(tmp_path / "empty.png"): "is empty",
        str(tmp_path / "none.png"): "no such file",
        str(tmp_path): "no such file",
        "a\0b": "no such file",
        str(tmp_path / "e.eps"): "is not a sound picture",
        str(tmp_path / "deep.png"): "has more than 8 bits",
        b"": "is empty",
        3: "holds int, not a path",
        None: "is missing",
    }
    for value, reason in faults.items():
        with pytest.raises(DataError, match=reason):
            vision.DecodeImage().map({"image": value})


def test_disparity(tmp_path):
    values = np.array([[0, 256, 65535], [1, 512, 0]], np.uint16)
    Image.fromarray(values).save(tmp_path / "d.png")
    got = vision.DecodeDisparity(to="d").map({"depth": str(tmp_path / "d.png")})["d"]
    expected = np.array([[np.nan, 1, 65535 / 256], [1 / 256, 2, np.nan]], np.float32)
    assert got.shape == (2, 3, 1) and got.dtype == np.float32
    np.testing.assert_array_equal(got[..., 0], expected)
    low = encode(np.array([[0, 9]], np.uint8))
    eight = vision.DecodeDisparity(scale=4).map({"depth": low})["depth"]
    np.testing.assert_array_equal(eight[0, :, 0], np.float32([np.nan, 2.25]))
    with pytest.raises(DataError, match="not a grey picture"):
        vision.DecodeDisparity().map({"depth": encode(smooth(3, 3))})
    y = vision.NormalizeDepth(0.5, 0.25, low=0.0, high=2.0).map({"depth": got})["depth"]
    # unknown -> 0 -> -2; 1 -> 0.5 -> 0; 2 and above -> 1 -> 2
    np.testing.assert_allclose(y[..., 0], [[-2, 0, 2], [-1.9921875, 2, -2]], atol=1e-6)


def test_unknown_pixels_do_not_bleed():
    depth = np.full((12, 12, 1), 7, np.float32)
    depth[:, 5:] = np.nan
    small = vision.resize(depth, (6, 6))
    known = np.isfinite(small[..., 0])
    np.testing.assert_allclose(small[known], 7, rtol=1e-6)  # never between 7 and 0
    assert known[:, :2].all() and not known[:, 3:].any()
    depth[:, 4:] = np.nan  # the third column of the result now has 1/8 of its weight known
    assert (
        np.isfinite(vision.resize(depth, (6, 6))).all(0)[:, 0].tolist() == [True] * 2 + [False] * 4
    )
    ramp = np.arange(64, dtype=np.float32).reshape(8, 8, 1)
    expected = np.asarray(Image.fromarray(ramp[..., 0]).resize((4, 4), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(vision.resize(ramp, (4, 4))[..., 0], expected, rtol=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_picture_and_depth_get_the_same_cut(seed):
    pixels = smooth(30, 45)
    pixels[..., 1] = pixels[..., 0]
    record = {"image": pixels, "depth": pixels[..., :1].astype(np.float32), "n": 1}
    both = ("image", "depth")
    steps = [vision.RandomCrop(16, (0.2, 1.0), method="bilinear", keys=both)]
    steps += [vision.RandomFlip(keys=both)]
    out = run(steps, record, seed)
    assert out["image"].shape == (16, 16, 3) and out["depth"].shape == (16, 16, 1)
    apart = np.abs(out["depth"][..., 0] - out["image"][..., 0])  # Pillow rounds u8 twice
    assert apart.max() < 1.01 and apart.mean() < 0.4
    again = run(pickle.loads(pickle.dumps(steps)), record, seed)
    np.testing.assert_array_equal(again["image"], out["image"])
    np.testing.assert_array_equal(record["image"], pixels)
    with pytest.raises(DataError, match=r"is \(30, 44\) but 'image' is \(30, 45\)"):
        run(steps, record | {"depth": record["depth"][:, 1:]})


def test_grain_runs_sources_and_transforms():
    import grain

    rows = sources.Memory([{"image": encode(smooth(30, 40 + i)), "n": i} for i in range(4)])
    data = grain.MapDataset.source(rows).seed(3).map(vision.DecodeImage())
    data = data.random_map(vision.RandomCrop(8)).random_map(vision.RandomFlip()).map(CLIP[-1])
    first = [record["image"] for record in data]
    assert [x.shape for x in first] == [(8, 8, 3)] * 4
    np.testing.assert_array_equal(first, [record["image"] for record in data])


def test_random_boxes_have_the_asked_shares():
    from bind.data.geometry import _random_box

    rng = np.random.default_rng(0)
    boxes = np.array([_random_box(200, 300, (0.25, 0.5), (0.8, 1.25), rng) for _ in range(2000)])
    top, left, h, w = boxes.T
    assert top.min() == 0 and left.min() == 0 and (top + h).max() <= 200
    assert 200 - (top + h).max() <= 2 and 300 - (left + w).max() <= 2
    share = h * w / 60_000
    assert share.min() > 0.245 and share.max() < 0.505 and abs(share.mean() - 0.375) < 0.01
    assert (w / h).min() > 0.78 and (w / h).max() < 1.28
    assert _random_box(10, 1000, (0.9, 1.0), (0.75, 4 / 3), rng) == (0, 493, 10, 13)  # none fits
    assert _random_box(1, 9, (0.9, 1.0), (0.1, 0.2), rng)[2:] == (1, 1)


def test_regions_partition_the_picture():
    pixels = smooth(10, 31)
    for at in (1 / 3, 0.5, 2 / 3, 0.7):
        left = vision.Region(0, 0, at, 1, to="part").map({"image": pixels})
        right = vision.Region(at, 0, 1, 1).map({"image": pixels})["image"]
        np.testing.assert_array_equal(np.concatenate([left["part"], right], 1), pixels)
        assert left["image"] is pixels
    cut = vision.Region(0, 0.5, 2 / 3, 1.0).map({"image": smooth(4, 6)})["image"]
    np.testing.assert_array_equal(cut, smooth(4, 6)[2:, :4])
    with pytest.raises(ConfigError):
        vision.Region(0.5, 0, 0.4, 1)
    with pytest.raises(DataError, match="none lie in"):
        vision.Region(0.4, 0, 0.5, 1).map({"image": pixels[:, :1]})


def test_flip():
    pixels = smooth(14, 25)
    flips = [run([vision.RandomFlip()], {"image": pixels}, s)["image"] for s in range(100)]
    mirrored = [np.array_equal(f, pixels[:, ::-1]) for f in flips]
    assert 30 < sum(mirrored) < 70
    assert all(m or np.array_equal(f, pixels) for m, f in zip(mirrored, flips, strict=True))


def test_wrong_arrays_and_parameters():
    u8, f32 = smooth(5, 5), np.zeros((5, 5, 3), np.float32)
    for step, value in (
        (vision.Normalize(), f32),
        (vision.Normalize(), u8[..., :1]),
        (vision.NormalizeDepth(), u8[..., :1]),
        (vision.CenterCrop(6), u8),
        (vision.Resize(3), u8[..., 0]),
        (vision.Resize(3), u8[..., :2]),
        (vision.Resize(3), b"bytes"),
        (vision.Resize(3), u8[:0]),
        (vision.Resize(3), u8.astype(np.float64)),
    ):
        with pytest.raises(DataError, match=r"field .(image|depth)."):
            step.map({"image": value, "depth": value})
    for make in (lambda: vision.Resize(3, "cubic"), lambda: vision.DecodeImage(mode="CMYK")):
        with pytest.raises(ConfigError):
            make()
    for step in (*CLIP, vision.DecodeDisparity(), vision.NormalizeDepth(), vision.RandomCrop(8)):
        assert pickle.loads(pickle.dumps(step)) == step
