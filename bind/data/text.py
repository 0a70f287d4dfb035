"""Captions and tokens. A tokenizer is a transform of a text into i32[length].

[PickCaption(), Tokenize("tokenizer.model", length=77)]
"""

import dataclasses
import functools
import os

import numpy as np
import sentencepiece
from grain import transforms

from bind.data.records import Transform, field, where
from bind.errors import ConfigError, DataError


def _text(record: dict, key: str, value) -> str:
    """`value` as str: shards and TFDS give UTF-8 bytes. Raises DataError if it is neither."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(where(record, key), f"is not UTF-8: {error}") from error
    if not isinstance(value, str):
        kind = type(value).__name__
        raise DataError(where(record, key), f"holds {kind}, not a text")
    return str(value)


def _captions(record: dict, key: str) -> list:
    """The captions in a field: its list, or its one text. Raises DataError if it has none."""
    value = field(record, key)
    value = [value] if isinstance(value, str | bytes) else value
    if not isinstance(value, list | tuple | np.ndarray) or not len(value):
        reason = f"holds {value!r:.40}, not a text or a list of texts"
        raise DataError(where(record, key), reason)
    return list(value)


@dataclasses.dataclass(frozen=True)
class FirstCaption(Transform):
    """The first of a list of captions; a single one stays as it is. Gives str."""

    key: str = "text"
    _: dataclasses.KW_ONLY
    to: str | None = None

    def apply(self, record: dict) -> str:
        return _text(record, self.key, _captions(record, self.key)[0])


@dataclasses.dataclass(frozen=True)
class PickCaption(transforms.RandomMap):
    """One of a list of captions, each as likely; a single one stays as it is. Gives str."""

    key: str = "text"
    _: dataclasses.KW_ONLY
    to: str | None = None

    def random_map(self, record: dict, rng: np.random.Generator) -> dict:
        captions = _captions(record, self.key)
        text = _text(record, self.key, captions[int(rng.integers(len(captions)))])
        return {**record, self.to or self.key: text}


@functools.lru_cache(maxsize=4)
def _processor(path: str, written: int) -> sentencepiece.SentencePieceProcessor:
    """Loaded once in each process; `written` is there so that a new file is loaded anew."""
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=path)
    except (OSError, RuntimeError) as error:
        reason = f"is not a sentencepiece model: {error}"
        raise DataError(path, reason, "give the tokenizer.model of the text tower") from error
    if model.eos_id() < 0:
        raise DataError(path, "has no end-of-text token", "train it with eos_id >= 0")
    return model


@dataclasses.dataclass(frozen=True)
class Tokenize(Transform):
    """A text to i32[length] by a sentencepiece model: [bos] + ids + [eos], then `pad`.

    A long text is cut so that eos stays; a model without bos gets none. The model is a file, loaded
    on first use in each process. Raises DataError for a missing or damaged model and for what is no
    text.
    """

    model_path: str
    length: int = 77
    _: dataclasses.KW_ONLY
    key: str = "text"
    to: str | None = None
    pad: int = 0

    def __post_init__(self):
        if self.length < 2:
            raise ConfigError("Tokenize.length", f"is {self.length}", "bos and eos need 2")

    def apply(self, record: dict) -> np.ndarray:
        path = os.fspath(self.model_path)
        if not os.path.isfile(path):
            raise DataError(path, "no such file", "give the path of a sentencepiece model")
        model = _processor(path, os.stat(path).st_mtime_ns)
        text = _text(record, self.key, field(record, self.key))
        try:
            ids = model.encode(text)
        except (UnicodeError, RuntimeError) as error:
            raise DataError(where(record, self.key), f"{error}") from error
        start = [model.bos_id()] if model.bos_id() >= 0 else []
        ids = [*[*start, *ids][: self.length - 1], model.eos_id()]
        tokens = np.full(self.length, self.pad, np.int32)
        tokens[: len(ids)] = ids
        return tokens
