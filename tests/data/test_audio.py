"""Sounds: Kaldi's filter bank, torchaudio's resampler, clips to the sample, bad files refused."""

import io
import math
import pathlib
import pickle
import struct

import numpy as np
import pytest
import soundfile

from bind.data import audio
from bind.errors import ConfigError, DataError

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens" / "kaldi_fbank.npz"
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 5000)).astype(np.float32)


def encode(x, rate=16_000, kind="WAV", subtype=None):
    file = io.BytesIO()
    soundfile.write(file, x.T, rate, format=kind, subtype=subtype)
    return file.getvalue()


def sound(x, rate=16_000):
    return {"audio": np.asarray(x, np.float32), "audio_rate": rate}


def slow_fbank(x, bins):
    """Kaldi's definition in loops and float64: [T, bins]."""
    mel = lambda hz: 1127 * math.log(1 + hz / 700)  # noqa: E731
    low, high = mel(20), mel(8000)
    out = []
    for start in range(0, len(x) - 399, 160):
        frame = [float(v) for v in x[start : start + 400]]
        frame = [v - sum(frame) / 400 for v in frame]
        frame = [v - 0.97 * frame[max(i - 1, 0)] for i, v in enumerate(frame)]
        frame = [v * (0.5 - 0.5 * math.cos(2 * math.pi * i / 399)) for i, v in enumerate(frame)]
        power = np.abs(np.fft.fft(frame, 512)) ** 2
        row = []
        for b in range(bins):
            left, center, right = (low + (b + i) * (high - low) / (bins + 1) for i in range(3))
            total = 0.0
            for k in range(256):
                m = mel(k * 16_000 / 512)
                if left < m < right:
                    up, down = (m - left) / (center - left), (right - m) / (right - center)
                    total += power[k] * min(up, down)
            row.append(math.log(max(total, 1.1920928955078125e-07)))
        out.append(row)
    return np.array(out)


@pytest.mark.parametrize("bins", [128, 40])
def test_fbank_is_kaldis_definition(bins):
    x = NOISE[0, :1000] + 0.3  # the offset must not matter
    got = audio.fbank(x, bins)
    assert got.shape == (4, bins) and got.dtype == np.float32  # 1 + (1000 - 400) // 160
    np.testing.assert_allclose(got, slow_fbank(x, bins), atol=2e-4)


def test_log_mel_is_torchaudios():
    golden = np.load(GOLDEN)
    for name in ("short_0p5s", "chirp"):
        mel = golden[f"mel/{name}"]
        got = audio.LogMel(compat=True).map(sound(golden[f"wav/{name}"]))["audio"]
        assert got.shape == (128, 204, 1) and got.dtype == np.float32
        apart = np.abs(got[:, : mel.shape[1], 0] - mel)
        # within a factor of 20 of the floor, float32's rounding is all there is, theirs and ours
        floor = (math.log(audio.FLOOR * 20) + 4.268) / 9.138
        assert apart[mel > floor].max() < 1e-4 and apart.max() < 2e-3


def test_log_mel_pads_with_silence_or_as_upstream():
    got = {c: audio.LogMel(compat=c).map(sound(NOISE))["audio"] for c in (False, True)}
    silence = audio.LogMel().map(sound(np.zeros((1, 400))))["audio"]
    np.testing.assert_allclose(silence, (math.log(2**-23) + 4.268) / 9.138, atol=1e-6)
    np.testing.assert_array_equal(got[False][:, 29:], silence[:, 29:])  # 1 + (5000 - 400) // 160
    np.testing.assert_allclose(got[True][:, 29:], 4.268 / 9.138, atol=1e-6)
    np.testing.assert_array_equal(got[False][:, :29], got[True][:, :29])
    assert (np.diff(got[True][:, 28:30, 0]) != 0).all()
    long = audio.LogMel(frames=10).map(sound(NOISE))["audio"]
    np.testing.assert_array_equal(long, got[True][:, :10])
    left = audio.LogMel().map(sound(NOISE * [[1], [0]]))["audio"]  # the first channel alone counts
    np.testing.assert_array_equal(left, got[False])
    out = audio.LogMel(to="mel").map(sound(NOISE))
    assert set(out) == {"audio", "audio_rate", "mel"}
    assert set(audio.LogMel().map(sound(NOISE))) == {"audio"}
    for bad in (sound(NOISE[:, :399]), sound(NOISE, 8000), {"audio": NOISE}, sound(NOISE[0])):
        with pytest.raises(DataError):
            audio.LogMel().map(bad)


def slow_resample(x, old, new):
    """torchaudio's sinc_interp_hann, sample by sample."""
    down, up = old // math.gcd(old, new), new // math.gcd(old, new)
    cutoff = min(down, up) * 0.99
    out = np.zeros(math.ceil(len(x) * up / down))
    for i in range(len(out)):
        for k in range(len(x)):
            t = (k / down - i / up) * cutoff
            if abs(t) < 6:
                sinc = math.sin(math.pi * t) / (math.pi * t) if t else 1.0
                out[i] += x[k] * sinc * math.cos(math.pi * t / 12) ** 2 * cutoff / down
    return out


@pytest.mark.parametrize("old, new", [(441, 160), (8000, 16000), (48000, 16000), (997, 1000)])
def test_resample_is_torchaudios_definition(old, new):
    got = audio.resample(NOISE[:, :300], old, new)
    assert got.shape == (2, math.ceil(300 * new / old)) and got.dtype == np.float32
    for c in range(2):
        np.testing.assert_allclose(got[c], slow_resample(NOISE[c, :300], old, new), atol=2e-6)


def test_resample_keeps_tones_and_drops_what_would_alias():
    t = np.arange(44_100 * 5) / 44_100  # more than one piece
    tones = np.stack([np.sin(2 * np.pi * f * t) for f in (440, 11_000)]).astype(np.float32)
    out = audio.resample(tones, 44_100, 16_000)
    expected = np.sin(2 * np.pi * 440 * np.arange(80_000) / 16_000)
    assert np.abs(out[0] - expected)[100:-100].max() < 2e-3
    assert np.abs(out[1])[100:-100].max() < 0.02
    ones = np.full((1, 500), 9.81, np.float32)
    np.testing.assert_allclose(audio.resample(ones, 200, 150, "edge"), 9.81, rtol=1e-6)


@pytest.mark.parametrize(
    "kind, subtype", [("WAV", "FLOAT"), ("FLAC", None), ("OGG", None), ("MP3", None)]
)
def test_decode(tmp_path, kind, subtype):
    t = np.arange(32_000) / 32_000
    x = 0.5 * np.stack([np.sin(2 * np.pi * f * t) for f in (440, 1000)]).astype(np.float32)
    (tmp_path / "a").write_bytes(encode(x, 32_000, kind, subtype))
    out = audio.DecodeAudio(to="x").map({"audio": str(tmp_path / "a")})
    assert (
        out["x_rate"] == 16_000 and out["x"].shape == (2, 16_000) and out["x"].dtype == np.float32
    )
    tolerance = {"WAV": 1e-3, "FLAC": 1e-3, "OGG": 0.05, "MP3": 0.1}[kind]
    assert np.abs(out["x"][:, 1000:-1000] - x[:, ::2][:, 1000:-1000]).max() < tolerance
    same = audio.DecodeAudio().map({"audio": (tmp_path / "a").read_bytes()})
    np.testing.assert_array_equal(same["audio"], out["x"])
    whole = audio.DecodeAudio(rate=32_000).map({"audio": str(tmp_path / "a")})["audio"]
    if kind == "WAV":
        np.testing.assert_array_equal(whole, x)


def test_truncated_wav_is_not_a_short_wav(tmp_path):
    whole = encode(NOISE)
    for cut in (len(whole) - 1, len(whole) // 2, 48, 44):
        (tmp_path / "a.wav").write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"a\.wav: is cut off"):
            audio.DecodeAudio().map({"audio": str(tmp_path / "a.wav")})
    piped = bytearray(whole)  # ffmpeg to a pipe cannot know the length
    piped[40:44] = piped[4:8] = b"\xff" * 4
    assert audio.DecodeAudio().map({"audio": bytes(piped)})["audio"].shape == (2, 5000)
    odd = whole[:12] + b"LIST" + struct.pack("<I", 3) + b"abc\0" + whole[12:]  # padded to even
    assert audio.DecodeAudio().map({"audio": odd})["audio"].shape == (2, 5000)
    with pytest.raises(DataError, match="is cut off"):
        audio.DecodeAudio().map({"audio": odd[:-2]})


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3"])
def test_truncated_files_are_not_short_files(kind):
    whole = encode(NOISE.repeat(8, 1), kind=kind)
    for eighths in range(1, 8):
        with pytest.raises(DataError, match=r"(is cut off|can be read)"):
            audio.DecodeAudio().map({"audio": whole[: len(whole) * eighths // 8]})


def test_what_is_no_sound(tmp_path):
    nan = NOISE.copy()
    nan[0, 7] = np.nan
    faults = {
        b"": "is empty",
        encode(NOISE[:, :0]): "holds no samples",
        b"plain text": "is not a sound file",
        b"RIFF": "can be read: Format not recognised",
        encode(nan, subtype="FLOAT"): "not finite",
        encode(NOISE, rate=10): "at 10 Hz: not a sound",
        encode(np.zeros((1, 48_000), np.float32)): "lasts 3 s, over the limit of 2 s",
        str(tmp_path / "none.wav"): "no such file",
        str(tmp_path): "no such file",
        7: "not a path",
    }
    for value, reason in faults.items():
        with pytest.raises(DataError, match=reason):
            audio.DecodeAudio(max_seconds=2).map({"audio": value})


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_damaged_files_are_refused_or_read(kind):
    whole = encode(NOISE, kind=kind)
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(200):
        bad = bytearray(whole[: rng.integers(len(whole))] if trial % 2 else whole)
        for _ in range(0 if trial % 2 else rng.integers(1, 8)):
            bad[rng.integers(min(len(bad), 300 if trial % 4 else len(bad)))] = rng.integers(256)
        try:
            out = audio.DecodeAudio().map({"audio": bytes(bad)})
        except DataError as error:
            assert str(error).startswith("field 'audio': ")
            refused += 1
        else:
            assert out["audio"].dtype == np.float32 and out["audio"].ndim == 2
            assert out["audio"].size and np.isfinite(out["audio"]).all()
            assert kind == "MP3" or not trial % 2, f"cut to {len(bad)} bytes and not noticed"
    assert refused >= (50 if kind == "MP3" else 100)


def test_random_clips_stay_within_their_part():
    x = np.arange(10_000, dtype=np.float32)[None].repeat(2, 0)
    clip = audio.RandomClip(0.1, within=(0.0, 0.7))
    starts = []
    for seed in range(300):
        out = clip.random_map(sound(x), np.random.default_rng(seed))
        assert out["audio"].shape == (2, 1600) and out["audio_rate"] == 16_000
        starts.append(int(out["audio"][0, 0]))
        assert out["audio"][1, -1] == starts[-1] + 1599
    assert min(starts) < 200 and 5200 < max(starts) <= 5400  # 7000 - 1600
    held = audio.RandomClip(1.0, within=(0.7, 1.0)).random_map(sound(x), np.random.default_rng(0))
    assert held["audio"][0].tolist() == list(range(7000, 10_000))  # shorter than asked: all of it
    with pytest.raises(DataError, match="no samples within"):
        audio.RandomClip(1.0, (0.1, 0.2)).random_map(sound(x[:, :3]), np.random.default_rng(0))
    for bad in ((0.5, 0.5), (0.6, 0.2), (-0.1, 1), (0, 1.1)):
        with pytest.raises(ConfigError):
            audio.RandomClip(1.0, bad)


def test_uniform_clips_are_upstreams():
    def starts(seconds, **options):
        x = np.arange(int(seconds * 16_000), dtype=np.float32)[None]
        out = audio.UniformClips(**options).map(sound(x))["audio"]
        return out[:, 0, 0].tolist(), out.shape

    assert starts(5) == ([0, 24_000, 48_000], (3, 1, 32_000))
    assert starts(10, count=5) == ([0, 32_000, 64_000, 96_000, 128_000], (5, 1, 32_000))
    assert starts(0.5) == ([0, 0, 0], (3, 1, 8000))
    assert starts(2.00025, count=4)[0] == [0, 1, 2, 3]  # room for 4, less a float
    assert starts(5, count=1)[0] == [0]
    assert starts(10, within=(0.7, 1.0))[0] == [112_000, 120_000, 128_000]
    x = np.ones(
        (1, 48_000), np.float32
    )  # upstream takes each mean from overlapping views, in place
    clips = audio.UniformClips(2, 2.0, compat=True).map(sound(x))["audio"]
    assert np.abs(clips[0]).max() == 0 and clips[1, 0, 0] == -0.5 and clips[1, 0, -1] == 0.5
    assert x.min() == 1
    mel = audio.LogMel().map(audio.UniformClips(3, 2.0).map(sound(NOISE.repeat(10, 1))))["audio"]
    assert mel.shape == (3, 128, 204, 1)


def test_pickles():
    steps = [
        audio.DecodeAudio(rate=8000),
        audio.RandomClip(2.0),
        audio.UniformClips(),
        audio.LogMel(),
    ]
    assert pickle.loads(pickle.dumps(steps)) == steps
