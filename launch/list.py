"""What there is: models, data and configs; and the parameter paths of a model.

  python -m launch.list
  python -m launch.list --paths imagebind_demo                     # every path, dtype and shape
  python -m launch.list --paths imagebind_demo --match '(vision|text)/projection/.*'   # marked
  python -m launch.list --json                                     # as one JSON object

--match takes a regex as `config.trainable` does: it must match a whole path. What it matches
learns, the rest is frozen. Nothing is downloaded and no accelerator is touched: parameters are
counted by shape.
"""

import ast
import importlib.util
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import flags

from bind import tree, zoo
from bind.data import samples, tables
from bind.errors import ConfigError
from bind.models.imagebind import example_inputs
from launch import cli

CONFIGS = Path(__file__).parents[1] / "configs"
WIDTH = 100
SHOWN = ("task", "model", "steps", "batch_size")  # of a config
CREDIT = {"author", "licence", "source"}  # fields of every sample, not worth a column


def param_shapes(name: str) -> dict:
    """The parameters of a model as ShapeDtypeStructs. Raises: ConfigError for an unknown one."""
    entry = zoo.lookup(name)
    model = entry.build(inputs=entry.inputs)
    return jax.eval_shape(model.init, jax.random.key(0), example_inputs(model))["params"]


def models() -> list[dict]:
    """The rows of the zoo, with their parameters counted."""
    rows = []
    for name, entry in zoo.ZOO.items():
        shapes = param_shapes(name)
        towers = {part: tree.size(sub) for part, sub in shapes.items()}
        rows.append(
            {
                "name": name,
                "about": entry.about,
                "modalities": {m: repr(how) for m, how in entry.inputs.items()},
                "parameters": tree.size(shapes),
                "parameters_of": towers,
                "source": entry.source,
                "licence": entry.licence,
            }
        )
    return rows


def sample_data() -> list[dict]:
    """The manifests shipped in bind/data/samples, with the number of records and their fields."""
    rows = []
    for path in sorted(samples.FOLDER.glob("*.jsonl")):
        with open(path, encoding="utf-8") as file:
            records = [json.loads(line) for line in file if line.strip()]
        row = {"name": path.stem, "records": len(records)}
        row["labels"] = len({record["label"] for record in records if "label" in record})
        row["fields"] = list(dict.fromkeys(field for record in records for field in record))
        rows.append(row)
    return rows


def first_line(doc: str | None) -> str:
    """The first line of a docstring, or nothing."""
    return inspect.cleandoc(doc).partition("\n")[0] if doc else ""


def sources() -> list[dict]:
    """The kinds a config's `source` may be, with their arguments."""
    shipped = ", ".join(row["name"] for row in sample_data())
    rows = []
    for kind, make in tables.SOURCES.items():
        about = first_line(make.__doc__) or f"The sample data by name: {shipped}."
        arguments = [
            name if p.default is p.empty else f"{name}={p.default!r}"
            for name, p in inspect.signature(make).parameters.items()
        ]
        rows.append({"kind": kind, "about": about, "arguments": arguments})
    return rows


def load_config(path: Path, variant: str = ""):
    """The ConfigDict of configs/NAME.py:variant. Raises: whatever the file does."""
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant) if variant else module.get_config()


def outline(path: Path) -> tuple[str, list[str]]:
    """(first line of the docstring, variants) of a config file.

    The variants are what the docstring of its get_config puts in double quotes, and tiny.
    """
    try:
        module = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, ValueError):
        return "", [""]  # loading it says what is wrong
    docs = [
        ast.get_docstring(node) or ""
        for node in module.body
        if isinstance(node, ast.FunctionDef) and node.name == "get_config"
    ]
    quoted = re.findall(r'"([^"\s]*)"', " ".join(docs))
    return first_line(ast.get_docstring(module)), list(dict.fromkeys(["", *quoted, "tiny"]))


def configs(folder: Path | None = None) -> list[dict]:
    """Every config with its variants; one that does not load has the reason as its `error`."""
    rows = []
    for path in sorted((folder or CONFIGS).glob("[!_]*.py")):
        about, variants = outline(path)
        row = {"file": f"{path.parent.name}/{path.name}", "about": about, "variants": []}
        for variant in variants:
            entry = {"variant": variant}
            try:
                config = load_config(path, variant)
                entry |= {name: config[name] for name in SHOWN if name in config}
            except Exception as error:  # a config is a program: it may fail in any way
                entry["error"] = f"{type(error).__name__}: {error}"
            row["variants"].append(entry)
        rows.append(row)
    return rows


def matched(paths: dict, regex: str | None) -> list[dict]:
    """A row per parameter, with `learns` if there is a regex.

    Raises: ConfigError for a regex that is none, or matches nothing.
    """
    rows = [
        {"path": path, "dtype": str(leaf.dtype), "shape": list(leaf.shape), "size": tree.size(leaf)}
        for path, leaf in paths.items()
    ]
    if regex is None:
        return rows
    try:
        wanted = tree.matcher(regex)
    except re.error as error:
        raise ConfigError(f"--match {regex!r}", f"is not a regex: {error}") from error
    for row in rows:
        row["learns"] = wanted(row["path"])
    if not any(row["learns"] for row in rows):
        part = [row["path"] for row in rows if re.search(regex, row["path"])]
        hint = f"it must match a whole path, such as {rows[0]['path']}"
        if part:
            hint = f"it matches a part of {part[0]}; it must match the whole, as .*({regex}).* does"
        raise ConfigError(f"--match {regex!r}", "matches no parameter", hint)
    return rows


def totals(rows: list[dict]) -> dict:
    """Parameter counts over all rows: all of them, and those that learn and do not."""
    out = {"parameters": sum(row["size"] for row in rows)}
    if "learns" in rows[0]:
        out["learn"] = sum(row["size"] for row in rows if row["learns"])
        out["frozen"] = out["parameters"] - out["learn"]
    return out


def show_paths(name: str, shapes: dict, rows: list[dict]) -> Iterator[str]:
    """Paths in columns; `*` marks what learns."""
    wide = max(len(row["path"]) for row in rows)
    for row, line in zip(rows, tree.describe(shapes), strict=True):
        path, _, what = line.partition("  ")
        mark = ("* " if row["learns"] else "  ") if "learns" in row else ""
        yield f"{mark}{path:<{wide}}  {what}"
    counts = totals(rows)
    yield ""
    yield f"{name}: {counts['parameters']:,} parameters in {len(rows)} arrays"
    if "learn" in counts:
        count = sum(row["learns"] for row in rows)
        share = counts["learn"] / counts["parameters"]
        yield f"  learn   {counts['learn']:>14,}  in {count} arrays, marked * ({share:.1%})"
        yield f"  frozen  {counts['frozen']:>14,}  in {len(rows) - count} arrays"


def pair(name: str, value: str, wide: int = 12, indent: int = 4) -> str:
    """`name  value`, the value wrapped under itself."""
    start = f"{'':{indent}}{name:<{wide}}"
    return textwrap.fill(value, WIDTH, initial_indent=start, subsequent_indent=" " * len(start))


def show_models(rows: list[dict]) -> Iterator[str]:
    yield "Models"
    for row in rows:
        parts = ", ".join(f"{part} {count:,}" for part, count in row["parameters_of"].items())
        yield f"  {row['name']}"
        yield pair("about", row["about"])
        yield pair("modalities", ", ".join(row["modalities"]))
        yield pair("parameters", f"{row['parameters']:,} ({parts})")
        yield pair("source", row["source"])
        yield pair("licence", row["licence"])
    yield ""
    yield '  model, params = bind.load(NAME, "runs/...")'
    yield "  python -m launch.list --paths NAME"


def show_data(data: list[dict], kinds: list[dict]) -> Iterator[str]:
    yield "Sample data, in bind/data/samples (authors and licences in its CREDITS.md)"
    for row in data:
        fields = ", ".join(field for field in row["fields"] if field not in CREDIT)
        yield pair(row["name"], f"{row['records']:>3} records, {row['labels']:>2} labels", 9, 2)
        yield pair("", fields, 9, 2)
    yield ""
    yield '  in a config   "source": {"kind": "samples", "name": "photos"}'
    yield "  in Python     from bind.data.tables import make_source"
    yield '                make_source("photos", {"kind": "samples", "name": "photos"})[0]'
    yield ""
    yield 'Sources: the "kind" of a config\'s `source`, and its arguments'
    for row in kinds:
        yield pair(row["kind"], row["about"], 9, 2)
        yield pair("", ", ".join(row["arguments"]), 9, 2)


def show_configs(rows: list[dict]) -> Iterator[str]:
    yield "Configs"
    for row in rows:
        yield pair(row["file"], row["about"], max(20, len(row["file"]) + 2), 2)
        for entry in row["variants"]:
            name = f":{entry['variant']}" if entry["variant"] else "(plain)"
            what = ", ".join(f"{k} {v}" for k, v in entry.items() if k != "variant")
            yield pair(name, f"FAILS: {entry['error']}" if "error" in entry else what, 18)
    yield ""
    yield "  python -m launch.train --config FILE:VARIANT --workdir runs/NAME"


def answer(model: str | None = None, match: str | None = None) -> tuple[dict, Iterator[str]]:
    """(everything as one dict, the same as lines). With `model` only that one's paths."""
    if match is not None and not model:
        raise ConfigError("--match", "needs a model", "add --paths MODEL")
    if model:
        shapes = param_shapes(model)
        rows = matched(tree.paths(shapes), match)
        found = {"model": model, "match": match, "paths": rows, "totals": totals(rows)}
        return found, show_paths(model, shapes, rows)
    found = {"models": models(), "data": sample_data()}
    found |= {"sources": sources(), "configs": configs()}
    parts = (
        show_models(found["models"]),
        show_data(found["data"], found["sources"]),
        show_configs(found["configs"]),
    )
    return found, (line for part in parts for line in [*part, ""])


def main() -> None:
    jax.config.update("jax_platforms", "cpu")  # a listing must not take the accelerators of a job
    found, lines = answer(flags.FLAGS.paths, flags.FLAGS.match)
    print(json.dumps(found, indent=2) if flags.FLAGS.json else "\n".join(lines).rstrip())


if __name__ == "__main__":
    flags.DEFINE_string("paths", None, "A model whose parameter paths to print instead.")
    flags.DEFINE_string("match", None, "With --paths: what learns, as in config.trainable.")
    flags.DEFINE_bool("json", False, "One JSON object instead of text.")
    cli.run(main)
