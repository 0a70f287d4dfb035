"""The smallest organs: Linear, Embed, norms, Mlp, drop path.

Dtype policy, in one sentence: parameters keep the dtype they are stored in, and every layer
computes in the dtype of its input (norms in float32). A bf16 forward pass is therefore
`tower(x.astype(bfloat16))`. Linear kernels are [in, out]; under a scanned Stack every leaf has a
leading layer axis.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers as init

# torch.nn.Linear and Conv (kaiming_uniform, a=sqrt(5)), and timm's and ImageBind's trunk.
torch_uniform = init.variance_scaling(1 / 3, "fan_in", "uniform")
xavier_uniform = init.xavier_uniform()
# torch.nn.MultiheadAttention draws q, k, v as one [3E, E] matrix: that halves xavier's variance.
packed_xavier_uniform = init.variance_scaling(1 / 2, "fan_avg", "uniform")

ACTIVATIONS: dict[str, Callable] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI CLIP
    "silu": jax.nn.silu,
}


class Linear(nn.Module):
    """x[..., in] -> [..., features], plus a low-rank adapter where the tree has one.

    The adapter is three leaves beside the kernel in the collection `lora`: a [in, r], b [r, out]
    and scale []. It is added as `scale * (x a) b`; forming `kernel + scale * a b` inside a training
    step would cost three GEMMs instead of two (arXiv 2106.09685, section 4.1).
    """

    features: int
    use_bias: bool = True
    kernel_init: Callable = xavier_uniform

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        y = x @ kernel.astype(x.dtype)
        if self.has_variable("lora", "a"):
            a, b, scale = (
                self.get_variable("lora", leaf).astype(x.dtype) for leaf in ("a", "b", "scale")
            )
            y = y + jax.lax.stop_gradient(scale) * ((x @ a) @ b)
        if self.use_bias:
            y = y + self.param("bias", init.zeros, (self.features,)).astype(x.dtype)
        return y


class Embed(nn.Module):
    """ids i32[...] -> dtype[..., width], rows of `table` [vocabulary, width].

    Ids outside the vocabulary give NaN rows, so a tokenizer that does not fit shows at once.
    """

    vocabulary: int
    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids):
        table = self.param("table", init.normal(0.02), (self.vocabulary, self.width))
        return jnp.asarray(table, self.dtype).at[ids].get(mode="fill", fill_value=jnp.nan)


class LayerNorm(nn.Module):
    """Normalises the last axis in float32; returns the dtype of its input."""

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", init.ones, (x.shape[-1],))
        bias = self.param("bias", init.zeros, (x.shape[-1],))
        h = x.astype(jnp.float32)
        h = h - h.mean(-1, keepdims=True)
        h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + self.eps)
        return (h * scale + bias).astype(x.dtype)


class RMSNorm(nn.Module):
    """Divides by the root mean square of the last axis, in float32 (arXiv 1910.07467)."""

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", init.ones, (x.shape[-1],))
        h = x.astype(jnp.float32)
        h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + self.eps)
        return (h * scale).astype(x.dtype)


NORMS = {"layer": LayerNorm, "rms": RMSNorm}


class Mlp(nn.Module):
    """x[..., width] -> [..., width] through `hidden` units; `gated` is SwiGLU's act(gate) * up."""

    hidden: int
    activation: str = "gelu"
    gated: bool = False
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        act = ACTIVATIONS[self.activation]
        h = Linear(self.hidden, self.use_bias, name="up")(x)
        h = act(Linear(self.hidden, self.use_bias, name="gate")(x)) * h if self.gated else act(h)
        return Linear(x.shape[-1], self.use_bias, name="down")(h)


def drop_path(x, rate, key):
    """Zeroes the residual branch x[B, ...] of a sample with probability `rate` (1603.09382)."""
    keep = jax.random.bernoulli(key, 1 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(keep, x / (1 - rate).astype(x.dtype), jnp.zeros_like(x))
