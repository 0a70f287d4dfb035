"""Tower = stem + positions + Stack + pool + norm + projection: the encoder of every modality."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers as init

from bind.models.stems import PatchSpec, TextSpec, make_stem
from bind.nn.attention import causal_mask
from bind.nn.layers import NORMS, Linear, torch_uniform
from bind.nn.transformer import Stack, TransformerSpec

MAX_LOGIT_SCALE = 100.0  # CLIP's clamp (arXiv 2103.00020, section 2.5)


@dataclasses.dataclass(frozen=True)
class TowerSpec:
    """The numbers of one encoder. Hashable, so that a Linen module may hold it."""

    stem: PatchSpec | TextSpec
    transformer: TransformerSpec
    embed_dim: int
    pre_norm: bool = False  # a norm between positions and the first block (CLIP's vision towers)
    head_dropout: float = 0.0  # before the projection, where a `dropout` rng is given
    logit_scale: float | None = None  # initial 1 / temperature of pairs with this modality


class Tower(nn.Module):
    """One modality's encoder.

    Patches get a class token in front, whose output is pooled; text is causal and pooled at its
    first end-of-sequence id (the position of CLIP's largest id).

    x: what the stem takes (see PatchSpec, TextSpec). Computes in `dtype`. Returns a dict:
      tokens dtype[B, N, width]: the trunk's output before the final norm, class token included
      pooled dtype[B, width]: the pooled token behind the final norm
      embedding f32[B, embed_dim]: projected, not normalised
      logit_scale f32[]: clamped at 100; only where the spec has one
    """

    spec: TowerSpec
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        s = self.spec
        width, text = s.transformer.width, isinstance(s.stem, TextSpec)
        norm = NORMS[s.transformer.norm]
        x = jnp.asarray(x) if text else jnp.asarray(x, self.dtype)
        h = make_stem(s.stem, width, self.dtype)(x)
        if not text:
            cls = self.param("cls", init.normal(width**-0.5), (1, width)).astype(self.dtype)
            h = jnp.concatenate([jnp.broadcast_to(cls, (h.shape[0], 1, width)), h], axis=1)
        positions = self.param(
            "positions",
            init.normal(0.01 if text else width**-0.5),
            (s.stem.tokens + (not text), width),
        )
        if h.shape[1] != positions.shape[0]:
            raise ValueError(
                f"{self.name}: input {list(x.shape)} gives {h.shape[1]} tokens, its position table "
                f"has {positions.shape[0]}; the native input is {list(s.stem.example.shape[1:])}"
            )
        h = h + positions.astype(self.dtype)
        if s.pre_norm:
            h = norm(s.transformer.norm_eps, name="pre_norm")(h)
        tokens, _ = Stack(s.transformer, name="trunk")(
            h, mask=causal_mask(h.shape[1]) if text else None
        )

        pooled = tokens[:, 0]
        if text:
            at = jnp.argmax(x == s.stem.eos, axis=-1)
            pooled = jnp.take_along_axis(tokens, at[:, None, None], axis=1)[:, 0]
        pooled = norm(s.transformer.norm_eps, name="norm")(pooled)
        out = {"tokens": tokens, "pooled": pooled}
        if s.head_dropout and self.has_rng("dropout"):
            keep = 1 - s.head_dropout
            mask = jax.random.bernoulli(self.make_rng("dropout"), keep, pooled.shape)
            pooled = jnp.where(mask, pooled / keep, 0)
        head = Linear(s.embed_dim, use_bias=False, kernel_init=torch_uniform, name="projection")
        out["embedding"] = head(pooled).astype(jnp.float32)
        if s.logit_scale is not None:
            log_scale = self.param("logit_scale", init.constant(jnp.log(s.logit_scale)), ())
            out["logit_scale"] = jnp.minimum(jnp.exp(log_scale), MAX_LOGIT_SCALE)
        return out
