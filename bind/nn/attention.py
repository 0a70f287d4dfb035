"""Attention over tokens. An array (mask, rope, cache) is an argument; a number is a field."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers as init

from bind.nn.layers import Linear, packed_xavier_uniform


class Cache(NamedTuple):
    """Keys and values of the tokens seen so far; static shape, `index` says how much is filled.

    k, v: [B, S, kv_heads, head_dim] with room for S tokens.
    index: i32[B], tokens already stored per row.
    Rows may be filled to different lengths; the caller's mask hides what is not (`cache_mask`).
    """

    k: jax.Array
    v: jax.Array
    index: jax.Array


class Rope(NamedTuple):
    """Rotary angles of each query and key position: cos, sin f32[B or 1, T, head_dim // 2]."""

    cos: jax.Array
    sin: jax.Array


def rope(positions, head_dim: int, theta: float = 10_000.0) -> Rope:
    """positions i32[B, T] -> Rope, frequencies theta^(-2i / head_dim) (arXiv 2104.09864)."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return Rope(jnp.cos(angles), jnp.sin(angles))


def rotate(x, angles: Rope):
    """x[B, T, H, D] with its halves rotated against each other (Hugging Face's LLaMA)."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = angles.cos[:, :, None, :], angles.sin[:, :, None, :]
    y = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return y.astype(x.dtype)


def causal_mask(queries: int, keys: int | None = None):
    """bool[1, 1, Q, K], True where a query may look: itself and before, right-aligned."""
    keys = keys or queries
    return (jnp.arange(keys)[None] <= jnp.arange(queries)[:, None] + keys - queries)[None, None]


def cache_mask(index, queries: int, slots: int):
    """bool[B, 1, Q, S] for T = `queries` new tokens behind index i32[B] stored ones."""
    last = index[:, None] + jnp.arange(queries)[None]
    return (jnp.arange(slots)[None, None] <= last[..., None])[:, None]


def attend(q, k, v, mask=None):
    """softmax(q k^T / sqrt(D)) v, for q[B, T, H, D] and k, v[B, S, kv_heads, D]: [B, T, H, D].

    mask: bool (True = may look) or float (added to the logits), broadcastable to [B, H, T, S].
    The one place where a faster kernel would be chosen.
    """
    if mask is not None and mask.dtype != jnp.bool_:
        return jax.nn.dot_product_attention(q, k, v, bias=mask.astype(q.dtype))
    return jax.nn.dot_product_attention(q, k, v, mask=mask)


class Attention(nn.Module):
    """Multi-head attention of x[B, T, width] over itself, or over kv[B, S, kv_width].

    Fields:
      kv_heads: of keys and values, each shared by heads // kv_heads queries (arXiv 2305.13245).
      head_dim: width // heads unless a checkpoint says otherwise.
      bias_kv: one learned key and value behind the sequence that every query may look at
        (torch.nn.MultiheadAttention's add_bias_kv, in four of ImageBind's towers).
    Returns: y[B, T, width], and the cache with x's keys and values stored (None without a cache).
    """

    heads: int
    kv_heads: int | None = None
    head_dim: int | None = None
    qkv_bias: bool = True
    out_bias: bool = True
    bias_kv: bool = False

    @nn.compact
    def __call__(
        self, x, kv=None, *, mask=None, rope: Rope | None = None, cache: Cache | None = None
    ):
        kv = x if kv is None else kv
        head_dim = self.head_dim or x.shape[-1] // self.heads
        kv_heads = self.kv_heads or self.heads

        def project(name, inputs, heads):
            y = Linear(heads * head_dim, self.qkv_bias, packed_xavier_uniform, name=name)(inputs)
            return y.reshape(*y.shape[:-1], heads, head_dim)

        q, k, v = (
            project("q", x, self.heads),
            project("k", kv, kv_heads),
            project("v", kv, kv_heads),
        )
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        if cache is not None:
            write = jax.vmap(
                lambda row, new, at: jax.lax.dynamic_update_slice_in_dim(row, new, at, 0)
            )
            k = write(cache.k, k.astype(cache.k.dtype), cache.index)
            v = write(cache.v, v.astype(cache.v.dtype), cache.index)
            cache = Cache(k, v, cache.index + x.shape[1])
        if self.bias_kv:
            extra = (
                self.param(f"bias_{n}", init.xavier_normal(), (1, kv_heads * head_dim))
                for n in "kv"
            )
            k, v = (
                _append(t, e.reshape(1, 1, kv_heads, head_dim))
                for t, e in zip((k, v), extra, strict=True)
            )
            mask = None if mask is None else _see_one_more(mask)
        y = attend(q, k.astype(q.dtype), v.astype(q.dtype), mask)
        y = y.reshape(*y.shape[:-2], self.heads * head_dim)
        return Linear(x.shape[-1], self.out_bias, name="out")(y), cache


def _append(tokens, extra):
    extra = jnp.broadcast_to(extra.astype(tokens.dtype), (tokens.shape[0], *extra.shape[1:]))
    return jnp.concatenate([tokens, extra], axis=1)


def _see_one_more(mask):
    """Widens the mask's key axis by one column that hides nothing."""
    fill = True if mask.dtype == jnp.bool_ else 0.0
    return jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, 1)], constant_values=fill)
