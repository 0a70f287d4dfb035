"""Inertial series: shapes and files checked, gravity kept, windows where they should be."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from bind.data import imu
from bind.errors import ConfigError, DataError

SERIES = np.random.default_rng(0).normal(size=(3, 50, 6)).astype(np.float32)


def encode(save=np.savez, **arrays):
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def test_read(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", imu=SERIES, one=SERIES[1].astype(np.float64))
    np.save(tmp_path / "a.npy", SERIES[2])
    path = str(tmp_path / "a.npz")
    for index in (0, 2, "2", np.int64(1)):
        got = imu.ReadImu(to="x").map({"imu": path, "imu_index": index})["x"]
        np.testing.assert_array_equal(got, SERIES[int(index)])
        got[:] = 0  # the file's copy in memory is not the caller's
    got = imu.ReadImu(array="one").map({"imu": path})["imu"]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, SERIES[1])
    for value in (str(tmp_path / "a.npy"), (tmp_path / "a.npy").read_bytes()):
        np.testing.assert_array_equal(imu.ReadImu().map({"imu": value})["imu"], SERIES[2])
    imu.ReadImu().map({"imu": path, "imu_index": 0})
    np.savez(tmp_path / "a.npz", imu=SERIES + 1)  # written anew: read anew
    os.utime(path, ns=(0, 0))
    again = imu.ReadImu().map({"imu": path, "imu_index": 0})["imu"]
    np.testing.assert_array_equal(again, SERIES[0] + 1)


def test_what_is_no_series():
    bad = SERIES[0].copy()
    bad[7, 3] = np.inf
    objects = np.array([[None] * 6], object)
    axes = "accelerometer x y z then gyroscope x y z"
    faults = {
        encode(imu=SERIES): axes,
        encode(imu=SERIES[0].T): "transpose it",
        encode(imu=SERIES[0, :, :3]): rf"float32\[50, 3\], not .*{axes}",
        encode(imu=SERIES[0, :0]): axes,
        encode(imu=SERIES[0].astype("S4")): axes,
        encode(imu=bad): "is not finite at step 7",
        encode(imu=objects): "cannot be read|can be read",
        encode(other=SERIES): "has no array 'imu'.*it has: other",
        b"PK\x03\x04": "can be read",
        b"plain": "can be read",
        b"": "is empty",
    }
    for data, reason in faults.items():
        with pytest.raises(DataError, match=reason):
            imu.ReadImu().map({"imu": data})
    for index, reason in ((3, "it has no record 3"), (-1, "no record -1"), ("x", "whole number")):
        with pytest.raises(DataError, match=reason):
            imu.ReadImu().map({"imu": encode(imu=SERIES), "imu_index": index})
    with pytest.raises(DataError, match="must be"):
        imu.ReadImu().map({"imu": encode(imu=SERIES[0]), "imu_index": 0})
    with pytest.raises(DataError, match="not numbers"):
        imu.CenterWindow(3).map({"imu": SERIES[0].tolist()})


def test_bombs_and_damage(monkeypatch):
    monkeypatch.setattr(imu, "MAX_BYTES", 10_000)
    with pytest.raises(DataError, match="over the limit"):
        imu.ReadImu().map({"imu": encode(np.savez_compressed, imu=np.zeros((5000, 6)))})
    whole = encode(np.savez_compressed, imu=SERIES[0])
    rng = np.random.default_rng(0)
    for trial in range(200):
        bad = bytearray(whole[: rng.integers(len(whole))] if trial % 2 else whole)
        if not trial % 2:
            bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        try:
            got = imu.ReadImu().map({"imu": bytes(bad)})["imu"]
        except DataError:
            continue
        assert got.shape[1] == 6 and not trial % 2
    huge = io.BytesIO()  # a header that promises more than there is
    with zipfile.ZipFile(huge, "w") as parts:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999, 6), }"
        header = header.ljust(117) + b"\n"
        parts.writestr("imu.npy", b"\x93NUMPY\x01\x00\x76\x00" + header)
    with pytest.raises(DataError):
        imu.ReadImu().map({"imu": huge.getvalue()})


def test_resample_keeps_gravity_and_tones():
    t = np.arange(1000) / 200
    x = np.zeros((1000, 6), np.float32)
    x[:, 2] = 9.81
    x[:, 3] = np.sin(2 * np.pi * 3 * t)
    x[:, 4] = np.sin(2 * np.pi * 90 * t)
    up = imu.Resample(200, 400).map({"imu": x})["imu"]
    assert up.shape == (2000, 6) and up.dtype == np.float32 and up.flags.c_contiguous
    np.testing.assert_allclose(up[:, 2], 9.81, rtol=1e-6)
    assert (
        np.abs(up[50:-50, 3] - np.sin(2 * np.pi * 3 * np.arange(2000) / 400)[50:-50]).max() < 5e-3
    )
    down = imu.Resample(200, 100).map({"imu": x})["imu"]
    assert down.shape == (500, 6) and np.abs(down[20:-20, 4]).max() < 0.02  # 90 Hz must not alias
    np.testing.assert_allclose(down[:, 2], 9.81, rtol=1e-6)
    odd = imu.Resample(198.7, 400).map({"imu": x})["imu"]
    assert abs(len(odd) - 1000 * 400 / 198.7) <= 1
    same = imu.Resample(200, 200).map({"imu": x})["imu"]
    np.testing.assert_array_equal(same, x)
    with pytest.raises(ConfigError):
        imu.Resample(0, 100)


def test_windows():
    x = np.arange(10, dtype=np.float32)[:, None].repeat(6, 1)
    mid = imu.CenterWindow(5).map({"imu": x})["imu"]
    assert mid[:, 0].tolist() == [2, 3, 4, 5, 6]
    window = imu.RandomWindow(7, to="w")
    starts = set()
    for seed in range(60):
        got = window.random_map({"imu": x}, np.random.default_rng(seed))["w"]
        assert got.shape == (7, 6) and got[-1, 0] - got[0, 0] == 6
        starts.add(int(got[0, 0]))
    assert starts == {0, 1, 2, 3}
    for step in (imu.CenterWindow(11), imu.Resample(1, 2), imu.Standardize([0] * 6, [1] * 6)):
        with pytest.raises(DataError, match=r"(10 steps|6 channels)"):
            step.map({"imu": x if isinstance(step, imu.CenterWindow) else x[:, :5]})


def test_jitter_and_standardize():
    x = np.full((20_000, 6), 10, np.float32)
    got = imu.Jitter(0.1, 0.5).random_map({"imu": x}, np.random.default_rng(0))["imu"]
    assert got.dtype == np.float32 and (x == 10).all()
    gains = got.mean(0) / 10 - 1  # one for each channel
    assert 0.02 < np.abs(gains).mean() < 0.25 and len(np.unique(gains.round(3))) == 6
    np.testing.assert_allclose(got.std(0), 0.5, rtol=0.03)
    still = imu.Jitter(0.0, 0.0).random_map({"imu": x}, np.random.default_rng(0))["imu"]
    np.testing.assert_array_equal(still, x)
    step = imu.Standardize(mean=(1, 2, 3, 4, 5, 6), std=(1, 1, 1, 2, 2, 2))
    got = step.map({"imu": x[:1]})["imu"]
    assert got.tolist() == [[9, 8, 7, 3, 2.5, 2]] and got.dtype == np.float32
    for mean, std in (((0,) * 5, (1,) * 6), ((0,) * 6, (1, 1, 1, 1, 1, 0))):
        with pytest.raises(ConfigError):
            imu.Standardize(mean, std)
    steps = [step, imu.ReadImu(), imu.Jitter(), imu.RandomWindow(3), imu.Resample(1, 2)]
    assert pickle.loads(pickle.dumps(steps)) == steps
