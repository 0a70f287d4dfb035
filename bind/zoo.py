"""The models by name: how to build one, and how to prepare its inputs."""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bind import tree
from bind.ckpt import store
from bind.data import inputs
from bind.data.samples import FOLDER
from bind.errors import CheckpointError, ConfigError
from bind.models import imagebind


class Entry(NamedTuple):
    """A row of the zoo.

    build(**options) -> the Linen module. inputs: {modality: input of bind.data.inputs}; training,
    embedding and evaluation all prepare their data by it. source, licence: the weights'.
    """

    about: str
    build: Callable[..., Any]
    inputs: Mapping[str, Any]
    source: str
    licence: str


# Means and deviations of the training split of the sample data, in its own units.
IMU_MEAN = (2.553, -1.304, -1.027, 0.019, -0.024, -0.056)
IMU_STD = (7.072, 6.794, 3.546, 2.112, 1.821, 3.517)

ZOO = {
    "imagebind_demo": Entry(
        about="five towers of 0.1 to 0.4 M parameters, embeddings of 64; see configs/demo.py",
        build=lambda **options: imagebind.imagebind(imagebind.DEMO, **options),
        inputs={
            "vision": inputs.Picture(48),
            "depth": inputs.Disparity(48, scale=64, mean=0.112, std=0.129, high=128),
            "audio": inputs.Sound(seconds=1.935, bins=128, frames=192),
            "imu": inputs.Motion(80, IMU_MEAN, IMU_STD),
            "text": inputs.Words(str(FOLDER / "captions.model"), 40),
        },
        source="trained by `make demo` from the sample data in bind/data/samples",
        licence="Apache-2.0",
    ),
}


def lookup(name: str) -> Entry:
    """The row of that name. Raises: ConfigError that suggests the nearest one."""
    if name not in ZOO:
        near = difflib.get_close_matches(name, ZOO, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(ZOO))}"
        raise ConfigError(f"model {name!r}", "is not in the zoo", hint)
    return ZOO[name]


def load(name: str, path: str | Path, **options) -> tuple[Any, dict]:
    """(model, params) from a training run's folder.

    path: the --workdir of bind.train. options: for the row's build, such as only=("vision", "text")
      or dtype.
    Raises: ConfigError, CheckpointError.
    """
    entry = lookup(name)
    model = entry.build(inputs=entry.inputs, **options)
    shapes = jax.eval_shape(model.init, jax.random.key(0), imagebind.example_inputs(model))[
        "params"
    ]
    if not (Path(path) / "checkpoints").is_dir():
        raise CheckpointError(
            path,
            "is not a run's folder: it has no checkpoints",
            "pass the --workdir of the training",
        )
    learned, meta = store.read(Path(path) / "checkpoints")
    if meta["config"]["model"] != name:
        raise CheckpointError(path, f"is a run of {meta['config']['model']!r}, not {name!r}")
    params = learned["trainable"]
    if (Path(path) / "frozen").is_dir():
        params = tree.combine(params, store.read(Path(path) / "frozen")[0])
    params = {name: params[name] for name in shapes}
    return model, jax.tree.map(lambda s, x: jnp.asarray(x, s.dtype), shapes, params)
