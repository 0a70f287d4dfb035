"""Captions picked fairly; tokens framed, cut and padded as the text towers expect."""

import io
import pickle

import numpy as np
import pytest
import sentencepiece

from bind.data import text
from bind.errors import ConfigError, DataError

SENTENCE = "a dog barks at the small red car while two birds sing in the rain over a lake"


def train(path, **options):
    """A model of 64 pieces, trained in a blink."""
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(rng.choice(SENTENCE.split(), 8)) for _ in range(200)]),
        model_writer=file,
        vocab_size=64,
        minloglevel=2,
        hard_vocab_limit=False,
        **options,
    )
    path.write_bytes(file.getvalue())
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return train(tmp_path_factory.mktemp("text") / "tokenizer.model")


def test_tokens_are_framed_cut_and_padded(model):
    reference = sentencepiece.SentencePieceProcessor(model_file=model)
    sentence = SENTENCE
    ids = reference.encode(sentence)
    whole = text.Tokenize(model, length=77)
    for step in (whole, pickle.loads(pickle.dumps(whole))):
        got = step.map({"text": sentence})["text"]
        assert got.dtype == np.int32 and got.shape == (77,)
        assert got.tolist() == [1, *ids, 2] + [0] * (75 - len(ids))
    cut = text.Tokenize(model, length=9, to="ids").map({"text": sentence})["ids"]
    assert cut.tolist() == [1, *ids[:7], 2]
    exact = text.Tokenize(model, length=len(ids) + 2).map({"text": sentence})["text"]
    assert exact.tolist() == [1, *ids, 2]
    assert text.Tokenize(model, 5, pad=7).map({"text": ""})["text"].tolist() == [1, 2, 7, 7, 7]
    same = text.Tokenize(model).map({"text": sentence.encode()})["text"]
    np.testing.assert_array_equal(same[: len(ids) + 2], [1, *ids, 2])
    assert text.Tokenize(model).map({"text": "日本 \0 ☃"})["text"].shape == (77,)


def test_models_without_bos_or_eos(tmp_path):
    path = train(tmp_path / "a.model", bos_id=-1)
    got = text.Tokenize(path, 4).map({"text": ""})["text"].tolist()
    assert got == [sentencepiece.SentencePieceProcessor(model_file=path).eos_id(), 0, 0, 0]
    path = train(tmp_path / "b.model", eos_id=-1)
    with pytest.raises(DataError, match=r"b\.model: has no end-of-text token"):
        text.Tokenize(path).map({"text": ""})


def test_bad_models_and_texts(tmp_path, model):
    (tmp_path / "bad.model").write_bytes(b"not a model")
    (tmp_path / "cut.model").write_bytes(open(model, "rb").read()[:100])  # noqa: SIM115
    for name in ("bad.model", "cut.model", "none.model"):
        with pytest.raises(DataError, match=name):
            text.Tokenize(str(tmp_path / name)).map({"text": "a"})
    for value in (3, ["a"], b"\xff", "\ud800", None):
        with pytest.raises(DataError, match="field 'text'"):
            text.Tokenize(model).map({"text": value})
    with pytest.raises(ConfigError):
        text.Tokenize(model, length=1)


def test_captions():
    pick, first = text.PickCaption(to="one"), text.FirstCaption()
    record = {"text": ["a", b"b", "ü"]}
    seen = [pick.random_map(record, np.random.default_rng(s))["one"] for s in range(300)]
    assert {c: seen.count(c) > 70 for c in sorted(set(seen))} == {"a": True, "b": True, "ü": True}
    assert first.map(record) == {"text": "a"} and record["text"] == ["a", b"b", "ü"]
    for value in ("a cat", b"a cat", np.array(["a cat"]), ("a cat",)):
        assert first.map({"text": value})["text"] == "a cat"
        got = pick.random_map({"text": value}, np.random.default_rng(0))["one"]
        assert got == "a cat" and type(got) is str
    for value in ([], 3, [3], {"a": 1}, [b"\xff"], None):
        for step in (first.map, lambda r: pick.random_map(r, np.random.default_rng(0))):
            with pytest.raises(DataError, match="field 'text'"):
                step({"text": value})
    assert pickle.loads(pickle.dumps([pick, first])) == [pick, first]
