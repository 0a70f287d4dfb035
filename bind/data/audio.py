"""Sounds: decoding, resampling, clips, log-mel spectrograms.

A sound is f32[C, N] in [-1, 1], or clips of it f32[K, C, N]; its rate in Hz stands beside it, in
the field KEY_rate.

    [DecodeAudio(), RandomClip(2.0), LogMel()]          to train: f32[128, 204, 1]
    [DecodeAudio(), UniformClips(3, 2.0), LogMel()]     to evaluate: f32[3, 128, 204, 1]
"""

import dataclasses
import functools
import math
import os
import struct
from fractions import Fraction

import numpy as np
import soundfile
from grain import transforms

from bind.data.records import Transform, field, media, where
from bind.errors import ConfigError, DataError

# libsndfile reads dozens of old formats too; these are the ones in use, by their first bytes
MAGIC = {"wav": (b"RIFF", b"RF64"), "flac": (b"fLaC",), "ogg": (b"OggS",), "mp3": (b"ID3", b"\xff")}
RATES = 1_000, 400_000  # Hz
MAX_CHANNELS = 16
FLOOR = float(np.finfo(np.float32).eps)  # of a mel band's energy before the logarithm, as in Kaldi


def _check_wav(name: str, file) -> None:
    """Raises DataError if a WAV declares more data than it has: libsndfile reads what there is."""
    size = file.seek(0, os.SEEK_END)
    file.seek(12)
    while len(header := file.read(8)) == 8:
        kind, length = struct.unpack("<4sI", header)
        if kind == b"data":
            # writers to a pipe leave the largest number here, RF64 a 64-bit one elsewhere
            if length != 0xFFFFFFFF and file.tell() + length > size:
                reason = (
                    f"is cut off: it declares {length} bytes of sound and has {size - file.tell()}"
                )
                raise DataError(name, reason, "copy or record it again")
            break
        file.seek(length + length % 2, os.SEEK_CUR)


def _check_ogg(name: str, file) -> None:
    """Raises DataError if the last page does not say it is the last: libsndfile reads on to it."""
    file.seek(-min(file.seek(0, os.SEEK_END), 1 << 16), os.SEEK_END)  # no page is longer
    page = file.read().rpartition(b"OggS")[2]
    if len(page) < 2 or not page[1] & 4:
        remedy = "copy it again; if it is whole: ffmpeg -i OLD -c copy NEW"
        raise DataError(name, "is cut off: its last page does not end the stream", remedy)


CHECKS = {"wav": _check_wav, "ogg": _check_ogg}


def _read(name: str, file, max_seconds: float) -> tuple[np.ndarray, int]:
    """The whole of an open sound file: f32[C, N] and its rate in Hz."""
    magic = file.read(4)
    kinds = [kind for kind, starts in MAGIC.items() if magic.startswith(starts)]
    if not kinds:
        raise DataError(name, "is not a sound file", f"known formats: {', '.join(MAGIC)}")
    if kinds[0] in CHECKS:
        CHECKS[kinds[0]](name, file)
    file.seek(0)
    with soundfile.SoundFile(file) as sound:
        frames, rate = sound.frames, sound.samplerate
        if not (RATES[0] <= rate <= RATES[1] and 0 < sound.channels <= MAX_CHANNELS):
            raise DataError(name, f"has {sound.channels} channels at {rate} Hz: not a sound")
        if frames > max_seconds * rate:
            reason = f"lasts {frames / rate:.0f} s, over the limit of {max_seconds} s"
            raise DataError(name, reason, "cut it or raise max_seconds")
        samples = sound.read(dtype="float32", always_2d=True)
    if not len(samples):
        raise DataError(name, "holds no samples")
    if len(samples) != frames:
        reason = f"is cut off: it declares {frames} samples and has {len(samples)}"
        raise DataError(name, reason, "copy or record it again")
    if not np.isfinite(samples).all():
        raise DataError(name, "holds samples that are not finite numbers")
    return np.ascontiguousarray(samples.T), rate


@functools.lru_cache(maxsize=16)
def _kernel(down: int, up: int, width: int, taps: int) -> tuple[np.ndarray, np.ndarray]:
    """The filter f32[up, taps] of each phase of the output, and where it starts i64[up]."""
    cutoff = min(down, up) * 0.99
    phase = np.arange(up)
    start = phase * down // up - width
    t = (start[:, None] + np.arange(taps)) / down - phase[:, None] / up
    t = np.clip(t * cutoff, -6, 6)
    window = np.cos(t * np.pi / 6 / 2) ** 2
    return (np.sinc(t) * window * cutoff / down).astype(np.float32), start


def resample(x: np.ndarray, old: int, new: int, edges: str = "constant") -> np.ndarray:
    """f32[C, N] at `old` Hz to f32[C, ceil(N * new / old)] at `new` Hz.

    torchaudio's `sinc_interp_hann` with lowpass_filter_width 6 and rolloff 0.99, for whole rates of
    any ratio. `edges="edge"` goes on with the outermost values, not with zeros, and keeps
    constants: for signals with an offset.
    """
    if old == new:
        return x
    down, up = old // math.gcd(old, new), new // math.gcd(old, new)
    width = math.ceil(6 * down / (min(down, up) * 0.99))
    taps = 2 * width + 2  # the filter is zero beyond, for every phase
    kernel, start = _kernel(down, up, width, taps)
    if edges == "edge":
        kernel = kernel / kernel.sum(1, keepdims=True)
    length = -(-x.shape[1] * up // down)
    padded = np.pad(x, ((0, 0), (width, taps + down)), mode=edges)
    windows = np.lib.stride_tricks.sliding_window_view(padded, taps, axis=1)
    out = np.empty((x.shape[0], length), np.float32)
    for first in range(0, length, 1 << 16):  # in pieces, to gather few windows at a time
        n = np.arange(first, min(first + (1 << 16), length))
        phase = n % up
        at = n // up * down + start[phase] + width
        out[:, n] = np.einsum("cnt,nt->cn", windows[:, at], kernel[phase])
    return out


@dataclasses.dataclass(frozen=True)
class DecodeAudio(transforms.Map):
    """A sound (path or bytes; wav, flac, ogg, mp3) to f32[C, N] at `rate` Hz; KEY_rate to `rate`.

    Raises DataError for a missing, damaged, empty or truncated file, or one over `max_seconds`.
    """

    key: str = "audio"
    rate: int = 16_000
    _: dataclasses.KW_ONLY
    to: str | None = None
    max_seconds: float = 600.0

    def map(self, record: dict) -> dict:
        name, file = media(record, self.key)
        try:
            with open(file, "rb") if isinstance(file, str) else file as stream:
                x, rate = _read(name, stream, self.max_seconds)
        except (soundfile.LibsndfileError, struct.error, OSError, RuntimeError) as error:
            fault = getattr(error, "error_string", error)  # without the address of the stream
            raise DataError(name, f"is not a sound file that can be read: {fault}") from error
        to = self.to or self.key
        return {**record, to: resample(x, rate, self.rate), f"{to}_rate": self.rate}


def _sound(record: dict, key: str) -> tuple[np.ndarray, int]:
    """The sound f32[..., C, N] in a field and its rate in Hz."""
    x, rate = field(record, key), field(record, f"{key}_rate")
    if getattr(x, "dtype", None) != np.float32 or x.ndim < 2 or not x.size:
        raise DataError(where(record, key), "is not a sound f32[C, N]", "DecodeAudio it first")
    return x, int(rate)


def _put(record: dict, key: str, to: str | None, x: np.ndarray) -> dict:
    to = to or key
    return {**record, to: x, f"{to}_rate": record[f"{key}_rate"]}


def _check_clip(clip) -> None:
    if not (clip.seconds > 0 and 0 <= clip.within[0] < clip.within[1] <= 1):
        raise ConfigError(
            repr(clip), "has no such clips", "seconds > 0, within 0 <= from < to <= 1"
        )


@dataclasses.dataclass(frozen=True)
class RandomClip(transforms.RandomMap):
    """Cuts `seconds` at random from the part `within` (fractions of the length): f32[C, N].

    Where that part is shorter the clip is the whole part (LogMel pads): a clip never leaves its
    part, so `within=(0.0, 0.7)` leaves the last 30 % of every sound for testing.
    """

    seconds: float
    within: tuple[float, float] = (0.0, 1.0)
    _: dataclasses.KW_ONLY
    key: str = "audio"
    to: str | None = None

    __post_init__ = _check_clip

    def random_map(self, record: dict, rng: np.random.Generator) -> dict:
        x, rate = _sound(record, self.key)
        first, last = (int(part * x.shape[-1]) for part in self.within)
        length = min(int(self.seconds * rate), last - first)
        if length < 1:
            raise DataError(where(record, self.key), f"has no samples within {self.within}")
        start = int(rng.integers(first, last - length + 1))
        return _put(record, self.key, self.to, x[..., start : start + length].copy())


@dataclasses.dataclass(frozen=True)
class UniformClips(transforms.Map):
    """`count` clips of `seconds`, evenly spread over the part `within`: f32[K, C, N].

    The clips of ImageBind's loader: of 5 s, three of 2 s start at 0, 1.5 and 3 s; a part shorter
    than `seconds` is repeated whole.
    """

    count: int = 3
    seconds: float = 2.0
    within: tuple[float, float] = (0.0, 1.0)
    compat: bool = False
    _: dataclasses.KW_ONLY
    key: str = "audio"
    to: str | None = None

    __post_init__ = _check_clip

    def map(self, record: dict) -> dict:
        x, rate = _sound(record, self.key)
        first, last = (int(part * x.shape[-1]) for part in self.within)
        length = min(int(self.seconds * rate), last - first)
        if length < 1:
            raise DataError(where(record, self.key), f"has no samples within {self.within}")
        # fractions of a float of seconds, as upstream: starts agree to the sample
        room = Fraction(max((last - first) / rate - self.seconds, 0))
        step = room / max(self.count - 1, 1)
        starts = [min(first + int(step * i * rate), last - length) for i in range(self.count)]
        x, clips = x.copy() if self.compat else x, []
        for start in starts:
            clip = x[..., start : start + length]
            if self.compat:
                clip -= clip.mean()
            clips.append(clip.copy())
        return _put(record, self.key, self.to, np.stack(clips))


@functools.lru_cache(maxsize=8)
def _mel_filters(bins: int) -> np.ndarray:
    """f32[256, bins]: triangles, straight on the mel scale, of 20 to 8000 Hz."""

    def mel(hz):
        return 1127.0 * np.log1p(np.asarray(hz, np.float64) / 700.0)

    edges = np.linspace(mel(20.0), mel(8000.0), bins + 2)
    left, center, right = edges[:-2], edges[1:-1], edges[2:]
    at = mel(np.arange(256) * (16_000 / 512))[:, None]
    triangle = np.minimum((at - left) / (center - left), (right - at) / (right - center))
    return np.maximum(triangle, 0).astype(np.float32)


def fbank(x: np.ndarray, bins: int = 128) -> np.ndarray:
    """Kaldi's log-mel filter bank of sounds at 16 kHz: f32[..., N] to f32[..., T, bins], N >= 400.

    `torchaudio.compliance.kaldi.fbank` with a symmetric Hann window, no dither, no energy: frames
    of 400 samples every 160 (only whole ones), each less its mean, pre-emphasised by 0.97.
    """
    frames = np.lib.stride_tricks.sliding_window_view(x, 400, axis=-1)[..., ::160, :]
    frames = frames - frames.mean(-1, keepdims=True)
    before = np.concatenate([frames[..., :1], frames[..., :-1]], -1)
    window = np.hanning(400).astype(np.float32)
    spectrum = np.fft.rfft((frames - np.float32(0.97) * before) * window, 512)[..., :256]
    energy = (spectrum.real**2 + spectrum.imag**2).astype(np.float32) @ _mel_filters(bins)
    return np.log(np.maximum(energy, np.float32(FLOOR)))


@dataclasses.dataclass(frozen=True)
class LogMel(Transform):
    """A sound f32[..., C, N] at 16 kHz to its normalised log-mel f32[..., bins, frames, 1].

    Of the first channel, as upstream (stereo is not mixed down). Longer sounds are cut, shorter
    ones padded: with silence, or with `compat` as ImageBind did, with 0 before normalising. That is
    as loud as speech (2 s make 198 frames: its weights have seen six such in every clip). Raises
    DataError for another rate and for less than one frame, 25 ms.
    """

    bins: int = 128
    frames: int = 204
    mean: float = -4.268
    std: float = 9.138
    compat: bool = False
    _: dataclasses.KW_ONLY
    key: str = "audio"
    to: str | None = None

    def apply(self, record: dict) -> np.ndarray:
        x, rate = _sound(record, self.key)
        if rate != 16_000:
            raise DataError(where(record, self.key), f"has {rate} Hz", "DecodeAudio(rate=16000)")
        if x.shape[-1] < 400:
            reason = f"has {x.shape[-1]} samples, less than one frame of 25 ms"
            raise DataError(where(record, self.key), reason)
        mel = fbank(x[..., 0, : 400 + 160 * (self.frames - 1)], self.bins)
        silence = np.float32(0.0 if self.compat else math.log(FLOOR))
        out = np.full((*mel.shape[:-2], self.bins, self.frames, 1), silence, np.float32)
        out[..., : mel.shape[-2], 0] = np.swapaxes(mel, -1, -2)
        return (out - np.float32(self.mean)) / np.float32(self.std)

    def map(self, record: dict) -> dict:
        out = super().map(record)
        if self.to in (None, self.key):  # what was a sound is none any more
            del out[f"{self.key}_rate"]
        return out
