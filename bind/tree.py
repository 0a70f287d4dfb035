"""Trees by path. A path is the names from the root joined by '/':
`vision/trunk/blocks/attn/q/kernel`.

Freezing, sharding, weight decay and saving are functions of these paths.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax

Tree = Any


def key_path(keys) -> str:
    """A jax key path as text: dict keys, attribute names and indices joined by '/'."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys)


def paths(tree: Tree) -> dict[str, Any]:
    """{path: leaf}, in the tree's order.

    >>> paths({"a": {"b": 1}, "c": [2, 3]})
    {'a/b': 1, 'c/0': 2, 'c/1': 3}
    """
    return {key_path(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_with_path(f: Callable, tree: Tree, *rest: Tree) -> Tree:
    """f(path, leaf, *leaves of the other trees) for every leaf."""
    return jax.tree_util.tree_map_with_path(lambda keys, *xs: f(key_path(keys), *xs), tree, *rest)


def matcher(regex: str) -> Callable[[str], bool]:
    """Whether a whole path matches.

    >>> matcher("(projector|llm)/.*")("llm/head/kernel")
    True
    """
    compiled = re.compile(regex)
    return lambda path: compiled.fullmatch(path) is not None


def partition(tree: dict, wanted: Callable[[str], bool]) -> tuple[dict, dict]:
    """Splits nested dicts into (leaves whose path is wanted, the others); empty branches vanish.

    >>> partition({"a": {"x": 1, "y": 2}, "b": 3}, lambda path: path == "a/x")
    ({'a': {'x': 1}}, {'a': {'y': 2}, 'b': 3})
    """

    def split(node: dict, prefix: str) -> tuple[dict, dict]:
        yes, no = {}, {}
        for name, child in node.items():
            path = f"{prefix}{name}"
            if isinstance(child, dict):
                for side, part in zip((yes, no), split(child, path + "/"), strict=True):
                    if part:
                        side[name] = part
            else:
                (yes if wanted(path) else no)[name] = child
        return yes, no

    return split(tree, "")


def combine(*trees: dict) -> dict:
    """The union of nested dicts with disjoint leaves; the inverse of `partition`.

    >>> combine({'a': {'x': 1}}, {'a': {'y': 2}, 'b': 3})
    {'a': {'x': 1, 'y': 2}, 'b': 3}
    """
    out: dict = {}
    for tree in trees:
        for name, child in tree.items():
            if name not in out:
                out[name] = child
            elif isinstance(child, dict) and isinstance(out[name], dict):
                out[name] = combine(out[name], child)
            else:
                raise ValueError(f"two trees both have the leaf {name!r}")
    return out


def size(tree: Tree) -> int:
    """The number of scalars in a tree of arrays or ShapeDtypeStructs."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def nbytes(tree: Tree) -> int:
    """The bytes of a tree of arrays or ShapeDtypeStructs, all shards together."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def shapes(tree: Tree) -> Tree:
    """The same tree with ShapeDtypeStructs (shardings kept) in place of arrays."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)),
        tree,
    )


def describe(tree: Tree) -> Iterator[str]:
    """One line per leaf: path, dtype and shape."""
    for path, leaf in paths(tree).items():
        yield f"{path}  {leaf.dtype}[{', '.join(map(str, leaf.shape))}]"
