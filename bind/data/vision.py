"""Pictures and depth maps: decoding and normalising; the geometry between lies in `geometry`.

A picture is u8[H, W, 3] (or u8[H, W, 1]); a measurement such as disparity is f32[H, W, 1], with
NaN where nothing is known.

    [DecodeImage(), Resize(224), CenterCrop(224), Normalize(CLIP_MEAN, CLIP_STD)]
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from bind.data.geometry import CenterCrop, RandomCrop, RandomFlip, Region, Resize, resize
from bind.data.records import MAX_PIXELS, Transform, field, media, where
from bind.errors import ConfigError, DataError

__all__ = ["CLIP_MEAN", "CLIP_STD", "CenterCrop", "DecodeDisparity", "DecodeImage", "Normalize"]
__all__ += ["NormalizeDepth", "RandomCrop", "RandomFlip", "Region", "Resize", "resize"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# no EPS among them: Pillow hands it to Ghostscript, which runs what the file says
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # Pillow's modes of more than 8 bits


def _decode(
    record: dict, key: str, max_pixels: int, read: Callable[[str, Image.Image], np.ndarray]
):
    """Opens the picture in a field, checks its header, then has `read(name, picture)` decode it."""
    name, file = media(record, key)
    try:
        with Image.open(file, formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                reason = f"has {width} x {height} pixels, over the limit of {max_pixels}"
                raise DataError(name, reason, "make it smaller or raise max_pixels")
            return read(name, picture)
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise a dozen types; each is a fault of the file
        reason = f"is not a sound picture: {error or type(error).__name__}"
        raise DataError(name, reason, f"known formats: {', '.join(FORMATS)}") from error


@dataclasses.dataclass(frozen=True)
class DecodeImage(Transform):
    """A picture (path or bytes) to u8[H, W, 3], or u8[H, W, 1] in mode "L".

    As upstream (`PIL.Image.convert`): the EXIF orientation is not applied, alpha is dropped, of an
    animation the first frame counts. Raises DataError for a missing, damaged or truncated file, one
    of more than `max_pixels` (known from its header, before decoding), or one of more than 8 bits.
    """

    key: str = "image"
    mode: str = "RGB"
    _: dataclasses.KW_ONLY
    to: str | None = None
    max_pixels: int = MAX_PIXELS

    def __post_init__(self):
        if self.mode not in ("RGB", "L"):
            raise ConfigError("DecodeImage.mode", f"is {self.mode!r}", 'must be "RGB" or "L"')

    def apply(self, record: dict) -> np.ndarray:
        return _decode(record, self.key, self.max_pixels, self._read)

    def _read(self, name: str, picture: Image.Image) -> np.ndarray:
        if picture.mode in DEEP:  # convert would clip or scale them, by Pillow's version
            raise DataError(name, f"has more than 8 bits (mode {picture.mode})", "DecodeDisparity")
        pixels = np.array(picture.convert(self.mode))
        return pixels.reshape(*pixels.shape[:2], -1)


@dataclasses.dataclass(frozen=True)
class DecodeDisparity(Transform):
    """A grey PNG of 8 or 16 bits to disparity in pixels, f32[H, W, 1] = value / scale.

    The value 0 means unknown and becomes NaN. KITTI's scale is 256. Resizing does not rescale the
    disparities: they stay pixels of the picture they were measured in. Raises DataError as
    DecodeImage, and for a picture that is not grey.
    """

    key: str = "depth"
    scale: float = 256.0
    _: dataclasses.KW_ONLY
    to: str | None = None
    max_pixels: int = MAX_PIXELS

    def apply(self, record: dict) -> np.ndarray:
        return _decode(record, self.key, self.max_pixels, self._read)

    def _read(self, name: str, picture: Image.Image) -> np.ndarray:
        if picture.mode not in (*DEEP[:-1], "L"):
            raise DataError(name, f"is not a grey picture of integers (mode {picture.mode})")
        values = np.asarray(picture).astype(np.float32)[..., None]
        return np.where(values > 0, values / np.float32(self.scale), np.float32(np.nan))


@dataclasses.dataclass(frozen=True)
class Normalize(Transform):
    """u8[H, W, C] to f32[H, W, C]: (x / 255 - mean) / std. Raises DataError for other arrays."""

    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[float] = CLIP_STD
    _: dataclasses.KW_ONLY
    key: str = "image"
    to: str | None = None

    def apply(self, record: dict) -> np.ndarray:
        x = field(record, self.key)
        if getattr(x, "dtype", None) != np.uint8 or x.shape[-1] != len(self.mean):
            reason = f"is not u8[H, W, {len(self.mean)}]"
            raise DataError(where(record, self.key), reason, "decode it first, normalise it once")
        # in place, in this order: bit for bit what ToTensor and Normalize give
        y = x.astype(np.float32)
        y /= np.float32(255)
        y -= np.asarray(self.mean, np.float32)
        y /= np.asarray(self.std, np.float32)
        return y


@dataclasses.dataclass(frozen=True)
class NormalizeDepth(Transform):
    """Disparity f32[H, W, 1] in pixels to (clip(x, low, high) / high - mean) / std, f32[H, W, 1].

    The defaults are those of Omnivore for SUN RGB-D, the best public guess at ImageBind's. Unknown
    pixels (NaN) take the disparity `low`: infinitely far.
    """

    mean: float = 0.0418
    std: float = 0.0295
    low: float = 0.01
    high: float = 75.0
    _: dataclasses.KW_ONLY
    key: str = "depth"
    to: str | None = None

    def apply(self, record: dict) -> np.ndarray:
        x = field(record, self.key)
        if getattr(x, "dtype", None) != np.float32 or x.shape[-1:] != (1,):
            raise DataError(where(record, self.key), "is not f32[H, W, 1]", "decode it first")
        x = np.clip(np.nan_to_num(x, nan=self.low), self.low, self.high) / np.float32(self.high)
        return ((x - np.float32(self.mean)) / np.float32(self.std)).astype(np.float32)
