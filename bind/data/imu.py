"""Inertial measurements: f32[T, 6], the accelerometer's x y z and then the gyroscope's x y z.

[ReadImu(), Resample(200, 400), RandomWindow(2000), Standardize(mean, std)]
"""

import dataclasses
import functools
import io
import os
import zipfile
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from grain import transforms

from bind.data.audio import resample
from bind.data.records import Transform, field, media, where
from bind.errors import ConfigError, DataError

AXES = "numbers [T, 6]: 6 channels, accelerometer x y z then gyroscope x y z"
MAX_BYTES = 1 << 30  # of one file's arrays in memory


def _check(name: str, x) -> np.ndarray:
    """Measurements as f32[T, 6]. Raises DataError for anything else."""
    array = isinstance(x, np.ndarray)
    if not array or x.ndim != 2 or x.shape[1] != 6 or not len(x) or x.dtype.kind not in "fiu":
        seen = f"{x.dtype}{list(x.shape)}" if array else type(x).__name__
        turned = array and x.ndim == 2 and x.shape[0] == 6
        raise DataError(name, f"is {seen}, not {AXES}", "transpose it" if turned else "")
    x = x.astype(np.float32)
    finite = np.isfinite(x).all(1)
    if not finite.all():
        raise DataError(name, f"is not finite at step {np.argmin(finite)}", "leave the record out")
    return x


def _series(record: dict, key: str) -> np.ndarray:
    return _check(where(record, key), field(record, key))


def _load(name: str, file: str | io.BytesIO, array: str) -> np.ndarray:
    """The array of an npy file, or the one called `array` of an npz file; without pickles."""
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as parts:
                size = sum(part.file_size for part in parts.infolist())
            if size > MAX_BYTES:
                raise DataError(name, f"unpacks to {size} bytes, over the limit of {MAX_BYTES}")
        if not isinstance(file, str):
            file.seek(0)
        with open(file, "rb") if isinstance(file, str) else file as stream:
            data = np.load(stream, allow_pickle=False)
            if isinstance(data, np.ndarray):
                return data
            if array not in data:
                raise DataError(name, f"has no array {array!r}", f"it has: {', '.join(data.files)}")
            return data[array]
    except DataError:
        raise
    except Exception as error:  # zip, zlib, the npy header: each has its own; all mean a bad file
        reason = f"is not an npy or npz file that can be read: {error}"
        raise DataError(name, reason, "write it with np.savez, without objects") from error


@functools.lru_cache(maxsize=2)
def _cached(path: str, array: str, written: int) -> np.ndarray:
    """The last files stay in memory, of each process its own: one file often holds many records."""
    return _load(path, path, array)


@dataclasses.dataclass(frozen=True)
class ReadImu(Transform):
    """An npz or npy file (path or bytes) to f32[T, 6].

    The array `array` of the file is f32[T, 6]; where the record has a field `index`, it is f32[N,
    T, 6] and the field says which of the N. Raises DataError for a missing or damaged file, pickled
    objects, another shape, an index that is not there, and values that are not finite.
    """

    key: str = "imu"
    _: dataclasses.KW_ONLY
    to: str | None = None
    array: str = "imu"
    index: str = "imu_index"

    def apply(self, record: dict) -> np.ndarray:
        name, file = media(record, self.key)
        if isinstance(file, str):
            data = _cached(file, self.array, os.stat(file).st_mtime_ns)
        else:
            data = _load(name, file, self.array)
        if record.get(self.index) is not None:
            data, name = self._pick(name, data, record[self.index]), f"{name}[{record[self.index]}]"
        return _check(name, data)

    def _pick(self, name: str, data: np.ndarray, index) -> np.ndarray:
        try:
            index = int(index)  # a csv file gives a string
        except (TypeError, ValueError) as error:
            raise DataError(name, f"{self.index} is {index!r}, not a whole number") from error
        if data.ndim != 3 or not 0 <= index < len(data):
            reason = f"is {list(data.shape)}: it has no record {index}"
            raise DataError(name, reason, f"with {self.index} it must be [N, T, 6]")
        return data[index]


@dataclasses.dataclass(frozen=True)
class Resample(Transform):
    """f32[T, 6] at `rate_in` Hz to f32[ceil(T * rate_out / rate_in), 6] at `rate_out` Hz.

    Band-limited, so that going down does not alias; constants (gravity) stay what they are.
    """

    rate_in: float
    rate_out: float
    _: dataclasses.KW_ONLY
    key: str = "imu"
    to: str | None = None

    def __post_init__(self):
        if not 1 / 1000 <= self.rate_out / max(self.rate_in, 1e-9) <= 1000:
            raise ConfigError(repr(self), "has rates that do not fit", "both in Hz, above 0")

    def apply(self, record: dict) -> np.ndarray:
        x = _series(record, self.key)
        ratio = Fraction(self.rate_out / self.rate_in).limit_denominator(10_000)
        y = resample(x.T, ratio.denominator, ratio.numerator, edges="edge")
        return np.ascontiguousarray(y.T)


def _window(record: dict, key: str, length: int) -> np.ndarray:
    x = _series(record, key)
    if len(x) < length:
        reason = f"has {len(x)} steps, less than the window of {length}"
        raise DataError(where(record, key), reason, "shorten the window or drop the record")
    return x


@dataclasses.dataclass(frozen=True)
class CenterWindow(Transform):
    """Cuts the middle `length` steps: f32[length, 6]. Raises DataError for a shorter series."""

    length: int
    _: dataclasses.KW_ONLY
    key: str = "imu"
    to: str | None = None

    def apply(self, record: dict) -> np.ndarray:
        x = _window(record, self.key, self.length)
        start = (len(x) - self.length) // 2
        return x[start : start + self.length]


@dataclasses.dataclass(frozen=True)
class RandomWindow(transforms.RandomMap):
    """Cuts `length` steps at random: f32[length, 6]. Raises DataError for a shorter series."""

    length: int
    _: dataclasses.KW_ONLY
    key: str = "imu"
    to: str | None = None

    def random_map(self, record: dict, rng: np.random.Generator) -> dict:
        x = _window(record, self.key, self.length)
        start = int(rng.integers(len(x) - self.length + 1))
        return {**record, self.to or self.key: x[start : start + self.length]}


@dataclasses.dataclass(frozen=True)
class Jitter(transforms.RandomMap):
    """Scales each channel by 1 + N(0, scale) and adds N(0, noise) in its units: f32[T, 6]."""

    scale: float = 0.1
    noise: float = 0.0
    _: dataclasses.KW_ONLY
    key: str = "imu"
    to: str | None = None

    def random_map(self, record: dict, rng: np.random.Generator) -> dict:
        x = _series(record, self.key)
        gain = 1 + self.scale * rng.standard_normal(6, np.float32)
        y = x * gain + self.noise * rng.standard_normal(x.shape, np.float32)
        return {**record, self.to or self.key: y.astype(np.float32)}


@dataclasses.dataclass(frozen=True)
class Standardize(Transform):
    """(x - mean) / std by channel: f32[T, 6]. `mean` and `std` are six numbers each."""

    mean: Sequence[float]
    std: Sequence[float]
    _: dataclasses.KW_ONLY
    key: str = "imu"
    to: str | None = None

    def __post_init__(self):
        if len(self.mean) != 6 or len(self.std) != 6 or min(self.std) <= 0:
            raise ConfigError(repr(self), "needs six means and six deviations above 0", AXES)

    def apply(self, record: dict) -> np.ndarray:
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return (_series(record, self.key) - mean) / std
