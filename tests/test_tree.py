import doctest

import jax.numpy as jnp
import numpy as np
import pytest

from bind import tree


def test_the_docstrings_examples():
    assert doctest.testmod(tree).attempted >= 4
    assert doctest.testmod(tree).failed == 0


def test_partition_and_combine_are_inverses_and_prune_empty_branches():
    params = {"a": {"x": 1, "y": {"z": 2}}, "b": {"x": 3}}
    yes, no = tree.partition(params, tree.matcher(r".*/x"))
    assert yes == {"a": {"x": 1}, "b": {"x": 3}}
    assert no == {"a": {"y": {"z": 2}}}
    assert tree.combine(yes, no) == params == tree.combine(no, yes)


def test_combine_refuses_two_trees_with_the_same_leaf():
    with pytest.raises(ValueError, match="'x'"):
        tree.combine({"a": {"x": 1}}, {"a": {"x": 2}})


def test_a_matcher_wants_the_whole_path():
    assert not tree.matcher("projector")("projector/kernel")
    assert tree.matcher("(projector|llm)/.*")("llm/a/b")


def test_sizes():
    t = {"a": np.zeros((2, 3), np.float32), "b": jnp.zeros(4, jnp.bfloat16)}
    assert (tree.size(t), tree.nbytes(t)) == (10, 32)
    assert list(tree.describe(t)) == ["a  float32[2, 3]", "b  bfloat16[4]"]
