"""Losses over the global batch. Under jit the arrays are global, so one line means all devices."""

import jax
import jax.numpy as jnp
import optax


def normalize(x, eps: float = 1e-12):
    """x[..., D] -> unit length along the last axis, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), eps**2))


def info_nce(a, b, scale):
    """Symmetric InfoNCE (arXiv 2103.00020, figure 3): row i of `a` belongs to row i of `b` and to
    no other.

    a, b: f32[B, D], need not be normalised. scale: f32[], 1 / temperature.
    Returns: f32[], the mean of both directions (ImageBind and LanguageBind print their sum or mean;
    the
    gradient's direction is the same), and metrics {"a2b", "b2a"}: the fraction of rows that find
    their partner first.
    """
    logits = scale * normalize(a) @ normalize(b).T
    own = jnp.arange(logits.shape[0])
    loss = sum(
        optax.softmax_cross_entropy_with_integer_labels(x, own).mean() for x in (logits, logits.T)
    )
    first = {"a2b": jnp.argmax(logits, 1) == own, "b2a": jnp.argmax(logits, 0) == own}
    return loss / 2, {name: hit.mean() for name, hit in first.items()}
