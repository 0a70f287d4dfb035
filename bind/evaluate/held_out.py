"""What a contrastive model learned: every pair of modalities, trained or not, on unseen data."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bind.data.pipeline import DAMAGED, Batches, Stream
from bind.evaluate import retrieval


class Views(NamedTuple):
    """The held-out set of one stream: what the model takes, the labels, the embeddings."""

    inputs: dict[str, np.ndarray]
    labels: list[str]
    embeddings: dict[str, np.ndarray]


def collect(stream: Stream, views: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """`views` random but fixed cuts of each record: ({modality: [N * views, ...]}, labels)."""
    rows = len(stream.source)
    batches = Batches([stream], batch_size=rows, seed=0, threads=1)
    try:
        parts = [next(batches) for _ in range(views)]
    finally:
        batches.close()
    merged = {
        name: np.concatenate([p[name] for p in parts]) for name in parts[0] if name != DAMAGED
    }
    labels = [x.decode() if isinstance(x, bytes) else str(x) for x in merged.pop("label")]
    return merged, labels


def embed(
    encode: Callable, inputs: Mapping[str, np.ndarray], batch_size: int
) -> dict[str, np.ndarray]:
    """{modality: f32[N, D]} by `encode({modality: rows}) -> {modality: [rows, D]}` on batches of
    one shape.
    """
    out = {}
    for name, x in inputs.items():
        full = -(-len(x) // batch_size) * batch_size
        padded = np.concatenate([x, np.repeat(x[-1:], full - len(x), axis=0)])
        parts = [
            np.asarray(encode({name: padded[i : i + batch_size]})[name])
            for i in range(0, full, batch_size)
        ]
        out[name] = np.concatenate(parts)[: len(x)]
    return out


def table(views: Mapping[str, Views], trained: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """One row per ordered pair of modalities that a held-out set has.

    Retrieval is R@1 by label. Where one side is text there is also zero-shot classification, each
    class described by all its texts. `trained` says whether any training batch ever paired the two.
    """
    paired = {frozenset(pair) for pair in trained}
    rows = []
    for name, (_, labels, z) in views.items():
        for a in z:
            for b in z:
                if a == b:
                    continue
                value, chance = retrieval.recall_at_1(z[a], z[b], labels, labels)
                row = {"set": name, "from": a, "to": b, "trained": frozenset((a, b)) in paired}
                rows.append({**row, "metric": "retrieval R@1", "value": value, "chance": chance})
                if b == "text":
                    value, chance = retrieval.zero_shot(z[a], labels, z[b], labels)
                    rows.append(
                        {**row, "metric": "zero-shot top-1", "value": value, "chance": chance}
                    )
    return rows
