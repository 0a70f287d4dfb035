"""Retrieval and zero-shot classification of labelled embeddings, each with its chance level."""

from collections.abc import Sequence

import numpy as np


def unit(x: np.ndarray) -> np.ndarray:
    """x[..., D] -> unit length along the last axis."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def recall_at_1(
    queries, gallery, query_labels: Sequence, gallery_labels: Sequence
) -> tuple[float, float]:
    """How often the nearest gallery item by cosine has the query's label, and how often a random
    one has.

    queries: f32[N, D]. gallery: f32[M, D]. Ties go to the first.
    """
    same = np.asarray(query_labels)[:, None] == np.asarray(gallery_labels)[None]
    nearest = np.argmax(unit(queries) @ unit(gallery).T, axis=1)
    return float(same[np.arange(len(same)), nearest].mean()), float(same.mean())


def class_means(x: np.ndarray, labels: Sequence) -> tuple[np.ndarray, list]:
    """The mean direction of each distinct label: (f32[C, D] of unit length, labels sorted)."""
    labels = np.asarray(labels)
    names = sorted(set(labels.tolist()))
    return unit(np.stack([unit(x[labels == name]).mean(0) for name in names])), names


def zero_shot(x, labels: Sequence, texts, text_labels: Sequence) -> tuple[float, float]:
    """Top-1 accuracy when each class is the mean of its texts' embeddings, and 1 / classes.

    x: f32[N, D] with a label each. texts: f32[T, D], any number per label (arXiv 2103.00020,
      section 3.1.4).
    """
    classes, names = class_means(texts, text_labels)
    found = np.asarray(names)[np.argmax(unit(x) @ classes.T, axis=1)]
    return float((found == np.asarray(labels)).mean()), 1 / len(names)
