"""Shrink and convert single samples: pictures, sounds, stereo pairs, motion."""

import io

import cv2
import numpy as np
import soundfile
from PIL import Image

from bind.errors import DataError

SHORT_SIDE = 240  # pixels of a photo
RATE = 16000  # Hz of a sound
SECONDS = 17  # the most that is kept of a sound
DISPARITY_SCALE = 64  # stored value = pixels of disparity * 64
MIN_DISPARITY = 3.0  # pixels, about 11 m: beyond it a pixel of error is metres, so call it unknown
BORDER = (slice(20, 480), slice(0, 608))  # rows, columns; outside, rectification smeared the image


def photo(encoded: bytes) -> bytes:
    """Any picture to WebP whose short side is SHORT_SIDE pixels."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    scale = SHORT_SIDE / min(image.size)
    size = tuple(round(side * scale) for side in image.size)
    out = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(out, "WEBP", quality=82, method=6)
    return out.getvalue()


def resample(wave: np.ndarray, rate: int) -> np.ndarray:
    """f[n] at `rate` Hz to f[m] at RATE Hz (lower), by cutting the spectrum of the whole clip."""
    count = round(len(wave) * RATE / rate)
    spectrum = np.fft.rfft(wave)[: count // 2 + 1]
    return np.fft.irfft(spectrum, count) * (count / len(wave))


def sound(encoded: bytes) -> bytes:
    """Any sound to mono 16-bit FLAC at RATE Hz: from its first audible moment, SECONDS at most."""
    wave, rate = soundfile.read(io.BytesIO(encoded), always_2d=True)
    wave = resample(wave.mean(axis=1), rate)
    audible = np.abs(wave) > 0.02 * np.abs(wave).max()
    start = max(0, int(audible.argmax()) - RATE // 20)
    wave = wave[start : start + SECONDS * RATE]
    wave[-RATE // 50 :] *= np.linspace(1, 0, RATE // 50)  # no click at the cut
    out = io.BytesIO()
    soundfile.write(
        out, np.clip(wave, -1, 1), RATE, format="FLAC", subtype="PCM_16", compression_level=1
    )
    return out.getvalue()


def match(left: np.ndarray, right: np.ndarray, search: int) -> np.ndarray:
    """Disparity f32[h, w] of the left of two rectified grey images u8[h, w]; below 0 = no match.

    `search` is the number of disparities tried, a multiple of 16. The left edge is padded by as
    much, since OpenCV gives no value to the first `search` columns.
    """
    block = 5
    matcher = cv2.StereoSGBM_create(
        minDisparity=0,
        numDisparities=search,
        blockSize=block,
        P1=8 * block**2,
        P2=32 * block**2,
        disp12MaxDiff=1,
        preFilterCap=63,
        uniquenessRatio=15,
        speckleWindowSize=400,
        speckleRange=1,
        mode=cv2.STEREO_SGBM_MODE_HH,
    )
    padded = [cv2.copyMakeBorder(i, 0, 0, search, 0, cv2.BORDER_CONSTANT) for i in (left, right)]
    disparity = matcher.compute(*padded)[:, search:] / np.float32(16)
    beyond = disparity > np.arange(left.shape[1])  # would lie outside the right image
    return np.where(beyond, np.float32(-1), disparity)


def checked_disparity(left: np.ndarray, right: np.ndarray, search: int) -> np.ndarray:
    """Disparity f32[h, w] that matching from the right image confirms within 1.5 px; else 0."""
    forward = match(left, right, search)
    backward = match(right[:, ::-1], left[:, ::-1], search)[:, ::-1]
    columns = np.arange(left.shape[1])
    there = np.clip(np.rint(columns - forward), 0, columns[-1]).astype(int)
    confirmed = np.abs(np.take_along_axis(backward, there, axis=1) - forward) <= 1.5
    return np.where(confirmed & (forward >= MIN_DISPARITY), forward, 0)


def stereo(left: bytes, right: bytes, search: int) -> dict[str, tuple[bytes, bytes]]:
    """A rectified pair of 640x480 images to two PNGs of 304x230 per camera: grey image, disparity.

    The border that rectification smeared is cut off, then both are halved. A stored disparity is in
    pixels of the 640x480 image times DISPARITY_SCALE, the largest of its 2x2 block (so that near
    and far are not mixed); 0 = unknown. The right camera's is computed from the mirrored pair.
    """
    first, second = (
        cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_GRAYSCALE)
        for image in (left, right)
    )
    mirrored = checked_disparity(second[:, ::-1], first[:, ::-1], search)
    return {
        "left": _halved(first, checked_disparity(first, second, search)),
        "right": _halved(second, mirrored[:, ::-1]),
    }


def _halved(grey: np.ndarray, disparity: np.ndarray) -> tuple[bytes, bytes]:
    grey, disparity = grey[BORDER], disparity[BORDER]
    height, width = (side // 2 for side in disparity.shape)
    nearest = disparity.reshape(height, 2, width, 2).max(axis=(1, 3))
    values = np.rint(nearest * DISPARITY_SCALE).astype(np.uint16)
    grey = cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)
    return _png(grey), _png(values)


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()


def series(text: str) -> tuple[np.ndarray, list[str]]:
    """A .ts file to f32[N, 100, 6] (accelerometer x y z, gyroscope x y z) and N class names.

    After the lines that start with # or @, a line is one series: its channels and then its class,
    set apart by colons.
    """
    arrays, labels = [], []
    for line in text.splitlines():
        if line and line[0] not in "#@":
            *channels, label = line.strip().split(":")
            arrays.append(np.array([c.split(",") for c in channels], np.float32).T)
            labels.append(label.lower())
    motion = np.stack(arrays)
    if motion.shape[1:] != (100, 6):
        raise DataError("BasicMotions", f"its series have shape {motion.shape[1:]}, not (100, 6)")
    return motion, labels
