"""PNG pictures of a run: loss curves, similarity matrices, a retrieval sheet."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bind.evaluate.retrieval import class_means

INK, GOOD, BAD = "#222222", "#2a9d5c", "#c8553d"


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)  # no pyplot: nothing global, nothing that wants a screen
    return figure


def loss_curves(path: Path, records: Sequence[Mapping], title: str) -> None:
    """One smoothed curve per kind of batch, from the records of a metrics.jsonl."""
    figure = _figure(8, 4.2)
    axes = figure.subplots()
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        if isinstance(record.get("loss"), float):
            curves.setdefault(record["batch"], []).append((record["step"], record["loss"]))
    for (name, points), color in zip(
        sorted(curves.items()), matplotlib.colormaps["tab10"].colors, strict=False
    ):
        steps, losses = np.array(points).T
        width = min(15, len(losses))
        smooth = np.convolve(losses, np.ones(width) / width, "valid")
        axes.plot(steps, losses, color=color, alpha=0.15, linewidth=0.8)
        axes.plot(steps[width - 1 :], smooth, color=color, label=name)
    axes.set(xlabel="step", ylabel="InfoNCE loss", title=title)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)


class Matrix(NamedTuple):
    """The similarities of two modalities by label: queries down, gallery across."""

    title: str
    queries: np.ndarray  # f32[N, D]
    gallery: np.ndarray  # f32[M, D]
    labels: Sequence[str]  # of both, N = M


def similarity_matrices(path: Path, matrices: Sequence[Matrix], title: str) -> None:
    """Cosines between the mean embeddings of each label; a bright diagonal means agreement."""
    columns = min(3, len(matrices))
    rows = -(-len(matrices) // columns)
    figure = _figure(4.6 * columns, 4.5 * rows)
    figure.suptitle(title)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, matrix in zip(grid, matrices, strict=False):
        a, names = class_means(matrix.queries, matrix.labels)
        b, _ = class_means(matrix.gallery, matrix.labels)
        axes.imshow(a @ b.T, cmap="magma")
        axes.set_title(matrix.title, fontsize=10)
        short = [textwrap.shorten(name, 22, placeholder="…") for name in names]
        if len(names) > 30:
            axes.set(xticks=[], yticks=[], xlabel=f"{len(names)} labels, in one order")
        else:
            axes.set_xticks(range(len(names)), short, rotation=90, fontsize=6)
            axes.set_yticks(range(len(names)), short, fontsize=6)
    for axes in grid[len(matrices) :]:
        axes.set_visible(False)
    figure.savefig(path)


class Card(NamedTuple):
    """What stands for an item on a retrieval sheet: a picture, or a text where there is none."""

    label: str
    picture: np.ndarray | None = None  # u8[H, W] or u8[H, W, 3]
    text: str = ""


class Hits(NamedTuple):
    """A query and what was found for it, nearest first, each with its cosine."""

    kind: str
    query: Card
    found: Sequence[tuple[Card, float]]


def retrieval_sheet(path: Path, rows: Sequence[Hits], title: str) -> None:
    """Queries on the left, what they found on the right: green frames carry the query's label."""
    width = 1 + max(len(row.found) for row in rows)
    figure = _figure(2.1 * width, 1.85 * len(rows) + 0.5)
    figure.suptitle(title)
    grid = figure.subplots(len(rows), width, squeeze=False)
    for cells, row in zip(grid, rows, strict=True):
        _draw(cells[0], row.query, INK, row.kind)
        for cell, (card, cosine) in zip(cells[1:], row.found, strict=True):
            color = GOOD if card.label == row.query.label else BAD
            _draw(
                cell,
                card,
                color,
                f"{textwrap.shorten(card.label, 24, placeholder='…')}  {cosine:.2f}",
            )
    figure.savefig(path)


def _draw(axes, card: Card, color: str, caption: str) -> None:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=2.5)
    axes.set_title(caption, fontsize=8, color=color)
    if card.picture is not None:
        axes.imshow(card.picture, cmap="viridis", aspect="equal")
    else:
        axes.set_facecolor("#f4f1ea")
        axes.text(
            0.5, 0.5, "\n".join(textwrap.wrap(card.text, 18)), ha="center", va="center",
            fontsize=9, color=INK, transform=axes.transAxes,
        )  # fmt: skip
