"""The one rule table, on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from bind import sharding, tree
from bind.errors import ConfigError
from bind.models.imagebind import HUGE, example_inputs, imagebind


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(data=2, fsdp=2, tensor=2)


def huge_shapes():
    model = imagebind(HUGE)
    return jax.eval_shape(model.init, jax.random.key(0), example_inputs(model))["params"]


def test_a_block_is_split_over_fsdp_and_tensor_and_its_layer_axis_is_not(mesh):
    block = "vision/trunk/blocks/"
    assert sharding.spec(block + "attn/q/kernel", (32, 1280, 1280), mesh) == P(
        None, "fsdp", "tensor"
    )
    assert sharding.spec(block + "mlp/down/kernel", (32, 5120, 1280), mesh) == P(
        None, "tensor", "fsdp"
    )
    assert sharding.spec(block + "attn/out/kernel", (32, 1280, 1280), mesh) == P(
        None, "tensor", "fsdp"
    )
    assert sharding.spec(block + "attn/q/bias", (32, 1280), mesh) == P(None, "tensor")
    assert sharding.spec(block + "norm1/scale", (32, 1280), mesh) == P(None, None)


def test_an_axis_that_does_not_divide_is_left_out(mesh):
    assert sharding.spec("x/q/kernel", (7, 6), mesh) == P(None, "tensor")


def test_a_scalar_is_never_split(mesh):
    assert sharding.spec("text/logit_scale", (), mesh) == P()


def test_adams_moments_follow_their_parameters(mesh):
    params = {"vision": {"attn": {"q": {"kernel": jax.ShapeDtypeStruct((8, 8), jnp.float32)}}}}
    moments = jax.eval_shape(optax.scale_by_adam().init, params)
    specs = {p: s.spec for p, s in tree.paths(sharding.shardings(moments, mesh)).items()}
    assert (
        specs["mu/vision/attn/q/kernel"] == specs["nu/vision/attn/q/kernel"] == P("fsdp", "tensor")
    )
    assert specs["count"] == P()


def test_lora_leaves_split_on_the_side_of_their_kernel(mesh):
    assert sharding.spec("lora/text/attn/q/a", (2, 8, 4), mesh) == P(None, "fsdp", None)
    assert sharding.spec("lora/text/attn/q/b", (2, 4, 8), mesh) == P(None, None, "tensor")
    assert sharding.spec("lora/text/attn/out/a", (8, 4), mesh) == P("tensor", None)


def test_every_leaf_of_a_mebibyte_of_imagebind_huge_is_split(mesh):
    shapes = huge_shapes()
    specs = tree.paths(sharding.shardings(shapes, mesh))
    whole = [
        p
        for p, s in tree.paths(shapes).items()
        if tree.nbytes(s) >= 2**20 and not any(specs[p].spec)
    ]
    assert whole == []


def test_a_mesh_takes_what_is_left_and_says_what_does_not_fit():
    assert dict(sharding.make_mesh(fsdp=-1, tensor=2).shape) == {"data": 1, "fsdp": 4, "tensor": 2}
    with pytest.raises(ConfigError, match="needs 6 devices, there are 8"):
        sharding.make_mesh(data=3, fsdp=2)
    with pytest.raises(ConfigError, match="at most one"):
        sharding.make_mesh(data=-1, fsdp=-1)
    with pytest.raises(ConfigError, match="there are 8"):
        sharding.make_mesh(fsdp=-1, tensor=3)


def test_a_batch_is_split_over_data_and_fsdp_in_row_order(mesh):
    x = np.arange(8 * 3).reshape(8, 3)
    batch = sharding.put_batch({"x": x}, mesh)
    np.testing.assert_array_equal(batch["x"], x)
    assert batch["x"].addressable_shards[0].data.shape == (2, 3)
    assert sharding.local_rows(8, mesh) == (0, 8)
    with pytest.raises(ConfigError, match="multiple of 4"):
        sharding.local_rows(6, mesh)
