"""Raw modality -> tokens. One strided convolution serves pictures, video, sound and sensors."""

import dataclasses
import math
import string

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from bind.nn.layers import Embed, LayerNorm, torch_uniform


@dataclasses.dataclass(frozen=True)
class PatchSpec:
    """A grid of patches: N-dimensional input [B, *space, channels] cut by one convolution.

    The input that fills the position table exactly has the extent (grid - 1) * stride + patch.
    """

    patch: tuple[int, ...]
    grid: tuple[int, ...]  # tokens along each axis
    channels: int
    stride: tuple[int, ...] | None = None  # the patch itself, unless patches overlap
    norm: bool = False  # LayerNorm (eps 1e-5) behind the convolution

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def strides(self) -> tuple[int, ...]:
        return self.stride or self.patch

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        """One input of the native size, f32[1, *space, channels]."""
        space = (
            (g - 1) * s + p for g, s, p in zip(self.grid, self.strides, self.patch, strict=True)
        )
        return jax.ShapeDtypeStruct((1, *space, self.channels), jnp.float32)


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """Token ids i32[B, length]; the sequence's embedding is read at the first `eos`."""

    vocabulary: int
    length: int
    eos: int

    @property
    def tokens(self) -> int:
        return self.length

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, self.length), jnp.int32)


class PatchStem(nn.Module):
    """x[B, *space, channels] -> tokens [B, N, width], row-major over the grid.

    Where the patch has one axis more than the input (a still picture for a video stem), the picture
    is repeated to fill one patch in time, as ImageBind does
    (imagebind/models/multimodal_preprocessors.py).
    """

    spec: PatchSpec
    width: int

    @nn.compact
    def __call__(self, x):
        s = self.spec
        if x.ndim == len(s.patch) + 1:
            x = jnp.repeat(x[:, None], s.patch[0], axis=1)
        if x.ndim != len(s.patch) + 2 or x.shape[-1] != s.channels:
            raise ValueError(
                f"this stem takes [B, {len(s.patch)} axes, {s.channels}], not {list(x.shape)}"
            )
        kernel = self.param("kernel", torch_uniform, (*s.patch, s.channels, self.width))
        kernel = kernel.astype(x.dtype)
        if s.strides == s.patch:
            y = _patches(x, s.patch) @ kernel.reshape(-1, self.width)
        else:
            space = string.ascii_lowercase[: len(s.patch)]
            layout = (f"N{space}C", f"{space}IO", f"N{space}C")
            y = jax.lax.conv_general_dilated(
                x, kernel, s.strides, "VALID", dimension_numbers=layout
            )
        y = y.reshape(y.shape[0], -1, self.width)
        return LayerNorm(1e-5, name="norm")(y) if s.norm else y


def _patches(x, patch):
    """x[B, *space, C] -> [B, *grid, prod(patch) * C]; what does not fill a patch is cut off.

    A GEMM behind it is the convolution, and several times faster than one on CPU.
    """
    grid = [n // p for n, p in zip(x.shape[1:-1], patch, strict=True)]
    x = x[(slice(None), *(slice(g * p) for g, p in zip(grid, patch, strict=True)))]
    axes = [name for i in range(len(patch)) for name in (f"g{i}", f"p{i}")]
    lengths = {f"p{i}": p for i, p in enumerate(patch)}
    pattern = " ".join(f"({g} {p})" for g, p in zip(axes[::2], axes[1::2], strict=True))
    return einops.rearrange(
        x, f"b {pattern} c -> b {' '.join(axes[::2])} ({' '.join(axes[1::2])} c)", **lengths
    )


def make_stem(spec: PatchSpec | TextSpec, width: int, dtype: jnp.dtype) -> nn.Module:
    """The stem of a tower, as its submodule `stem`."""
    if isinstance(spec, TextSpec):
        return Embed(spec.vocabulary, width, dtype, name="stem")
    return PatchStem(spec, width, name="stem")
