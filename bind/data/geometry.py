"""Resizing, cutting and flipping of arrays [H, W, C], of several fields alike.

`keys=("image", "depth")` gets both the same cut and the same flip, pixel for pixel; fields of
unlike sizes are refused.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from grain import transforms
from PIL import Image

from bind.data.records import MAX_PIXELS, field, names, where
from bind.errors import ConfigError, DataError

METHODS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
Size = tuple[int, int]  # height, width


def resize(x: np.ndarray, size: Size, method: str = "bicubic") -> np.ndarray:
    """u8[H, W, C] or f32[H, W, C] to `size` (height, width), antialiased as Pillow does it.

    Measurements (f32) are always resized bilinearly, as the weighted mean of the known pixels (its
    weights are never negative); where these carry less than half of the weight the result is NaN.
    """
    to, how = size[::-1], METHODS[method]
    if x.dtype == np.uint8:
        picture = Image.fromarray(x[..., 0] if x.shape[2] == 1 else x)
        return np.array(picture.resize(to, how)).reshape(*size, -1)
    linear = Image.Resampling.BILINEAR

    def mean(plane):
        return np.asarray(Image.fromarray(plane).resize(to, linear))

    known = np.isfinite(x)
    planes = []
    for c in range(x.shape[2]):
        weight = mean(known[..., c].astype(np.float32))
        total = mean(np.where(known[..., c], x[..., c], np.float32(0)))
        nan = np.full_like(total, np.nan)
        planes.append(np.divide(total, weight, out=nan, where=weight >= 0.5))
    return np.stack(planes, -1)


def _each(record: dict, keys, to, plan: Callable[[int, int], Callable]) -> dict:
    """`plan(height, width)` gives the change to make to each of the fields `keys`."""
    keys, to = names(keys), names(to or keys)
    arrays = [field(record, key) for key in keys]
    for key, x in zip(keys, arrays, strict=True):
        sound = isinstance(x, np.ndarray) and x.ndim == 3 and x.dtype in (np.uint8, np.float32)
        if not sound or (x.dtype == np.uint8 and x.shape[2] not in (1, 3)) or not x.size:
            seen = f"{x.dtype}{list(x.shape)}" if isinstance(x, np.ndarray) else type(x).__name__
            reason = f"is {seen}, not u8[H, W, 3], u8[H, W, 1] or f32[H, W, C]"
            raise DataError(where(record, key), reason, "decode it first")
        if x.shape[:2] != arrays[0].shape[:2]:
            reason = f"is {x.shape[:2]} but {keys[0]!r} is {arrays[0].shape[:2]} (height, width)"
            raise DataError(where(record, key), reason, "resize both to one size before cropping")
    change = plan(*arrays[0].shape[:2])
    return {**record, **{k: change(x) for k, x in zip(to, arrays, strict=True)}}


def _cut(x: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    return np.ascontiguousarray(x[top : top + height, left : left + width])


@dataclasses.dataclass(frozen=True)
class Resize(transforms.Map):
    """Resizes so that the short side is `short_side`, the long one int(short_side * long / short).

    Exactly torchvision's Resize(int) of a PIL picture. Raises DataError if a picture is so narrow
    that the result would have more than MAX_PIXELS.
    """

    short_side: int
    method: str = "bicubic"
    _: dataclasses.KW_ONLY
    keys: str | Sequence[str] = ("image",)
    to: str | Sequence[str] | None = None

    def __post_init__(self):
        if self.method not in METHODS:
            reason = f"is {self.method!r}"
            raise ConfigError("Resize.method", reason, f"must be one of {', '.join(METHODS)}")

    def map(self, record: dict) -> dict:
        def plan(height, width):
            short, long = sorted((height, width))
            longer = int(self.short_side * long / short)
            if longer * self.short_side > MAX_PIXELS:
                reason = f"of {width} x {height} pixels would become {longer} pixels long"
                raise DataError(where(record, names(self.keys)[0]), reason, "leave it out")
            size = (longer, self.short_side) if height > width else (self.short_side, longer)
            return lambda x: resize(x, size, self.method)

        return _each(record, self.keys, self.to, plan)


@dataclasses.dataclass(frozen=True)
class CenterCrop(transforms.Map):
    """Cuts the middle `size` x `size` pixels; offsets are rounded as in torchvision, half to even.

    Raises DataError for a smaller picture (torchvision would add black).
    """

    size: int
    _: dataclasses.KW_ONLY
    keys: str | Sequence[str] = ("image",)
    to: str | Sequence[str] | None = None

    def map(self, record: dict) -> dict:
        def plan(height, width):
            if min(height, width) < self.size:
                reason = f"has {width} x {height} pixels, less than the crop of {self.size}"
                raise DataError(where(record, names(self.keys)[0]), reason, "Resize it first")
            top, left = (round((n - self.size) / 2.0) for n in (height, width))
            return lambda x: _cut(x, top, left, self.size, self.size)

        return _each(record, self.keys, self.to, plan)


@dataclasses.dataclass(frozen=True)
class Region(transforms.Map):
    """Cuts a fixed part, in fractions of width and height. Adjoining parts do not overlap."""

    left: float
    top: float
    right: float
    bottom: float
    _: dataclasses.KW_ONLY
    keys: str | Sequence[str] = ("image",)
    to: str | Sequence[str] | None = None

    def __post_init__(self):
        if not (0 <= self.left < self.right <= 1 and 0 <= self.top < self.bottom <= 1):
            raise ConfigError(repr(self), "is no part of a picture", "0 <= left < right <= 1, ...")

    def map(self, record: dict) -> dict:
        def plan(height, width):
            x0, x1 = round(self.left * width), round(self.right * width)
            y0, y1 = round(self.top * height), round(self.bottom * height)
            if x0 == x1 or y0 == y1:
                reason = f"has {width} x {height} pixels: none lie in {self!r}"
                raise DataError(where(record, names(self.keys)[0]), reason)
            return lambda x: _cut(x, y0, x0, y1 - y0, x1 - x0)

        return _each(record, self.keys, self.to, plan)


def _random_box(height: int, width: int, scale, ratio, rng: np.random.Generator):
    """torchvision's RandomResizedCrop.get_params: (top, left, height, width)."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    aspect = min(max(width / height, ratio[0]), ratio[1])  # the largest central box of a fair shape
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    w, h = max(w, 1), max(h, 1)
    return (height - h) // 2, (width - w) // 2, h, w


@dataclasses.dataclass(frozen=True)
class RandomCrop(transforms.RandomMap):
    """Cuts a random box and resizes it to `size` x `size`: torchvision's RandomResizedCrop.

    The box covers a share of the area drawn from `scale`, its width / height is drawn from `ratio`.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    _: dataclasses.KW_ONLY
    method: str = "bicubic"
    keys: str | Sequence[str] = ("image",)
    to: str | Sequence[str] | None = None

    def __post_init__(self):
        if self.method not in METHODS:
            reason = f"is {self.method!r}"
            raise ConfigError("RandomCrop.method", reason, f"must be one of {', '.join(METHODS)}")
        if not (0 < self.scale[0] <= self.scale[1] <= 1 and 0 < self.ratio[0] <= self.ratio[1]):
            raise ConfigError(repr(self), "has no such boxes", "0 < low <= high; scale <= 1")

    def random_map(self, record: dict, rng: np.random.Generator) -> dict:
        def plan(height, width):
            box = _random_box(height, width, self.scale, self.ratio, rng)
            return lambda x: resize(_cut(x, *box), (self.size, self.size), self.method)

        return _each(record, self.keys, self.to, plan)


@dataclasses.dataclass(frozen=True)
class RandomFlip(transforms.RandomMap):
    """Mirrors left and right, with probability `p`."""

    p: float = 0.5
    _: dataclasses.KW_ONLY
    keys: str | Sequence[str] = ("image",)
    to: str | Sequence[str] | None = None

    def random_map(self, record: dict, rng: np.random.Generator) -> dict:
        flip = rng.random() < self.p

        def change(x):
            return np.ascontiguousarray(x[:, ::-1]) if flip else x

        return _each(record, self.keys, self.to, lambda height, width: change)
