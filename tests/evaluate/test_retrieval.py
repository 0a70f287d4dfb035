import numpy as np
import pytest

from bind.evaluate import held_out, retrieval
from bind.evaluate.held_out import Views

rng = np.random.default_rng(0)


def test_recall_counts_a_hit_by_label_and_chance_by_counting():
    gallery = np.eye(3, dtype=np.float32)
    queries = np.array([[9.0, 1, 0], [0, 0.1, 0.2], [0, 5, 1]])
    value, chance = retrieval.recall_at_1(queries, gallery, ["a", "c", "c"], ["a", "b", "c"])
    assert value == pytest.approx(2 / 3) and chance == pytest.approx(1 / 3)
    _, chance = retrieval.recall_at_1(queries, gallery, ["a", "b", "b"], ["a", "b", "b"])
    assert chance == pytest.approx((1 + 2 + 2) / 9)


def test_length_does_not_matter_only_direction():
    gallery = np.array([[100.0, 0], [0.5, 0.5]])
    assert retrieval.recall_at_1(np.array([[1.0, 1.0]]), gallery, ["b"], ["a", "b"])[0] == 1


def test_zero_shot_averages_the_texts_of_a_class():
    texts = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    labels = ["ab", "ab", "c"]
    x = np.array([[1.0, 1, 0.1], [0.1, 0, 1]])
    assert retrieval.zero_shot(x, ["ab", "c"], texts, labels) == (1.0, 0.5)
    assert retrieval.zero_shot(x, ["c", "ab"], texts, labels)[0] == 0


def test_random_embeddings_score_at_chance():
    z = rng.normal(size=(2000, 8))
    labels = [str(i % 10) for i in range(2000)]
    value, chance = retrieval.recall_at_1(z, rng.normal(size=(2000, 8)), labels, labels)
    assert chance == pytest.approx(0.1) and abs(value - chance) < 0.03


def test_the_table_has_every_ordered_pair_and_says_what_was_trained():
    z = {name: np.eye(2, dtype=np.float32) for name in ("vision", "depth", "text")}
    rows = held_out.table(
        {"depth": Views({}, ["a", "b"], z)}, [("vision", "depth"), ("vision", "text")]
    )
    trained = {(r["from"], r["to"]): r["trained"] for r in rows}
    assert len(trained) == 6
    assert trained["depth", "text"] is trained["text", "depth"] is False
    assert all(v for k, v in trained.items() if set(k) != {"depth", "text"})
    assert {r["value"] for r in rows} == {1.0}
    assert [r["metric"] for r in rows if (r["from"], r["to"]) == ("depth", "text")] == [
        "retrieval R@1", "zero-shot top-1",
    ]  # fmt: skip


def test_embedding_in_padded_batches_changes_nothing_and_keeps_one_shape():
    shapes = set()

    def encode(batch):
        shapes.update(x.shape for x in batch.values())
        return {name: x * 2 for name, x in batch.items()}

    x = rng.normal(size=(7, 3))
    out = held_out.embed(encode, {"vision": x}, batch_size=3)
    np.testing.assert_array_equal(out["vision"], 2 * x)
    assert shapes == {(3, 3)}
