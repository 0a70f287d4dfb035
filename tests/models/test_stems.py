"""Stems against convolutions written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bind.models.stems import PatchSpec, PatchStem

rng = np.random.default_rng(0)


def slow_tokens(x, kernel, strides):
    """Dot products of the kernel with each window, row-major over the grid."""
    patch = kernel.shape[:-2]
    grid = [(n - p) // s + 1 for n, p, s in zip(x.shape[1:-1], patch, strides, strict=True)]
    tokens = []
    for at in np.ndindex(*grid):
        window = tuple(slice(i * s, i * s + p) for i, s, p in zip(at, strides, patch, strict=True))
        axes = tuple(range(1, x.ndim))
        tokens.append(
            np.tensordot(x[(slice(None), *window)], kernel, (axes, tuple(range(x.ndim - 1))))
        )
    return np.stack(tokens, 1)


@pytest.mark.parametrize(
    ("patch", "stride", "space", "channels"),
    [
        ((2, 3), None, (4, 9), 2),
        ((4, 4), (3, 2), (10, 8), 1),  # overlapping, as ImageBind's audio
        ((8,), None, (24,), 6),
        ((2, 4, 4), None, (4, 8, 4), 3),
    ],
)
def test_patches_are_windows_times_kernel(patch, stride, space, channels):
    strides = stride or patch
    grid = tuple((n - p) // s + 1 for n, p, s in zip(space, patch, strides, strict=True))
    spec = PatchSpec(patch, grid, channels, stride)
    x = rng.normal(size=(2, *space, channels)).astype(np.float32)
    kernel = rng.normal(size=(*patch, channels, 5)).astype(np.float32)
    y = PatchStem(spec, 5).apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(y, slow_tokens(x, kernel, strides), rtol=1e-4, atol=1e-4)
    assert spec.example.shape == (1, *space, channels)
    assert y.shape[1] == spec.tokens


def test_a_picture_for_a_video_stem_is_repeated_in_time():
    spec = PatchSpec((2, 4, 4), (1, 2, 2), 3)
    picture = rng.normal(size=(1, 8, 8, 3)).astype(np.float32)
    variables = PatchStem(spec, 6).init(jax.random.key(0), picture)
    video = np.stack([picture, picture], 1)
    np.testing.assert_array_equal(
        PatchStem(spec, 6).apply(variables, picture), PatchStem(spec, 6).apply(variables, video)
    )


def test_wrong_channels_or_axes_are_refused_with_the_shape():
    with pytest.raises(ValueError, match=r"3\], not \[1, 8, 8, 1\]"):
        PatchStem(PatchSpec((4, 4), (2, 2), 3), 6).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
