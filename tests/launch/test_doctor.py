"""launch.doctor: faults are seen, named and mended; nothing on a machine can crash it."""

import importlib.metadata as metadata
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest

from launch import doctor

ROOT = Path(__file__).parents[2]


def found(check, *args):
    return [doctor.Finding("x", *row) for row in check(*args)]


def program(*args, python=(sys.executable,), **environment):
    command = [*python, "-m", "launch.doctor", *args]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def test_this_machine_is_ready_and_every_fault_has_a_remedy(tmp_path):
    report = doctor.examine(str(tmp_path))
    assert {f.check for f in report} >= {*doctor.CHECKS, "workdir"}
    assert [f for f in report if f.status == "FAIL"] == []
    assert all(f.mend for f in report if f.status != "ok")
    text = "\n".join(doctor.show(report))
    assert text.endswith("Ready.") and max(map(len, text.splitlines())) <= 100 + len(str(ROOT))


def test_a_check_that_breaks_is_a_failure_and_the_others_still_run():
    def breaks():
        yield "ok", "so far"
        raise RuntimeError("two\nlines")

    checks = {"odd": breaks, "gone": lambda: __import__("no_such_module"), "python": doctor.python}
    first, odd, gone, python = doctor.examine(checks=checks)
    assert first == ("odd", "ok", "so far", "") and python.status == "ok"
    assert odd.status == "FAIL" and "RuntimeError: two lines" in odd.text
    assert gone.status == "FAIL" and "pip install" in gone.mend


def test_the_program_says_where_it_cannot_write_and_exits_1(tmp_path):
    (tmp_path / "file").touch()
    done = program("--workdir", str(tmp_path / "file" / "run"), "--json")
    shown = json.loads(done.stdout)
    assert done.returncode == 1 and shown["ready"] is False
    failed = [row for row in shown["checks"] if row["status"] == "FAIL"]
    assert [row["check"] for row in failed] == ["workdir"] and "--workdir" in failed[0]["mend"]


def test_it_starts_where_nothing_is_installed():
    done = program(python=(sys.executable, "-S"))
    assert done.returncode == 1 and done.stderr == ""
    assert "No module named 'jax'" in done.stdout and "pip install -e ." in done.stdout


def test_versions_are_compared_with_the_floors(monkeypatch):
    assert doctor.lacking(doctor.requirements("bind-jax")) == []
    real, fakes = metadata.version, {"jax": "0.9.9", "optax": "0.2.10"}

    def version(name):
        if name == "einops":
            raise metadata.PackageNotFoundError(name)
        return fakes.get(name) or real(name)

    monkeypatch.setattr(metadata, "version", version)
    fail, rest = found(doctor.packages)
    assert fail.status == "FAIL" and rest.status == "ok"
    assert "jax>=0.10" in fail.mend and "einops>=0.8" in fail.mend and "optax" not in fail.mend

    def gone(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", gone)
    (note,) = found(doctor.packages)
    assert note.status == "note" and "pip install -e ." in note.mend


def test_a_foreign_package_named_bind_is_seen(monkeypatch, tmp_path):
    assert found(doctor.ours)[0].status in ("ok", "note")
    foreign = types.ModuleType("bind")
    foreign.__file__ = str(tmp_path / "__init__.py")
    monkeypatch.setitem(sys.modules, "bind", foreign)
    (fail,) = found(doctor.ours)
    assert fail.status == "FAIL" and "pip uninstall bind" in fail.mend
    (tmp_path / "zoo.py").touch()
    assert found(doctor.ours)[0].status == "note"


@pytest.mark.parametrize(
    ("present", "platforms", "status", "mend"),
    [
        (("an NVIDIA GPU", "gpu"), "", "FAIL", ".[gpu]"),
        (("a TPU", "tpu"), "", "FAIL", ".[tpu]"),
        (("an NVIDIA GPU", "gpu"), "cpu", "note", "unset JAX_PLATFORMS"),
        (("", ""), "", "ok", ""),
    ],
)
def test_an_accelerator_that_jax_does_not_see(monkeypatch, present, platforms, status, mend):
    monkeypatch.setattr(doctor, "accelerator", lambda: present)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    last = found(doctor.devices)[-1]
    assert last.status == status and mend in last.mend


@pytest.mark.parametrize(
    ("stats", "says"),
    [
        (None, "2 x H (gpu)"),
        ({}, "2 x H (gpu)"),
        (RuntimeError("not here"), "2 x H (gpu)"),
        ({"bytes_limit": 80 * 2**30}, "2 x H (gpu, 80.0 GiB usable each)"),
    ],
)
def test_devices_tell_their_memory_or_not(monkeypatch, stats, says):
    def memory_stats():
        if isinstance(stats, Exception):
            raise stats
        return stats

    device = types.SimpleNamespace(
        platform="gpu", device_kind="H", process_index=0, memory_stats=memory_stats
    )
    monkeypatch.setattr(jax, "devices", lambda: [device] * 2)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    (row,) = found(doctor.devices)
    assert row.text == says


def test_nvidia_smi_counts_only_if_it_lists_a_gpu(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setattr(doctor.shutil, "which", lambda name: str(tool))
    monkeypatch.setattr(doctor.Path, "exists", lambda path: False)  # no device files
    for says, extra in (("GPU 0: NVIDIA H200", "gpu"), ("No devices were found", "")):
        tool.write_text(f"#!/bin/sh\necho '{says}'\n")
        tool.chmod(0o755)
        assert doctor.accelerator()[1] == extra


def test_a_product_that_is_wrong_is_not_accepted(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:2])
    assert found(doctor.matmul)[0].status == "ok"
    monkeypatch.setattr(jax, "jit", lambda f: lambda x: f(x) + 1)
    (fail,) = found(doctor.matmul)
    assert fail.status == "FAIL" and "wrong" in fail.text


def test_little_memory_and_little_disk_are_noted(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=2**20))
    monkeypatch.setattr(doctor.os, "sysconf", lambda name: 2**14)
    assert [row.status for row in found(doctor.host)] == ["note", "note"]


def test_the_variables_of_a_job_and_an_unwritable_cache_are_noted(monkeypatch, tmp_path):
    for name in doctor.JOB_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert found(doctor.processes)[0].status == "ok"
    monkeypatch.setenv("SLURM_NTASKS", "4")
    (row,) = found(doctor.processes)
    assert row.status == "note" and "SLURM_NTASKS=4" in row.text and "--distributed" in row.mend
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file" / "xla"))
    assert found(doctor.cache)[0].status == "note"


def test_extras_name_what_is_missing(monkeypatch):
    real = metadata.version

    def version(name):
        if name in ("pyarrow", "libtpu", "torch"):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(doctor, "accelerator", lambda: ("a TPU", "tpu"))
    rows = {row.text.split("]")[0][1:]: row for row in found(doctor.extras)}
    assert set(rows) >= {"tpu", "gpu", "parquet", "dev", "samples", "oracle"}
    assert rows["parquet"].status == "note" and "pyarrow" in rows["parquet"].text
    assert rows["tpu"].status == "note" and "libtpu" in rows["tpu"].text
    assert rows["gpu"].status == "ok"


def test_frameworks_are_never_wanted(monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda name: "")
    assert found(doctor.frameworks)[0].status == "ok"
    monkeypatch.setattr(doctor, "version", lambda name: "2.0")
    (note,) = found(doctor.frameworks)
    assert note.status == "note" and "not needed" in note.text
