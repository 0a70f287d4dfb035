"""A model, a source and a config that train in seconds, through the same doors as the real ones.

`add` enters the model into the zoo and the source into the tables, after which `task.contrastive`
and `launch.train --config tests/train/tiny.py` work as ever. Three modalities of width 16, two
pairs of different shapes; every record is drawn from its index.
"""

import dataclasses

import grain
import numpy as np
from ml_collections import ConfigDict

from bind import zoo
from bind.data import tables
from bind.errors import DataError
from bind.models.imagebind import imagebind
from bind.models.stems import PatchSpec, TextSpec
from bind.models.tower import TowerSpec
from bind.nn.transformer import TransformerSpec

EOS = 31
TRUNK = TransformerSpec(16, 2, 4, 32, norm="rms", qkv_bias=False, bias=False)  # few leaves
TOWERS = {
    "vision": TowerSpec(PatchSpec((4, 4), (2, 2), 3), TRUNK, 16),
    "text": TowerSpec(TextSpec(32, 6, eos=EOS), TRUNK, 16, logit_scale=1 / 0.07),
    "imu": TowerSpec(
        PatchSpec((4,), (3,), 6),
        dataclasses.replace(TRUNK, bias_kv=True, drop_path=0.2), 16, logit_scale=5.0,
    ),
}  # fmt: skip


class Random:
    """Record i is drawn from i, at once readable and never the same as another.

    damaged: indices whose record raises DataError. poison: indices whose numbers are infinite.
    """

    def __init__(self, size, damaged=(), poison=()):
        self.size, self.damaged, self.poison = size, frozenset(damaged), frozenset(poison)

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        index = int(index) % self.size
        if index in self.damaged:
            raise DataError(f"record {index}", "is damaged")
        rng = np.random.default_rng(index)
        text = rng.integers(1, EOS, 6)
        text[rng.integers(2, 6)] = EOS
        picture = rng.normal(size=(8, 8, 3)).astype(np.float32)
        if index in self.poison:
            picture[0, 0, 0] = np.inf
        return {
            "vision": picture,
            "text": text.astype(np.int32),
            "imu": rng.normal(size=(12, 6)).astype(np.float32),
        }


class Noise(grain.transforms.RandomMap):
    """A random gain on one field: an augmentation whose draw shows in every bit of the batch."""

    def __init__(self, key):
        self.key = key

    def random_map(self, record, rng):
        gain = np.float32(rng.uniform(0.5, 1.5))
        return {**record, self.key: record[self.key] * gain}


@dataclasses.dataclass(frozen=True)
class Input:
    """An input of bind.data.inputs that only augments."""

    noisy: bool
    spatial = False

    def decode(self, key):
        return []

    def cut(self, key, train, within):
        return [Noise(key)] if self.noisy else []

    def finish(self, key):
        return []


ENTRY = zoo.Entry(
    about="towers for tests",
    build=lambda **options: imagebind(TOWERS, **options),
    inputs={"vision": Input(True), "text": Input(False), "imu": Input(True)},
    source="tests/train/tiny.py",
    licence="Apache-2.0",
)


def add(setitem=dict.__setitem__) -> None:
    """Enters both into their tables; a test passes monkeypatch.setitem."""
    setitem(zoo.ZOO, "tiny", ENTRY)
    setitem(tables.SOURCES, "random", Random)


def get_config(_="") -> ConfigDict:
    """See configs/demo.py for every field."""

    def pair(one, two, weight):
        names = (one, two)
        return {
            "modalities": names, "weight": weight,
            "source": {"kind": "random", "size": 48, "damaged": (), "poison": ()},
            "fields": dict(zip(names, names, strict=True)),
        }  # fmt: skip

    config = ConfigDict()
    config.task, config.model, config.seed = "contrastive", "tiny", 0
    config.steps, config.batch_size, config.accumulate = 20, 16, 1
    config.dtype, config.remat = "float32", "none"
    config.trainable = r"(?!imu/logit_scale).*"
    config.pairs = {"words": pair("vision", "text", 2.0), "motion": pair("text", "imu", 1.0)}
    config.optim = {
        "learning_rate": 1e-3, "warmup": 5, "floor": 0.0, "b1": 0.9, "b2": 0.95,
        "weight_decay": 0.1, "clip": 1.0, "lr_scale": (), "mu_dtype": "",
    }  # fmt: skip
    config.mesh = {"data": 1, "fsdp": -1, "tensor": 1}
    config.data = {"threads": 1, "workers": 0}
    config.eval = {"views": 1, "batch_size": 8}
    config.log_every, config.eval_every, config.save_every, config.keep = 1000, 0, 1000, 3
    config.max_damaged, config.max_skipped = 10, 10
    return config.lock()
