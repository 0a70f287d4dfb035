"""ImageBind (arXiv 2305.05665): one tower per modality, one space for all, as a table of numbers.

Modalities are the keys everywhere: of specs, inputs, outputs and the parameter tree.
"""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from bind.models.stems import PatchSpec, TextSpec
from bind.models.tower import Tower, TowerSpec
from bind.nn.transformer import TransformerSpec


class ImageBind(nn.Module):
    """Encodes any subset of its modalities: {modality: input} -> {modality: Tower's output}.

    Only the towers of the given modalities run, so the parameters of the others may be absent.
    Inputs are channels-last: vision f32[B, H, W, 3] or [B, T, H, W, 3], text i32[B, L],
    audio f32[B, mel, time, 1], depth and thermal f32[B, H, W, 1], imu f32[B, T, 6].
    """

    towers: FrozenDict  # {modality: TowerSpec}
    dtype: jnp.dtype = jnp.float32
    inputs: FrozenDict = FrozenDict()  # how the zoo row prepares each modality; not used here

    @nn.compact
    def __call__(self, inputs: Mapping[str, jax.Array]) -> dict[str, dict[str, jax.Array]]:
        unknown = sorted(set(inputs) - set(self.towers))
        if unknown:
            raise ValueError(f"this model has no tower for {unknown}; it has {sorted(self.towers)}")
        return {
            name: Tower(self.towers[name], self.dtype, name=name)(x)
            for name, x in sorted(inputs.items())
        }


def _vit(width, depth, heads, **more) -> TransformerSpec:
    return TransformerSpec(width, depth, heads, 4 * width, **more)


def imagebind(
    modalities: dict[str, TowerSpec],
    only=None,
    dtype=jnp.float32,
    remat: str = "none",
    inputs: Mapping | None = None,
) -> ImageBind:
    """A model from a table below. `only`: the modalities to build; `remat`: see REMAT_POLICIES."""
    towers = {}
    for name in only or modalities:
        spec = modalities[name]
        towers[name] = dataclasses.replace(
            spec, transformer=dataclasses.replace(spec.transformer, remat=remat)
        )
    return ImageBind(FrozenDict(towers), dtype, FrozenDict(inputs or {}))


# The published model: 1,200,781,057 parameters, embeddings of 1024 (models/imagebind_model.py).
HUGE = {
    "vision": TowerSpec(
        PatchSpec((2, 14, 14), (1, 16, 16), 3), _vit(1280, 32, 16), 1024, pre_norm=True
    ),
    "text": TowerSpec(
        TextSpec(49408, 77, eos=49407), _vit(1024, 24, 16), 1024, logit_scale=1 / 0.07
    ),
    "audio": TowerSpec(
        PatchSpec((16, 16), (12, 19), 1, stride=(10, 10), norm=True),
        _vit(768, 12, 12, bias_kv=True, drop_path=0.1), 1024, logit_scale=20.0,
    ),
    "depth": TowerSpec(
        PatchSpec((16, 16), (14, 14), 1, norm=True),
        _vit(384, 12, 8, bias_kv=True), 1024, logit_scale=5.0,
    ),
    "thermal": TowerSpec(
        PatchSpec((16, 16), (14, 14), 1, norm=True),
        _vit(768, 12, 12, bias_kv=True), 1024, logit_scale=10.0,
    ),
    "imu": TowerSpec(
        PatchSpec((8,), (250,), 6, norm=True),
        _vit(512, 6, 8, bias_kv=True, drop_path=0.7), 1024, head_dropout=0.5, logit_scale=5.0,
    ),
}  # fmt: skip

# What `make demo` trains in minutes on two cores: the same wiring, small numbers.
DEMO = {
    "vision": TowerSpec(PatchSpec((2, 8, 8), (1, 6, 6), 3), _vit(96, 3, 4), 64, pre_norm=True),
    "text": TowerSpec(TextSpec(400, 40, eos=3), _vit(96, 2, 4), 64, logit_scale=1 / 0.07),
    "audio": TowerSpec(
        PatchSpec((32, 24), (4, 8), 1, norm=True),
        _vit(96, 2, 4, bias_kv=True),
        64,
        logit_scale=10.0,
    ),
    "depth": TowerSpec(
        PatchSpec((8, 8), (6, 6), 1, norm=True), _vit(96, 2, 4, bias_kv=True), 64, logit_scale=10.0
    ),
    "imu": TowerSpec(
        PatchSpec((8,), (10,), 6, norm=True), _vit(64, 2, 4, bias_kv=True), 64, logit_scale=10.0
    ),
}


def example_inputs(model: ImageBind) -> dict[str, jax.ShapeDtypeStruct]:
    """One input of the native size per modality, for `init` and `eval_shape`."""
    return {name: spec.stem.example for name, spec in model.towers.items()}
