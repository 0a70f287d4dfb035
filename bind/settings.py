"""What a training config must have, checked before anything is built."""

import json
from collections.abc import Mapping

import jax.numpy as jnp

from bind import tree
from bind.errors import ConfigError
from bind.nn.transformer import REMAT_POLICIES


def _dtype(name) -> bool:
    try:
        return jnp.issubdtype(jnp.dtype(name), jnp.floating)
    except TypeError:
        return False


def _at_least(low):
    return lambda x: x >= low


# field -> (type, whether a value will do, what it must be). optim and data hold their fields below
# them.
FIELDS = {
    "task": (str, None, "a name in launch/train.py"),
    "model": (str, None, "a name of the zoo"),
    "trainable": (str, None, "a regex of parameter paths"),
    "seed": (int, None, "a whole number"),
    "steps": (int, _at_least(1), "at least 1"),
    "batch_size": (int, _at_least(2), "at least 2: a contrastive loss needs a negative"),
    "accumulate": (int, _at_least(1), "at least 1"),
    "dtype": (str, _dtype, "a floating-point type, such as float32 or bfloat16"),
    "remat": (str, REMAT_POLICIES.__contains__, f"one of {', '.join(REMAT_POLICIES)}"),
    "optim.learning_rate": (float, _at_least(0), "at least 0"),
    "optim.warmup": (int, _at_least(0), "at least 0"),
    "optim.floor": (float, _at_least(0), "at least 0"),
    "optim.b1": (float, lambda x: 0 <= x < 1, "from 0 to below 1"),
    "optim.b2": (float, lambda x: 0 <= x < 1, "from 0 to below 1"),
    "optim.weight_decay": (float, _at_least(0), "at least 0"),
    "optim.clip": (float, _at_least(0), "at least 0; 0 for none"),
    "optim.lr_scale": (tuple, None, "a list of {paths, factor}"),
    "optim.mu_dtype": (str, lambda x: not x or _dtype(x), "empty or a floating-point type"),
    "mesh.data": (int, None, "a whole number"),
    "mesh.fsdp": (int, None, "a whole number"),
    "mesh.tensor": (int, None, "a whole number"),
    "data.threads": (int, _at_least(1), "at least 1"),
    "data.workers": (int, _at_least(0), "at least 0"),
    "log_every": (int, _at_least(1), "at least 1"),
    "eval_every": (int, _at_least(0), "at least 0; 0 for only at the end"),
    "save_every": (int, _at_least(1), "at least 1"),
    "keep": (int, _at_least(1), "at least 1; 2 or more leave something to fall back to"),
    "max_damaged": (int, _at_least(0), "at least 0"),
    "max_skipped": (int, _at_least(1), "at least 1"),
}


def check(config: Mapping) -> None:
    """Raises: ConfigError for the first field that is missing, of another type, or out of range."""
    values = config.to_dict()
    for name, (kind, fits, wanted) in FIELDS.items():
        value = values
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise ConfigError(
                    f"config.{name}", "is missing", f"it must be {wanted}; see configs/demo.py"
                )
            value = value[part]
        kinds = (int, float) if kind is float else (tuple, list) if kind is tuple else kind
        if not isinstance(value, kinds) or isinstance(value, bool) or (fits and not fits(value)):
            raise ConfigError(f"config.{name}", f"is {value!r}", f"it must be {wanted}")


def changes(old: Mapping, new: Mapping) -> list[str]:
    """What differs between two configs as plain dicts, a line per field."""
    a, b = (tree.paths(json.loads(json.dumps(c))) for c in (old, new))
    fields = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
    return [f"config.{f.replace('/', '.')} was {a.get(f)!r}, is {b.get(f)!r}" for f in fields]
