"""Is this machine ready? One line per check and, for what is not in order, how to mend it.

  python -m launch.doctor
  python -m launch.doctor --workdir runs/mine        # and whether a run may write there
  python -m launch.doctor --distributed              # on every host: do they find each other
  python -m launch.doctor --json

ok: as it should be. note: works, but you may want to know. FAIL: something here will not run.
The exit code is 1 if a check FAILs. It starts where nothing is installed yet, and installs nothing.
"""

import importlib.metadata as metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

try:
    from absl import flags

    from launch import cli
except ImportError:  # nothing is installed yet, or a foreign `bind` is in the way: the checks tell
    flags = cli = None

ROOT = Path(__file__).resolve().parents[1]
NAME = "bind-jax"
INSTALL = "python -m pip install -e ."
GIB = 2**30
PURPOSES = {
    "tpu": "JAX on TPUs; launch.plan anywhere", "gpu": "JAX on NVIDIA GPUs",
    "parquet": "Parquet files as data", "dev": "tests and linter",
    "samples": "rebuilding bind/data/samples", "oracle": "parity tests against upstream code",
}  # fmt: skip
JOB_VARIABLES = (
    "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_JOB_ID",
    "SLURM_NTASKS", "SLURM_PROCID", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK",
    "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "MEGASCALE_COORDINATOR_ADDRESS",
)  # fmt: skip


class Finding(NamedTuple):
    check: str
    status: str  # ok, note or FAIL
    text: str
    mend: str = ""  # what to do about it, unless it is ok


Rows = Iterator[tuple]  # what a check yields: findings without the check's name


def verdict(good: bool, text: str, mend: str, otherwise: str = "note") -> tuple:
    return ("ok", text) if good else (otherwise, text, mend)


def python() -> Rows:
    text = f"{sys.version.split()[0]} in {sys.prefix}"
    mend = "3.11 or newer is needed: python3.11 -m venv .venv"
    yield verdict(sys.version_info[:2] >= (3, 11), text, mend, "FAIL")


def version(name: str) -> str:
    """The installed version, or nothing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def requirements(distribution: str, extra: str = "") -> list:
    """What a distribution needs here, or with `extra` what that adds to it; as Requirements."""
    from packaging.requirements import Requirement

    needs = list(map(Requirement, metadata.requires(distribution) or []))
    plain = [n for n in needs if n.marker is None or n.marker.evaluate({"extra": ""})]
    more = [n for n in needs if n not in plain and n.marker.evaluate({"extra": extra})]
    return more if extra else plain


def lacking(needs: list) -> list[str]:
    """Which requirements are missing or too old. Follows extras: jax[tpu] needs jax's own tpu."""
    missing = []
    for need in needs:
        have = version(need.name)
        if not have or not need.specifier.contains(have, prereleases=True):
            missing.append(f"{need.name}{need.specifier}")
        for extra in need.extras if have else ():
            missing += lacking(requirements(need.name, extra))
    return missing


def packages() -> Rows:
    if not version(NAME):
        yield "note", f"{NAME} is not installed, so versions cannot be compared", INSTALL
        return
    needs = requirements(NAME)
    missing = lacking(needs)
    if missing:
        mend = f"python -m pip install -U {' '.join(map(repr, missing))}"
        yield "FAIL", f"missing or too old: {', '.join(missing)}", mend
    have = [f"{need.name} {version(need.name)}" for need in needs if version(need.name)]
    yield "ok", ", ".join([f"{NAME} {version(NAME)}", *have])


def ours() -> Rows:
    import bind

    place = Path(bind.__file__ or "nowhere").resolve().parent
    mend = f"python -m pip uninstall bind; {INSTALL} (ours is called {NAME})"
    if not (place / "zoo.py").is_file():
        yield "FAIL", f"{place} is another package of that name", mend
    elif place != ROOT / "bind":
        yield "note", f"comes from {place}, not from this clone", INSTALL
    elif version("bind"):
        yield "note", f"ours, from {place}, but PyPI's `bind` is installed too", mend
    else:
        yield "ok", f"ours, from {place}"


def accelerator() -> tuple[str, str]:
    """(what the machine has, the extra for it), found without JAX; or nothing."""
    listed, tool = b"", shutil.which("nvidia-smi")
    if tool:  # hosts without a GPU may have it too, but then it lists none
        listed = subprocess.run([tool, "-L"], capture_output=True, timeout=60).stdout
    if b"GPU 0" in listed or Path("/dev/nvidia0").exists():
        return "an NVIDIA GPU", "gpu"
    return ("a TPU", "tpu") if Path("/dev/accel0").exists() else ("", "")


def devices() -> Rows:
    import jax

    kinds: dict = {}
    for device in jax.devices():
        kinds.setdefault((device.platform, device.device_kind), []).append(device)
    for (platform, kind), group in kinds.items():
        local = [device for device in group if device.process_index == jax.process_index()]
        try:
            memory = f", {local[0].memory_stats()['bytes_limit'] / GIB:.1f} GiB usable each"
        except Exception:  # backends raise what they like; not telling is no fault
            memory = ""
        yield "ok", f"{len(group)} x {kind} ({platform}{memory})"
    backend, asked = jax.default_backend(), os.environ.get("JAX_PLATFORMS", "")
    present, extra = accelerator() if backend == "cpu" else ("", "")
    if present and "cpu" in asked:
        yield "note", f"JAX_PLATFORMS={asked}, but there is {present}", "unset JAX_PLATFORMS"
    elif present:
        mend = f"python -m pip install -e '.[{extra}]' (or JAX_PLATFORMS=cpu, if you mean it)"
        yield "FAIL", f"only the CPU is used, but the machine has {present}", mend
    elif backend == "cpu" and version("libtpu"):
        yield "ok", "libtpu is installed, but there is no TPU here; launch.plan can use it"


def matmul() -> Rows:
    import jax
    import numpy as np

    a = np.arange(128 * 128).reshape(128, 128) % 7  # exact in bfloat16, the product in float32
    square, wrong, began = jax.jit(lambda x: x @ x.T), [], time.perf_counter()
    for device in jax.local_devices():
        if not np.array_equal(square(jax.device_put(a.astype(np.float32), device)), a @ a.T):
            wrong.append(str(device))
    text = f"a jitted product on {jax.local_device_count()} device(s) is "
    text += f"wrong on {wrong}" if wrong else f"right, {time.perf_counter() - began:.2f} s"
    yield verdict(not wrong, text, "do not train there: update the driver or replace it", "FAIL")


def host() -> Rows:
    limits = []
    for file in map(Path, ("/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/memory.max")):
        text = file.read_text().split()[0] if file.exists() else "max"
        limits.append(float(text.replace("max", "inf")))
    affinity = getattr(os, "sched_getaffinity", None)
    cores = min(len(affinity(0)) if affinity else os.cpu_count() or 1, limits[0] / 100_000)
    memory = min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), limits[1])
    text = f"{cores:g} cores, {memory / GIB:.1f} GiB of memory"
    yield verdict(memory >= 4 * GIB, text, "enough for :tiny configs only")
    free = shutil.disk_usage(".").free
    text = f"{free / GIB:.1f} GiB free in {Path.cwd()}"
    yield verdict(free >= 2 * GIB, text, "checkpoints need room: use a --workdir on another disk")


def extras() -> Rows:
    here = accelerator()[1]
    known = metadata.metadata(NAME).get_all("Provides-Extra") or [] if version(NAME) else []
    for extra in known:
        text = f"[{extra}] {PURPOSES.get(extra, 'optional')}"
        missing = ", ".join(lacking(requirements(NAME, extra)))
        if not missing:
            yield "ok", f"{text}: installed"
        elif extra in ("tpu", "gpu") and extra != here:
            yield "ok", f"{text}: not installed, no such device here"
        else:
            mend = f"if you want it: python -m pip install -e '.[{extra}]'"
            yield "note", f"{text}: no {missing}", mend


def write_fault(folder: Path) -> str:
    """Why nothing can be written in a folder (or the nearest one above that exists); or nothing."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        return f"{folder}: {error.strerror or error}"
    return ""


def cache() -> Rows:
    from launch import cli

    place = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(cli.compilation_cache())
    fault = "" if "://" in place else write_fault(Path(place))
    sizes = [path.stat().st_size for path in Path(place).rglob("*") if path.is_file()]
    text = f"not writable: {fault}" if fault else f"{place}, {sum(sizes) / 2**20:.1f} MiB"
    mend = "set JAX_COMPILATION_CACHE_DIR to a folder you may write to"
    yield verdict(not fault, text + " (none yet)" * (not fault and not sizes), mend)


def writable(folder: str) -> Rows:
    fault = "" if "://" in folder else write_fault(Path(folder))
    text = f"not writable: {fault}" if fault else f"{folder} is writable"
    text = f"{folder} is remote: not tried" if "://" in folder else text
    yield verdict(not fault, text, "choose another --workdir, or change its owner", "FAIL")


def processes() -> Rows:
    import jax

    seen = ", ".join(f"{name}={os.environ[name]}" for name in JOB_VARIABLES if name in os.environ)
    text = seen or "no sign of a job of several processes"
    mend = "if this is one process of several, pass --distributed on each host"
    yield verdict(not seen or jax.process_count() > 1, text, mend)


def frameworks() -> Rows:
    have = ", ".join(f"{name} {version(name)}" for name in ("tensorflow", "torch") if version(name))
    text = f"{have or 'no TensorFlow, no PyTorch'}: not needed, never imported here"
    yield verdict(not have, text, "nothing to do")


CHECKS = {
    "python": python, "packages": packages, "import bind": ours, "devices": devices,
    "matmul": matmul, "host": host, "extras": extras, "compile cache": cache,
    "processes": processes, "frameworks": frameworks,
}  # fmt: skip


def examine(workdir: str = "", checks=CHECKS) -> list[Finding]:
    """All findings; a check that breaks is itself one."""
    found = []
    more = {"workdir": lambda: writable(workdir)} if workdir else {}
    for name, check in (checks | more).items():
        try:
            for row in check():
                found.append(Finding(name, *row))
        except Exception as error:  # odd machines break things in odd ways
            text = " ".join(f"the check broke: {type(error).__name__}: {error}".split())
            mend = INSTALL if isinstance(error, ImportError) else "mend what it names"
            found.append(Finding(name, "FAIL", text, mend))
    return found


def show(found: list[Finding]) -> Iterator[str]:
    wide = max(len(finding.check) for finding in found)
    wrap = textwrap.TextWrapper(100, break_long_words=False, break_on_hyphens=False)
    wrap.subsequent_indent = " " * (wide + 8)
    for check, status, text, mend in found:
        wrap.initial_indent = f"{status:<4}  {check:<{wide}}  "
        yield wrap.fill(text)
        wrap.initial_indent = f"{wrap.subsequent_indent}-> "
        yield from [wrap.fill(mend)] if mend else []
    fails = sum(finding.status == "FAIL" for finding in found)
    yield f"\n{fails} of {len(found)} lines FAIL." if fails else "\nReady."


def report(workdir: str = "", as_json: bool = False) -> None:
    """Prints everything and exits, with 1 if a check FAILs."""
    found = examine(workdir)
    bad = any(finding.status == "FAIL" for finding in found)
    facts = {"ready": not bad, "checks": [finding._asdict() for finding in found]}
    print(json.dumps(facts, indent=2) if as_json else "\n".join(show(found)))
    sys.exit(int(bad))


if __name__ == "__main__":
    if cli:
        flags.DEFINE_string("workdir", "", "A folder that a run would write to.")
        flags.DEFINE_bool("json", False, "One JSON object instead of text.")
        cli.run(lambda: report(flags.FLAGS.workdir, flags.FLAGS.json))
    else:
        report(as_json="--json" in sys.argv)
