"""AdamW with schedules, decay masks and learning rates by path, clipping and accumulation.

A step may touch only part of the model: training draws each batch from one modality pair, and the
towers of the other modalities must not move, neither by Adam's momentum nor by weight decay. So
every top-level group of the parameters has an optimizer state of its own, and a group without
gradients passes through unchanged. The learning rate follows the global step.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bind import tree
from bind.errors import ConfigError

# Vectors, and what CLIP exempts.
NO_DECAY = r"(.*/)?(bias|scale|bias_[kv]|cls|positions|logit_scale)"


class Optimizer(NamedTuple):
    """init(params) -> state; update(grads, state, params, step) -> (params, state, metrics).

    `params` and `grads` are {group: tree}. `grads` may lack groups; theirs stay bit-equal.
    `step` is i32[], the number of steps already taken.
    """

    init: Callable
    update: Callable


def cosine(peak: float, warmup: int, total: int, floor: float = 0.0) -> optax.Schedule:
    """Linear from 0 to `peak` over `warmup` steps, then half a cosine to `floor` at `total`.

    Step 0 already moves: the warm-up is counted from 1.
    """
    if not 0 <= warmup < total:
        raise ConfigError(
            "config.optim.warmup", f"{warmup} of {total} steps", "make it shorter than the run"
        )
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, max(warmup, 1), max(total, 2), floor)
    return lambda step: schedule(step + 1 if warmup else step)


def adamw(
    schedule: optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    no_decay: str = NO_DECAY,
    clip: float | None = None,
    lr_scale: Mapping[str, float] | None = None,
    mu_dtype: Any = None,
) -> Optimizer:
    """AdamW (arXiv 1711.05101) as torch.optim.AdamW counts it: decay times the learning rate.

    no_decay: regex of paths without weight decay. clip: the global norm of all gradients of a step.
    lr_scale: {regex of paths: factor on the learning rate}, first match wins, 1 where none does.
    """
    decays = tree.matcher(no_decay)
    factors = [(tree.matcher(regex), factor) for regex, factor in (lr_scale or {}).items()]
    adam = optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)

    def factor(path: str) -> float:
        return next((f for match, f in factors if match(path)), 1.0)

    def init(params):
        return {group: adam.init(sub) for group, sub in params.items()}

    def update(grads, state, params, step):
        norm = optax.tree.norm(grads)
        if clip is not None:
            shrink = jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-16))
            grads = jax.tree.map(lambda g: g * shrink.astype(g.dtype), grads)
        rate = schedule(step)
        new_params, new_state = dict(params), dict(state)
        for group, sub in grads.items():
            updates, new_state[group] = adam.update(sub, state[group])

            def move(path, p, u, group=group):
                path = f"{group}/{path}"
                decay = 0.0 if decays(path) else weight_decay
                return p - (rate * factor(path) * (u + decay * p)).astype(p.dtype)

            new_params[group] = tree.map_with_path(move, params[group], updates)
        return new_params, new_state, {"grad_norm": norm, "learning_rate": rate}

    return Optimizer(init, update)


def from_config(config) -> Optimizer:
    """The optimizer of a training config: its `optim` section, over config.steps."""
    o = config.optim
    schedule = cosine(o.learning_rate, o.warmup, config.steps, o.floor)
    return adamw(
        schedule,
        b1=o.b1,
        b2=o.b2,
        weight_decay=o.weight_decay,
        clip=o.clip or None,
        lr_scale={rule.paths: rule.factor for rule in o.lr_scale},
        mu_dtype=o.mu_dtype or None,
    )


def accumulated(value_and_grad: Callable, steps: int) -> Callable:
    """Averages a `value_and_grad(params, batch, key)` over `steps` equal slices of the batch.

    The memory of activations falls by `steps`. The means are exact for losses that are means over
    rows; a contrastive loss sees only the negatives of its slice. Same signature.
    """
    if steps == 1:
        return value_and_grad

    def run(params, batch, key):
        def cut(x):
            if x.shape[0] % steps:
                raise ConfigError(
                    "config.accumulate", f"{x.shape[0]} rows do not divide by {steps}"
                )
            # Slice i takes every steps-th row: each device keeps rows of its own in every slice.
            return jnp.moveaxis(x.reshape(x.shape[0] // steps, steps, *x.shape[1:]), 1, 0)

        def one(total, slice_and_key):
            out = value_and_grad(params, *slice_and_key)
            return jax.tree.map(lambda t, o: t + o / steps, total, out), None

        slices, keys = jax.tree.map(cut, batch), jax.random.split(key, steps)
        shapes = jax.eval_shape(
            value_and_grad, params, jax.tree.map(lambda x: x[0], slices), keys[0]
        )
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(one, zeros, (slices, keys))[0]

    return run
