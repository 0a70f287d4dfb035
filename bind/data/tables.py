"""Sources and streams from a config: the words a config may use, and what each stands for."""

import difflib
from collections.abc import Mapping
from typing import Any

from bind.data import inputs as inputs_
from bind.data import shards, sources
from bind.data.pipeline import Stream
from bind.data.samples import FOLDER
from bind.errors import ConfigError


def _samples(name: str, files=("image", "audio", "depth", "imu")):
    return sources.JsonLines(FOLDER / f"{name}.jsonl", files=files)


# kind -> constructor; the other fields of a config's `source` are its arguments.
SOURCES = {
    "samples": _samples,
    "jsonl": sources.JsonLines,
    "csv": sources.Csv,
    "parquet": shards.Parquet,
    "tar": shards.TarShards,
    "tfds": shards.Tfds,
    "memory": sources.Memory,
}


def known(where: str, given: Mapping, allowed) -> dict:
    """`given` as a plain dict. Raises: ConfigError for a field that is not allowed, with the
    nearest one.
    """
    for name in given:
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, 1)
            hint = (
                f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(sorted(allowed))}"
            )
            raise ConfigError(f"{where}.{name}", "is not a field", hint)
    return dict(given)


def make_source(where: str, config: Mapping) -> Any:
    """The source of a config {"kind": ..., arguments, "where": {field: value or values}}.

    Raises: ConfigError for an unknown kind or argument; DataError for data that cannot be read.
    """
    arguments = dict(config)
    kind, chosen = arguments.pop("kind", None), arguments.pop("where", {})
    if kind not in SOURCES:
        raise ConfigError(f"{where}.kind", f"is {kind!r}", f"one of {', '.join(sorted(SOURCES))}")
    try:
        source = SOURCES[kind](**arguments)
    except TypeError as error:
        raise ConfigError(where, f"does not fit the kind {kind!r}: {error}") from error
    for field, values in dict(chosen).items():
        source = sources.where(source, field, *([values] if isinstance(values, str) else values))
    return source


PAIR = ("modalities", "source", "fields", "train", "test", "weight", "cache")
PART = ("region", "within", "crop", "where")


class Decoded:
    """A source behind its deterministic transforms; `keep` holds what was decoded in memory.

    A source and not part of the pipeline, so that keeping changes no random number behind it.
    """

    def __init__(self, source, steps, keep: bool):
        self.source, self.steps, self.keep = source, steps, keep
        self.records: dict[int, dict] = {}

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        index = int(index) % len(self.source)
        if index in self.records:
            return self.records[index]
        record = apply(self.steps, self.source[index])
        if self.keep:
            self.records[index] = record
        return record


def apply(steps, record: dict) -> dict:
    """One record through deterministic transforms."""
    for step in steps:
        record = step.map(record)
    return record


def make_stream(inputs: Mapping, name: str, pair: Mapping, part: str = "train") -> Stream:
    """A modality pair of a config as a stream; see configs/demo.py for every field.

    part: "train", or "test" for the held-out part, whose records keep their `label` and have every
      modality that `fields` names, not only the pair that is trained.
    """
    where = f"config.pairs.{name}"
    pair = known(where, pair, PAIR)
    cuts = known(f"{where}.{part}", pair.get(part, {}), PART)
    source = dict(pair["source"])
    if "where" in cuts:
        source["where"] = {**source.get("where", {}), **cuts.pop("where")}
    fields = dict(pair["fields"])
    names = tuple(pair["modalities"]) if part == "train" else tuple(fields)
    missing = [m for m in names if m not in fields]
    if missing:
        raise ConfigError(f"{where}.fields", f"does not say which field holds {missing[0]!r}")
    fields = {m: fields[m] for m in names}
    decode = inputs_.decoders(inputs, fields)
    finish = inputs_.finishers(
        inputs, names, train=True, keep=() if part == "train" else ("label",), **cuts
    )
    made = make_source(f"{where}.source", source)
    return Stream(
        name, Decoded(made, decode, pair.get("cache", False)), finish, pair.get("weight", 1.0)
    )
