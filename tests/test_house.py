"""The architecture, kept by reading the code: who imports whom, what is banned, what is too long.

A rule that fails names the file and line. Loosening a table is a decision; say why in the commit.
"""

import ast
import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import list as listing

ROOT = Path(__file__).parents[1]

TOP = {
    "setup.cfg", "bind", "llava_jax", "configs", "launch", "tests", "notebooks",
    "README.md", "LICENSE", "Makefile", "pyproject.toml", ".ci", ".gitignore", ".ruff.toml",
}  # fmt: skip

# What the modules under a path may import of ours. Arrows only point down; wings stay apart.
INSIDE = {
    "bind/nn": {"bind.nn"},
    "bind/models": {"bind.nn", "bind.models"},
    "bind/data": {"bind.data", "bind.errors"},
    "bind/ckpt": {"bind.ckpt", "bind.errors", "bind.tree"},
    "bind/evaluate": {"bind.evaluate", "bind.data", "bind.errors"},
    "configs": set(),
}
OURS = ("bind", "llava_jax", "configs", "launch")

# And of others, beside the standard library; a path that is not here may import what it needs...
OUTSIDE = {
    "bind/nn": {"jax", "flax", "einops"},
    "bind/models": {"jax", "flax", "einops"},
    "configs": {"ml_collections"},
}

# ... but never these.
FORBIDDEN = {
    "": {"torch", "tensorflow", "transformers", "pickle"},
    "bind": {"llava_jax", "configs"},
    "bind/data": {"jax", "flax", "optax", "orbax"},
    "llava_jax": {"configs"},
}

# Files over 300 lines: {path: (ceiling, reason)}. Files only ever leave this table.
LONG_FILES = {
    "bind/ckpt/store.py": (325, "one class: its order of writes is the guarantee, read as one"),
}
LINES, FUNCTION, MAIN = 300, 60, 90


def tracked() -> list[str]:
    """Paths of the repository: those of git, else what lies here and is no leftover of a build."""
    listed = None
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        listed = [name for name in done.stdout.splitlines() if (ROOT / name).exists()]
    if listed:
        return listed
    leftovers = {".venv", ".git", "build", "dist", "runs", "out", "__pycache__"}
    files = [p.relative_to(ROOT) for p in ROOT.rglob("*") if p.is_file()]
    hidden = (".pytest_cache", ".ruff_cache", ".ipynb_checkpoints")
    return [
        str(p)
        for p in files
        if not leftovers & set(p.parts) and not {*hidden} & set(p.parts)
        if not any(part.endswith((".egg-info", ".pyc")) for part in p.parts)
    ]


FILES = tracked()
PYTHON = [name for name in FILES if name.endswith(".py")]
CODE = [name for name in PYTHON if not name.startswith("tests/")]
TREES = {name: ast.parse((ROOT / name).read_text("utf-8"), name) for name in PYTHON}


def under(name: str, folder: str) -> bool:
    """Whether a module or path is another one or inside it."""
    return not folder or name == folder or name.startswith((f"{folder}/", f"{folder}."))


def imports(tree: ast.Module, name: str):
    """(line, dotted name) of everything a file imports anywhere; `from a import b` as a.b."""
    package = name.removesuffix(".py").split("/")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: -node.level], node.module] if node.level else [node.module]
            base = ".".join(part for part in base if part)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def import_faults(name: str, tree: ast.Module) -> list[str]:
    """Every import of a file that the tables above do not allow."""
    faults = []
    for line, module in imports(tree, name):
        ours = any(under(module, root) for root in OURS)
        free = module.split(".")[0] in sys.stdlib_module_names
        table = INSIDE if ours else OUTSIDE
        wrong = under(module, "launch") and not under(name, "launch")
        for folder, good in table.items():
            wrong |= under(name, folder) and not free and not any(under(module, m) for m in good)
        for folder, bad in FORBIDDEN.items():
            wrong |= under(name, folder) and any(under(module, m) for m in bad)
        if wrong:
            faults.append(f"{name}:{line} imports {module}")
    return faults


def habits(name: str, tree: ast.Module) -> list[str]:
    """eval, exec, bare excepts and silent ones."""
    faults = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("eval", "exec"):
                faults.append(f"{name}:{node.lineno} calls {node.func.id}")
        elif isinstance(node, ast.ExceptHandler):
            if node.type is None:
                faults.append(f"{name}:{node.lineno} has a bare except")
            if all(isinstance(part, ast.Pass) for part in node.body):
                faults.append(f"{name}:{node.lineno} swallows an exception")
    return faults


def long_functions(name: str, tree: ast.Module) -> list[str]:
    faults = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            most = MAIN if name.startswith("launch/") and node.name == "main" else FUNCTION
            length = node.end_lineno - node.lineno + 1
            if length > most:
                faults.append(f"{name}:{node.lineno} {node.name} has {length} lines, over {most}")
    return faults


def over(rule, names=CODE) -> list[str]:
    return [fault for name in names for fault in rule(name, TREES[name])]


def test_imports_point_only_downwards():
    assert over(import_faults) == []


def test_no_eval_no_pickle_no_silent_exceptions():
    assert over(habits) == []


def test_functions_are_short():
    assert over(long_functions) == []


def test_files_are_short():
    faults = []
    for name in CODE:
        length = len((ROOT / name).read_text("utf-8").splitlines())
        most, _ = LONG_FILES.get(name, (LINES, ""))
        if length > most:
            faults.append(f"{name} has {length} lines, over {most}")
        if name in LONG_FILES and length <= LINES:
            faults.append(f"{name} is short again: take it out of LONG_FILES")
    assert faults + [f"{name} is gone" for name in LONG_FILES if name not in CODE] == []


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("bind/task.py", "import llava_jax.model", "imports llava_jax.model"),
        ("bind/x.py", "def f():\n    from launch import cli", "x.py:2 imports launch.cli"),
        ("bind/nn/x.py", "from bind.models import tower", "imports bind.models.tower"),
        ("bind/nn/x.py", "from ..models import tower", "imports bind.models.tower"),
        ("bind/nn/x.py", "from bind import errors", "imports bind.errors"),
        ("bind/models/x.py", "import numpy as np", "imports numpy"),
        ("bind/data/x.py", "import jax.numpy as jnp", "imports jax.numpy"),
        ("bind/data/samples/x.py", "import jax", "imports jax"),
        ("bind/ckpt/x.py", "from bind.models import tower", "imports bind.models.tower"),
        ("bind/evaluate/x.py", "from bind import zoo", "imports bind.zoo"),
        ("configs/x.py", "import bind", "imports bind"),
        ("llava_jax/x.py", "import torch", "imports torch"),
        ("notebooks/x.py", "from launch.cli import run", "imports launch.cli.run"),
        ("launch/x.py", "import pickle", "imports pickle"),
    ],
)
def test_a_forbidden_import_is_found(name, code, says):
    (fault,) = import_faults(name, ast.parse(code))
    assert fault.endswith(says)


def test_a_forbidden_habit_is_found():
    code = "try:\n    eval('1')\nexcept:\n    pass\ntry:\n    x()\nexcept OSError:\n    pass\n"
    lines = [fault.split(" ", 1)[0] for fault in habits("x.py", ast.parse(code))]
    assert sorted(lines) == ["x.py:2", "x.py:3", "x.py:3", "x.py:7"]
    long = ast.parse("def main():\n" + "    x = 1\n" * 89)
    assert long_functions("bind/x.py", long) and not long_functions("launch/x.py", long)


def test_the_top_level_is_the_prescribed_one():
    assert {name.split("/")[0] for name in FILES} - TOP == set()
    assert (ROOT / "bind/py.typed").exists() and (ROOT / "llava_jax/py.typed").exists()
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 3


def test_the_distribution_is_described_as_prescribed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["name"] == "bind-jax"
    assert setup["options"]["python_requires"] == ">=3.11"
    assert setup["options"]["packages"] == "find:"
    assert setup["options.packages.find"]["include"].split() == ["bind*", "llava_jax*"]
    needs = setup["options"]["install_requires"].lower()
    assert not any(name in needs.split() for name in ("torch", "tensorflow", "transformers"))


def test_import_bind_is_light_and_is_ours():
    heavy = ("tensorflow", "torch", "transformers", "grain", "orbax", "tensorflow_datasets")
    code = (
        "import sys, bind; print(bind.__file__);"
        f"print(*[name for name in {heavy!r} if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    file, *loaded = done.stdout.split()
    assert Path(file).resolve() == ROOT / "bind" / "__init__.py" and loaded == []


def configs():
    return [Path(name) for name in FILES if Path(name).match("configs/[!_]*.py")]


def test_every_config_builds_in_each_variant_and_is_locked():
    assert configs()
    for path in configs():
        about, variants = listing.outline(ROOT / path)
        assert about and "tiny" in variants, path
        for variant in variants:
            config = listing.load_config(ROOT / path, variant)
            assert config.is_locked, f"{path}:{variant}"
