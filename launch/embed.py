"""Embed files and texts together and print how similar they are.

  python -m launch.embed --checkpoint runs/demo "a dog" "a cat" dog.webp bark.flac
  python -m launch.embed --checkpoint runs/demo --out z.npz depth:room_disparity.png room.png "a
  corridor"

What an argument is follows from its ending (pictures, sounds), or from a prefix such as depth: or
imu: ; everything else is text. --out keeps the embeddings, one f32[N, D] array per modality.
"""

from pathlib import Path

import numpy as np
from absl import flags

import bind
from bind.errors import ConfigError
from launch import cli

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "imagebind_demo", "A model of the zoo; see launch.list.")
flags.DEFINE_string("checkpoint", None, "The work directory of its training.", required=True)
flags.DEFINE_string("out", None, "Where to keep the embeddings (.npz).")

ENDINGS = {
    "vision": (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".ppm", ".tif", ".tiff"),
    "audio": (".wav", ".flac", ".ogg", ".mp3"),
}


def modality_of(item: str, known) -> tuple[str, str]:
    """(modality, item without its prefix) of one argument."""
    prefix, _, rest = item.partition(":")
    if rest and prefix in known:
        return prefix, rest
    ending = Path(item).suffix.lower()
    return next((m for m, endings in ENDINGS.items() if ending in endings), "text"), item


def main(items: list[str]) -> None:
    if not items:
        raise ConfigError(
            "the command line", "names nothing to embed", "add files or texts; see --help"
        )
    model, params = bind.load(FLAGS.model, FLAGS.checkpoint)
    inputs: dict[str, list[str]] = {}
    for name, item in (modality_of(item, model.towers) for item in items):
        inputs.setdefault(name, []).append(item)
    z = bind.embed(model, params, inputs)
    names = [item for values in inputs.values() for item in values]
    everything = np.concatenate([np.asarray(z[name]) for name in inputs])
    cosine = np.asarray(bind.similarity(everything, everything))
    width = min(max(len(Path(name).name) for name in names), 32)
    print("cosine similarity")
    for i, name in enumerate(names):
        row = " ".join(f"{value:6.2f}" for value in cosine[i])
        print(f"  {i:>3} {Path(name).name[:width]:<{width}} {row}")
    if FLAGS.out:
        np.savez(FLAGS.out, **{name: np.asarray(x) for name, x in z.items()})
        print(f"kept in {FLAGS.out}")


if __name__ == "__main__":
    cli.run(main, positional=True)
