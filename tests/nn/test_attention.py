"""Attention against a slow numpy one, and the cache against the full pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bind.nn.attention import Attention, Cache, attend, cache_mask, causal_mask, rope, rotate

rng = np.random.default_rng(1)


def slow_attention(q, k, v, allowed):
    """Loops over batch, head and query; q[B, T, H, D], k and v[B, S, G, D], allowed bool[T, S]."""
    out = np.zeros(q.shape)
    group = q.shape[2] // k.shape[2]
    for b, t, h in np.ndindex(q.shape[:3]):
        logits = k[b, :, h // group] @ q[b, t, h] / np.sqrt(q.shape[-1])
        weights = np.where(allowed[t], np.exp(logits - logits.max()), 0)
        out[b, t, h] = weights / weights.sum() @ v[b, :, h // group]
    return out


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attend_shares_each_key_head_among_neighbouring_queries(kv_heads):
    q, k, v = (rng.normal(size=(2, 5, h, 8)).astype(np.float32) for h in (4, kv_heads, kv_heads))
    allowed = np.tril(np.ones((5, 5), bool))
    out = attend(q, k, v, causal_mask(5))
    np.testing.assert_allclose(out, slow_attention(q, k, v, allowed), rtol=1e-5, atol=1e-6)


def test_additive_and_boolean_masks_agree():
    q, k, v = (rng.normal(size=(1, 4, 2, 8)).astype(np.float32) for _ in range(3))
    mask = causal_mask(4)
    additive = jnp.where(mask, 0.0, -1e9)
    np.testing.assert_allclose(attend(q, k, v, mask), attend(q, k, v, additive), atol=1e-6)


def params_of(layer, x, **kwargs):
    """Parameters that differ from every special initial value."""
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), x, **kwargs))
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32) * 0.3, shapes)


def test_bias_kv_is_one_more_key_behind_the_sequence_that_no_mask_hides():
    x = rng.normal(size=(2, 3, 8)).astype(np.float32)
    layer = Attention(heads=2, bias_kv=True)
    variables = params_of(layer, x)
    p = variables["params"]
    q, k, v = (x @ p[n]["kernel"] + p[n]["bias"] for n in "qkv")
    k, v = (
        np.concatenate([t, np.broadcast_to(p[f"bias_{n}"], (2, 1, 8))], 1)
        for n, t in (("k", k), ("v", v))
    )
    allowed = np.concatenate([np.tril(np.ones((3, 3), bool)), np.ones((3, 1), bool)], 1)
    y = slow_attention(*(t.reshape(2, -1, 2, 4) for t in (q, k, v)), allowed).reshape(2, 3, 8)
    expected = y @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(
        layer.apply(variables, x, mask=causal_mask(3))[0], expected, rtol=1e-5, atol=1e-5
    )


def test_cross_attention_takes_keys_of_another_width():
    x, kv = (
        rng.normal(size=(1, 2, 8)).astype(np.float32),
        rng.normal(size=(1, 5, 6)).astype(np.float32),
    )
    layer = Attention(heads=2)
    variables = params_of(layer, x, kv=kv)
    assert variables["params"]["k"]["kernel"].shape == (6, 8)
    assert layer.apply(variables, x, kv)[0].shape == (1, 2, 8)


def test_rope_turns_by_position_and_scores_depend_on_distance_only():
    angles = rope(jnp.array([[0, 1, 7]]), head_dim=4, theta=100.0)
    np.testing.assert_allclose(angles.cos[0, 2], [np.cos(7.0), np.cos(0.7)], rtol=1e-6)
    q = rng.normal(size=(1, 1, 1, 4)).astype(np.float32)
    k = rng.normal(size=(1, 1, 1, 4)).astype(np.float32)
    score = [
        float((rotate(q, rope(jnp.array([[i]]), 4)) * rotate(k, rope(jnp.array([[j]]), 4))).sum())
        for i, j in ((3, 1), (12, 10))
    ]
    assert score[0] == pytest.approx(score[1], rel=1e-5)


def test_rotate_pairs_the_two_halves_as_llama_does():
    x = np.array([1.0, 0.0, 0.0, 0.0], np.float32).reshape(1, 1, 1, 4)
    out = rotate(x, rope(jnp.array([[1]]), 4))
    np.testing.assert_allclose(out.ravel(), [np.cos(1.0), 0, np.sin(1.0), 0], atol=1e-6)


def test_prefill_then_decode_equals_the_full_pass_also_for_rows_of_unequal_length():
    x = rng.normal(size=(2, 6, 16)).astype(np.float32)
    layer = Attention(heads=4, kv_heads=2)
    positions = jnp.arange(6)[None].repeat(2, 0)
    variables = params_of(layer, x)
    full, _ = layer.apply(variables, x, mask=causal_mask(6), rope=rope(positions, 4))

    lengths = jnp.array(
        [3, 1]
    )  # row 1 has stored one token only; its other prefill slots are rubbish
    empty = jnp.zeros((2, 8, 2, 4))
    cache = Cache(empty, empty, jnp.zeros(2, jnp.int32))
    mask = cache_mask(cache.index, 3, 8)
    _, cache = layer.apply(
        variables, x[:, :3], mask=mask, rope=rope(positions[:, :3], 4), cache=cache
    )
    cache = cache._replace(index=lengths)
    for _ in range(3):
        at = cache.index
        token = jnp.take_along_axis(x, at[:, None, None], 1)
        y, cache = layer.apply(
            variables, token, mask=cache_mask(at, 1, 8), rope=rope(at[:, None], 4), cache=cache
        )
        expected = np.stack([full[row, int(i)] for row, i in enumerate(at)])
        np.testing.assert_allclose(y[:, 0], expected, rtol=1e-4, atol=1e-5)
    assert cache.index.tolist() == [6, 4]
