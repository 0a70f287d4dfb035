import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bind import losses, sharding

rng = np.random.default_rng(0)
a, b = (rng.normal(size=(8, 5)).astype(np.float32) for _ in range(2))


def slow_info_nce(a, b, scale):
    unit = [
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a.astype(float), b.astype(float))
    ]
    logits = scale * unit[0] @ unit[1].T
    rows = [-logits[i, i] + np.log(np.exp(logits[i]).sum()) for i in range(len(a))]
    columns = [-logits[i, i] + np.log(np.exp(logits[:, i]).sum()) for i in range(len(a))]
    return (np.mean(rows) + np.mean(columns)) / 2


def test_value_is_the_mean_of_both_directions():
    loss, hits = losses.info_nce(a, b, 3.0)
    assert float(loss) == pytest.approx(slow_info_nce(a, b, 3.0), rel=1e-6)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    logits = unit[0] @ unit[1].T
    assert float(hits["a2b"]) == (logits.argmax(1) == np.arange(8)).mean()
    assert float(hits["b2a"]) == (logits.argmax(0) == np.arange(8)).mean()


def test_identical_pairs_far_apart_cost_nothing_and_equal_rows_cost_log_n():
    eye = np.eye(4, dtype=np.float32)
    assert float(losses.info_nce(eye, eye, 50.0)[0]) < 1e-6
    same = np.ones((4, 3), np.float32)
    assert float(losses.info_nce(same, same, 50.0)[0]) == pytest.approx(np.log(4), rel=1e-6)


def test_length_of_the_inputs_does_not_matter_and_zero_rows_are_finite():
    x, y = losses.info_nce(a, b, 3.0)[0], losses.info_nce(7 * a, 0.1 * b, 3.0)[0]
    assert float(x) == pytest.approx(float(y), rel=1e-6)
    grad = jax.grad(lambda a: losses.info_nce(a, b, 3.0)[0])(np.zeros_like(a))
    assert np.isfinite(grad).all()


def test_negatives_come_from_the_whole_batch_whatever_the_mesh():
    def f(a, b):
        return jax.value_and_grad(lambda a, b: losses.info_nce(a, b, 3.0)[0], argnums=(0, 1))(a, b)

    whole = jax.jit(f)(a, b)
    mesh = sharding.make_mesh(data=4, fsdp=2)
    with jax.set_mesh(mesh):
        split = jax.jit(f)(*sharding.put_batch({"a": a, "b": b}, mesh).values())
    for x, y in zip(jax.tree.leaves(whole), jax.tree.leaves(split), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


def test_normalize_works_in_float32():
    x = jnp.array([[3e4, 4e4]], jnp.bfloat16)
    np.testing.assert_allclose(losses.normalize(x), [[0.6, 0.8]], rtol=1e-2)
    assert losses.normalize(x).dtype == jnp.float32
