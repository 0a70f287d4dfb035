"""The block of everything, and a stack of it."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from bind.nn.attention import Attention, Cache
from bind.nn.layers import NORMS, Mlp, drop_path

REMAT_POLICIES = {
    "none": None,  # keep every activation
    "full": jax.checkpoint_policies.nothing_saveable,  # keep only the blocks' inputs
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep the GEMMs' results
}


@dataclasses.dataclass(frozen=True)
class TransformerSpec:
    """The numbers of a pre-norm transformer. Each exists because two checkpoints differ in it."""

    width: int
    depth: int
    heads: int
    mlp_width: int
    kv_heads: int | None = None
    head_dim: int | None = None
    norm: str = "layer"  # or "rms"
    norm_eps: float = 1e-6
    activation: str = "gelu"  # or "quick_gelu", "silu"
    gated_mlp: bool = False
    qkv_bias: bool = True
    bias: bool = True  # of the attention output and the MLP
    bias_kv: bool = False
    drop_path: float = 0.0  # of the last block; grows linearly from 0
    remat: str = "none"  # a name in REMAT_POLICIES


def over_batch(x):
    """x[B, ...] kept split over the batch axes of the mesh in force, if there is one.

    The one activation constraint of the package: without it, GSPMD may choose to follow a weight's
    sharding and gather the batch.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(a for a in ("data", "fsdp") if a in mesh.auto_axes)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes)) if axes else x


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), for x[B, T, width].

    mask, rope, cache: see Attention. drop_rate f32[]: used only where a `dropout` rng is given.
    Returns the new x and cache, as a scan over layers wants them.
    """

    spec: TransformerSpec

    @nn.compact
    def __call__(self, x, cache: Cache | None, drop_rate, mask, rope):
        s, norm = self.spec, NORMS[self.spec.norm]
        drop = s.drop_path > 0 and self.has_rng("dropout")

        def residual(x, y):
            return x + (drop_path(y, drop_rate, self.make_rng("dropout")) if drop else y)

        attention = Attention(
            s.heads, s.kv_heads, s.head_dim, s.qkv_bias, s.bias, s.bias_kv, name="attn"
        )
        y, cache = attention(norm(s.norm_eps, name="norm1")(x), mask=mask, rope=rope, cache=cache)
        x = residual(x, y)
        mlp = Mlp(s.mlp_width, s.activation, s.gated_mlp, s.bias, name="mlp")
        return over_batch(residual(x, mlp(norm(s.norm_eps, name="norm2")(x)))), cache


class Stack(nn.Module):
    """`depth` blocks as one scan: compiled once, parameters and caches lead with a layer axis.

    x[B, T, width] -> x[B, T, width], cache. Any block with Block's signature will do.
    """

    spec: TransformerSpec
    block: type[nn.Module] = Block

    @nn.compact
    def __call__(self, x, *, mask=None, rope=None, cache: Cache | None = None):
        s, block = self.spec, self.block
        if s.remat != "none":
            block = nn.remat(block, prevent_cse=False, policy=REMAT_POLICIES[s.remat])
        blocks = nn.scan(
            block,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, 0, nn.broadcast, nn.broadcast),
            length=s.depth,
        )(s, name="blocks")
        return blocks(x, cache, jnp.linspace(0.0, s.drop_path, s.depth), mask, rope)
