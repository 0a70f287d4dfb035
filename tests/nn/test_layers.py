"""Layers against numbers computed another way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from bind.nn.layers import ACTIVATIONS, Embed, LayerNorm, Linear, Mlp, RMSNorm, drop_path

rng = np.random.default_rng(0)


def test_linear_is_x_kernel_plus_bias():
    x, kernel, bias = (rng.normal(size=s).astype(np.float32) for s in ((3, 4), (4, 5), (5,)))
    y = Linear(5).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(y, x @ kernel + bias, rtol=1e-5, atol=1e-6)


def test_linear_adds_the_adapter_where_the_tree_has_one_and_its_scale_gets_no_gradient():
    x, kernel = (
        rng.normal(size=(3, 4)).astype(np.float32),
        rng.normal(size=(4, 5)).astype(np.float32),
    )
    a, b = rng.normal(size=(4, 2)).astype(np.float32), rng.normal(size=(2, 5)).astype(np.float32)
    layer = Linear(5, use_bias=False)

    def apply(lora):
        return layer.apply({"params": {"kernel": kernel}, "lora": lora}, x)

    lora = {"a": a, "b": b, "scale": np.float32(0.5)}
    np.testing.assert_allclose(apply(lora), x @ (kernel + 0.5 * a @ b), rtol=1e-5, atol=1e-5)
    grads = jax.grad(lambda lora: apply(lora).sum())(lora)
    assert grads["scale"] == 0 and np.abs(grads["a"]).min() > 0


def test_linear_kernel_is_drawn_in_xaviers_range():
    kernel = Linear(300).init(jax.random.key(0), jnp.ones((1, 100)))["params"]["kernel"]
    bound = np.sqrt(6 / 400)
    assert 0.99 * bound < np.abs(kernel).max() <= bound


def test_layer_norm_has_biased_variance_and_the_eps_inside_the_root():
    x = np.array([[1.0, 2.0, 4.0]], np.float32)
    scale, bias = np.array([1.0, 2.0, 3.0], np.float32), np.array([0.5, 0.0, -0.5], np.float32)
    y = LayerNorm(0.1).apply({"params": {"scale": scale, "bias": bias}}, x)
    centred = x - 7 / 3
    np.testing.assert_allclose(
        y, centred / np.sqrt((centred**2).mean() + 0.1) * scale + bias, rtol=1e-6
    )


def test_rms_norm_does_not_centre():
    y = RMSNorm(0.0).apply(
        {"params": {"scale": np.ones(2, np.float32)}}, np.array([[3.0, 4.0]], np.float32)
    )
    np.testing.assert_allclose(y, np.array([[3.0, 4.0]]) / np.sqrt(12.5), rtol=1e-6)


@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm])
def test_norms_compute_in_float32_and_return_the_inputs_dtype(norm):
    x = (1000 + rng.normal(size=(2, 512))).astype(jnp.bfloat16)
    variables = norm(1e-6).init(jax.random.key(0), x)
    y = norm(1e-6).apply(variables, x)
    wide = norm(1e-6).apply(variables, x.astype(np.float32))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, wide.astype(jnp.bfloat16))


def test_gelu_is_the_exact_one_and_quick_gelu_openais():
    x = np.linspace(-4, 4, 41, dtype=np.float32)
    np.testing.assert_allclose(ACTIVATIONS["gelu"](x), x * (1 + erf(x / np.sqrt(2))) / 2, atol=1e-6)
    np.testing.assert_allclose(
        ACTIVATIONS["quick_gelu"](x), x / (1 + np.exp(-1.702 * x)), atol=1e-6
    )


def test_gated_mlp_is_silu_of_gate_times_up():
    x = rng.normal(size=(2, 4)).astype(np.float32)
    mlp = Mlp(6, "silu", gated=True, use_bias=False)
    params = mlp.init(jax.random.key(0), x)["params"]
    gate, up, down = (np.asarray(params[n]["kernel"]) for n in ("gate", "up", "down"))
    g = x @ gate
    np.testing.assert_allclose(
        mlp.apply({"params": params}, x),
        (g / (1 + np.exp(-g)) * (x @ up)) @ down,
        rtol=2e-5,
        atol=1e-6,
    )


def test_embedding_of_an_id_outside_the_vocabulary_is_nan_not_another_word():
    embed = Embed(5, 3)
    variables = embed.init(jax.random.key(0), jnp.array([0]))
    out = np.asarray(embed.apply(variables, jnp.array([4, 5])))
    np.testing.assert_array_equal(out[0], variables["params"]["table"][4])
    assert np.isnan(out[1]).all()


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    x = jnp.ones((4000, 3))
    y = np.asarray(drop_path(x, jnp.float32(0.25), jax.random.key(0)))
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert (y.std(axis=1) == 0).all()
    assert abs(y.mean() - 1) < 0.03
