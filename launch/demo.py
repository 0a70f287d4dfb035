"""Bind five modalities on the sample data and show what was learned, in a few minutes on two cores.

  make demo                                     # or: python -m launch.demo
  python -m launch.demo --workdir runs/other --config configs/demo.py:tiny

Writes into the work directory: loss.png, similarity.png, retrieval.png, report.json, and the
run itself, which `bind.load("imagebind_demo", workdir)` opens.
"""

import json
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags
from PIL import Image

from bind import metrics, task, train, tree, zoo
from bind.data import samples
from bind.data.sources import JsonLines
from bind.evaluate import held_out, pictures, retrieval
from launch import cli

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
    "config", str(Path(__file__).parents[1] / "configs" / "demo.py"), "The config."
)
flags.DEFINE_string("workdir", "runs/demo", "Where the run lives. The same one resumes it.")

HELD_OUT = """Held out, and never seen in training:
  photos  the right-hand third of every photograph (the model trains on the left 62 %)
  depth   the right camera of each stereo rig: its pictures, and the depth maps computed for it
  sounds  the last quarter of every sound, with the right-hand third of its photograph
  motion  the 40 recordings of the official test split"""

# Rows of the retrieval sheet: held-out set, from, to, how many queries.
SHEET = (
    ("depth", "depth", "text", 2),
    ("depth", "text", "depth", 1),
    ("depth", "depth", "vision", 1),
    ("sounds", "audio", "text", 2),
    ("sounds", "audio", "vision", 2),
    ("photos", "text", "vision", 1),
    ("motion", "imu", "text", 1),
)
FOUND = 4  # items shown per query


def main() -> None:
    began = time.perf_counter()
    config, workdir = FLAGS.config, Path(FLAGS.workdir)
    print(
        f"Training {config.model} for {config.steps} steps on the sample data, into {workdir}/ ...",
        flush=True,
    )
    state, frozen = train.fit(task.contrastive(config), config, workdir)
    if int(state.step) < config.steps:
        return  # stopped by a signal; fit has said so
    trained = time.perf_counter() - began
    entry = zoo.lookup(config.model)
    measure = task.held_out_views(config, entry.build(), entry.inputs)
    views = measure(tree.combine(state.trainable, frozen))
    rows = held_out.table(views, [tuple(p.modalities) for p in config.pairs.values()])
    draw(workdir, config, views)
    report = {
        "held_out": HELD_OUT.splitlines()[1:],
        "rows": rows,
        "steps": config.steps,
        "training_seconds": round(trained, 1),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    (workdir / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    show(rows)
    print(f"\nTrained in {trained:.0f} s. Look at\n")
    for name in ("retrieval.png", "similarity.png", "loss.png", "report.json"):
        print(f"  {workdir / name}")
    dog = "bind/data/samples/photos/dog.webp"
    print(f"""
Next, try
  .venv/bin/python -m launch.train --config configs/demo.py --workdir runs/x --config.seed=1
  .venv/bin/python -m launch.list            # models, data sets and configs there are
  .venv/bin/python -m launch.embed --checkpoint {workdir} "a dog" {dog}""")


def show(rows: list[dict]) -> None:
    """The table of what was learned, with chance beside each number."""
    print("\n" + HELD_OUT + "\n")
    print(
        f"  {'held-out set':<13}{'query -> found':<20}{'in training':<14}{'metric':<18}"
        f"{'value':>7}{'chance':>8}{'ratio':>7}"
    )
    for row in rows:
        pair = f"{row['from']} -> {row['to']}"
        how = "paired" if row["trained"] else "never paired"
        print(
            f"  {row['set']:<13}{pair:<20}{how:<14}{row['metric']:<18}"
            f"{row['value']:>6.1%}{row['chance']:>8.1%}{row['value'] / row['chance']:>6.1f}x"
        )


def draw(workdir: Path, config, views: dict[str, held_out.Views]) -> None:
    pictures.loss_curves(
        workdir / "loss.png", metrics.read(workdir / "metrics.jsonl"), "Training, a curve per pair"
    )
    trained = {frozenset(p.modalities) for p in config.pairs.values()}
    matrices = []
    for name, (_, labels, z) in views.items():
        for a in sorted(set(z) - {"text"}):
            b = "text"
            note = "trained pair" if frozenset((a, b)) in trained else "never paired"
            matrices.append(pictures.Matrix(f"{name}: {a} to {b} ({note})", z[a], z[b], labels))
    pictures.similarity_matrices(
        workdir / "similarity.png", matrices, "Held-out data, mean cosine by label"
    )
    cards = card_table()
    rows = [hits for spec in SHEET for hits in search(views, trained, cards, *spec)]
    title = "Held-out queries (left) and the nearest labels found; green is right"
    pictures.retrieval_sheet(workdir / "retrieval.png", rows, title)


def card_table() -> dict[tuple[str, str, str], pictures.Card]:
    """(set, modality, label) -> what to draw: the sample's own picture or its first caption."""
    cards = {}
    for name in ("photos", "sounds", "depth", "imu"):
        source = JsonLines(samples.FOLDER / f"{name}.jsonl", files=("image", "depth"))
        part = "motion" if name == "imu" else name
        for record in (source[i] for i in range(len(source))):
            label = record["label"]
            cards[part, "text", label] = pictures.Card(label, text=record["text"][0])
            if "image" in record:
                cards[part, "vision", label] = pictures.Card(label, rgb(record["image"]))
            if "depth" in record:
                near = np.sqrt(np.asarray(Image.open(record["depth"]), np.float32))
                cards[part, "depth", label] = pictures.Card(label, near)
    return cards


def rgb(path: str) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def signal(x: np.ndarray) -> np.ndarray:
    """A spectrogram f32[mel, time, 1] with low notes below, or motion f32[T, 6] as six stripes."""
    return np.repeat(x.T, 8, axis=0) if x.ndim == 2 else x[::-1, :, 0]


def search(views, trained, cards, name: str, a: str, b: str, count: int):
    """`count` queries of a held-out set, evenly spread over it, and the nearest distinct labels."""
    inputs, labels, z = views[name]
    cosine = retrieval.unit(z[a]) @ retrieval.unit(z[b]).T
    note = "paired" if frozenset((a, b)) in trained else "never paired"
    for i in (np.arange(count) + 1) * len(labels) // (count + 1):
        card = cards.get((name, a, labels[i]))
        if card is None:  # sounds and motion have no picture: show what the model is given
            card = pictures.Card(labels[i], signal(inputs[a][i]))
        best: dict[str, float] = {}
        for j in np.argsort(-cosine[i]):
            best.setdefault(labels[j], float(cosine[i, j]))
        found = [(cards[name, b, label], value) for label, value in list(best.items())[:FOUND]]
        yield pictures.Hits(f"{a} -> {b}, {note}", card, found)


if __name__ == "__main__":
    cli.run(main)
