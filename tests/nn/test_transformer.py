"""The stack against its blocks one by one; remat, drop path, adapters and caches through the
scan.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bind.nn.attention import Cache, cache_mask, causal_mask
from bind.nn.transformer import Block, Stack, TransformerSpec

SPEC = TransformerSpec(width=16, depth=3, heads=4, mlp_width=24, kv_heads=2)
rng = np.random.default_rng(2)
x = rng.normal(size=(2, 5, 16)).astype(np.float32)


def random_like(shapes):
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32) * 0.3, shapes)


variables = random_like(jax.eval_shape(Stack(SPEC).init, jax.random.key(0), x))


def test_the_scan_equals_the_blocks_in_order():
    h = x
    for layer in range(SPEC.depth):
        params = jax.tree.map(lambda p, i=layer: p[i], variables["params"]["blocks"])
        h, _ = Block(SPEC).apply({"params": params}, h, None, 0.0, causal_mask(5), None)
    y, _ = Stack(SPEC).apply(variables, x, mask=causal_mask(5))
    np.testing.assert_allclose(y, h, rtol=1e-5, atol=1e-5)
    reversed_ = jax.tree.map(lambda p: p[::-1], variables)
    assert np.abs(Stack(SPEC).apply(reversed_, x, mask=causal_mask(5))[0] - y).max() > 0.01


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_no_gradient(remat):
    def grad(spec):
        return jax.grad(lambda v: (Stack(spec).apply(v, x)[0] ** 2).sum())(variables)

    for a, b in zip(
        *map(jax.tree.leaves, (grad(SPEC), grad(dataclasses.replace(SPEC, remat=remat)))),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4)


def test_layers_are_drawn_differently():
    kernel = Stack(SPEC).init(jax.random.key(0), x)["params"]["blocks"]["attn"]["q"]["kernel"]
    assert kernel.shape == (3, 16, 16)
    assert np.abs(kernel[0] - kernel[1]).min() > 0


def test_drop_path_needs_a_rng_and_spares_the_first_layer():
    spec = dataclasses.replace(SPEC, depth=1, drop_path=0.9)
    one = jax.tree.map(lambda p: p[:1], variables)
    plain = Stack(spec).apply(one, x)[0]
    first = Stack(spec).apply(one, x, rngs={"dropout": jax.random.key(0)})[0]
    np.testing.assert_array_equal(first, plain)  # depth 1: linspace starts at 0
    spec = dataclasses.replace(SPEC, drop_path=0.9)
    plain = Stack(spec).apply(variables, x)[0]
    dropped = Stack(spec).apply(variables, x, rngs={"dropout": jax.random.key(0)})[0]
    assert np.abs(dropped - plain).max() > 0.01


def test_adapters_ride_through_the_scan_one_per_layer():
    a, b = (
        rng.normal(size=(3, 16, 2)).astype(np.float32),
        rng.normal(size=(3, 2, 16)).astype(np.float32),
    )
    scale = np.array([0.5, 0.0, 2.0], np.float32)
    lora = {"blocks": {"attn": {"q": {"a": a, "b": b, "scale": scale}}}}
    merged = jax.tree.map(np.copy, variables)
    merged["params"]["blocks"]["attn"]["q"]["kernel"] += scale[:, None, None] * (a @ b)
    y = Stack(SPEC).apply({**variables, "lora": lora}, x)[0]
    np.testing.assert_allclose(y, Stack(SPEC).apply(merged, x)[0], rtol=1e-4, atol=1e-4)


def test_a_stacked_cache_decodes_what_the_full_pass_computes():
    full, none = Stack(SPEC).apply(variables, x, mask=causal_mask(5))
    assert none is None
    cache = Cache(*(jnp.zeros((3, 2, 6, 2, 4)),) * 2, jnp.zeros((3, 2), jnp.int32))
    for t in range(5):
        mask = cache_mask(cache.index[0], 1, 6)
        y, cache = Stack(SPEC).apply(variables, x[:, t : t + 1], mask=mask, cache=cache)
        np.testing.assert_allclose(y[:, 0], full[:, t], rtol=1e-4, atol=1e-4)


def test_bfloat16_input_gives_bfloat16_output_from_float32_parameters():
    y = Stack(SPEC).apply(variables, x.astype(jnp.bfloat16))[0]
    assert y.dtype == jnp.bfloat16
    full = np.asarray(Stack(SPEC).apply(variables, x)[0])
    assert np.abs(y.astype(np.float32) - full).max() < 0.05 * np.abs(full).max()
