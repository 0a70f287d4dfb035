"""The optimizer against optax's own AdamW and against arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bind import optim
from bind.errors import ConfigError

rng = np.random.default_rng(0)
params = {
    "vision": {
        "kernel": rng.normal(size=(3, 2)).astype(np.float32),
        "bias": np.ones(2, np.float32),
    },
    "text": {"kernel": rng.normal(size=(2, 2)).astype(np.float32)},
}
grads = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params)


def run(optimizer, steps=3, grads=grads):
    p, state = params, optimizer.init(params)
    for step in range(steps):
        p, state, report = optimizer.update(grads, state, p, jnp.int32(step))
    return p, state, report


def test_it_is_optaxs_adamw_with_a_decay_mask():
    p, *_ = run(optim.adamw(lambda step: 0.01, b1=0.8, b2=0.9, weight_decay=0.3))
    mask = {"vision": {"kernel": True, "bias": False}, "text": {"kernel": True}}
    tx = optax.adamw(0.01, 0.8, 0.9, weight_decay=0.3, mask=mask)
    q, state = params, tx.init(params)
    for _ in range(3):
        updates, state = tx.update(grads, state, q)
        q = optax.apply_updates(q, updates)
    for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(q), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_group_without_gradients_stays_bit_equal_and_its_moments_too():
    optimizer = optim.adamw(lambda step: 0.01, weight_decay=0.3)
    p, state, _ = run(optimizer)
    only = {"text": grads["text"]}
    q, after, _ = optimizer.update(only, state, p, jnp.int32(3))
    assert q["vision"] is p["vision"] and after["vision"] is state["vision"]
    assert int(after["text"].count) == 4 and int(after["vision"].count) == 3
    assert (np.asarray(q["text"]["kernel"]) != p["text"]["kernel"]).all()


def test_clipping_uses_the_norm_over_all_groups():
    norm = float(optax.tree.norm(grads))
    _, clipped, report = run(optim.adamw(lambda s: 0.1, clip=0.5), steps=1)
    _, free, _ = run(optim.adamw(lambda s: 0.1), steps=1)
    assert float(report["grad_norm"]) == pytest.approx(norm, rel=1e-6)
    for a, b in zip(
        jax.tree.leaves(clipped["text"].mu), jax.tree.leaves(free["text"].mu), strict=True
    ):
        np.testing.assert_allclose(a, b * 0.5 / norm, rtol=1e-5)


def test_learning_rates_by_path_first_match_wins():
    scale = {r".*/bias": 0.0, r"vision/.*": 0.5}
    p, *_ = run(optim.adamw(lambda s: 0.1, lr_scale=scale), steps=1)
    q, *_ = run(optim.adamw(lambda s: 0.1), steps=1)
    np.testing.assert_array_equal(p["vision"]["bias"], params["vision"]["bias"])
    np.testing.assert_allclose(
        p["vision"]["kernel"] - params["vision"]["kernel"],
        (q["vision"]["kernel"] - params["vision"]["kernel"]) / 2,
        rtol=1e-4,
    )
    np.testing.assert_array_equal(p["text"]["kernel"], q["text"]["kernel"])


def test_the_cosine_warms_up_from_its_first_step_and_ends_at_the_floor():
    schedule = optim.cosine(1.0, warmup=4, total=12, floor=0.1)
    values = [float(schedule(jnp.int32(s))) for s in range(13)]
    np.testing.assert_allclose(values[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
    middle = 0.1 + 0.9 * (1 + np.cos(np.pi * 4 / 8)) / 2
    assert values[7] == pytest.approx(middle, rel=1e-6)
    assert values[11] == pytest.approx(0.1, rel=1e-6)
    with pytest.raises(ConfigError, match="warmup"):
        optim.cosine(1.0, 5, 5)


def test_accumulation_equals_the_whole_batch_for_a_mean_loss():
    w, x = {"w": np.ones(3, np.float32)}, rng.normal(size=(8, 3)).astype(np.float32)

    def value_and_grad(w, batch, key):
        def f(w):
            return (jnp.tanh(batch["x"] @ w["w"]) ** 2).mean(), {"m": batch["x"].mean()}

        return jax.value_and_grad(f, has_aux=True)(w)

    key = jax.random.key(0)
    whole = value_and_grad(w, {"x": x}, key)
    parts = jax.jit(optim.accumulated(value_and_grad, 4))(w, {"x": x}, key)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    with pytest.raises(ConfigError, match="8 rows do not divide by 3"):
        optim.accumulated(value_and_grad, 3)(w, {"x": x}, key)
