"""Embeddings of files and texts by a loaded model."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bind import losses
from bind.data import inputs as inputs_
from bind.errors import ConfigError
from bind.models.tower import MAX_LOGIT_SCALE


def embed(
    model, params, inputs: Mapping[str, Sequence[Any]], *, batch_size: int = 32
) -> dict[str, jax.Array]:
    """Encodes each modality's items, prepared as the model's zoo row says.

    Args:
      model, params: from `bind.load`.
      inputs: {modality: items}. An item is a path or the bytes of a file; text is a string. A numpy
        array stands for what the file would decode to: u8[H, W, 3] for vision, f32[T, 6] for imu.
      batch_size: items encoded at once; the last batch is padded, so there is one compilation.
    Returns: {modality: f32[N, D]}, unit length. A sound is the mean of its clips.
    Raises: DataError naming the file; ConfigError for a modality that the model lacks.
    """
    return {
        name: _embed_one(model, params, name, items, batch_size) for name, items in inputs.items()
    }


def _embed_one(model, params, name: str, items: Sequence[Any], batch_size: int) -> jax.Array:
    if name not in model.towers:
        raise ConfigError(
            f"modality {name!r}", "is not one of this model's", f"it has {sorted(model.towers)}"
        )
    if isinstance(items, str | bytes):
        raise ConfigError(f"inputs[{name!r}]", "is one item", "pass a list of them")
    decode = inputs_.decoders(model.inputs, {name: name})
    finish = inputs_.finishers(model.inputs, [name], train=False)
    rows, owners = [], []
    for i, item in enumerate(items):
        record = {name: item}
        for step in finish if isinstance(item, np.ndarray) else decode + finish:
            record = step.map(record)
        x = record[name]
        views = x if isinstance(model.inputs[name], inputs_.Sound) else x[None]
        rows.extend(views)
        owners.extend([i] * len(views))
    if not rows:
        return jnp.zeros((0, model.towers[name].embed_dim))
    parts = []
    for start in range(0, len(rows), batch_size):
        batch = np.stack(rows[start : start + batch_size])
        padding = np.repeat(batch[-1:], batch_size - len(batch), axis=0)
        out = _encode(model, params[name], name, np.concatenate([batch, padding]))
        parts.append(out[: len(batch)])
    z = jax.ops.segment_sum(jnp.concatenate(parts), jnp.array(owners), len(items))
    return losses.normalize(z)


@partial(jax.jit, static_argnums=(0, 2))
def _encode(model, params, name: str, x):
    return losses.normalize(model.apply({"params": {name: params}}, {name: x})[name]["embedding"])


def similarity(a, b) -> jax.Array:
    """Cosines f32[N, M] of a f32[N, D] and b f32[M, D]."""
    return losses.normalize(a) @ losses.normalize(b).T


def probabilities(params, z: Mapping[str, Any], first: str, second: str) -> jax.Array:
    """f32[N, M]: for each of z[first], a softmax over z[second] with the temperature they were
    trained at.

    Raises: ConfigError where neither modality has a temperature.
    """
    for name in (second, first):
        if "logit_scale" in params[name]:
            scale = jnp.minimum(jnp.exp(params[name]["logit_scale"]), MAX_LOGIT_SCALE)
            return jax.nn.softmax(scale * similarity(z[first], z[second]), axis=-1)
    raise ConfigError(f"{first!r} and {second!r}", "have no temperature", "use bind.similarity")
