"""A tree of arrays and a checkpoint: what can be saved, what fits, and reading it."""

import json
from collections import Counter

import jax
import numpy as np
import orbax.checkpoint as ocp

from bind.ckpt.manifest import some
from bind.errors import CheckpointError


def load(folder, like, partial):
    """(tree, meta) of a verified step. `partial`: leaves that `like` does not have are not read."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        about = reader.metadata(folder)
        saved = about.item_metadata.tree
        wanted = _flat(saved if like is None else like)
        _compare(folder, _flat(saved), wanted, partial)

        def how(path, _):
            sharding = getattr(wanted.get(_key(path)), "sharding", None)
            if like is None or sharding is None:
                return ocp.RestoreArgs(restore_type=np.ndarray)
            return ocp.ArrayRestoreArgs(sharding=sharding)

        def what(path, leaf):
            return leaf if _key(path) in wanted else ocp.PLACEHOLDER

        item, args = (jax.tree_util.tree_map_with_path(choose, saved) for choose in (what, how))
        try:
            # the handler's: the checkpointer's own restore has a barrier, and `read` may be alone
            tree = reader.handler.restore(folder, args=ocp.args.PyTreeRestore(item, args))
        except (OSError, ValueError) as fault:  # good a moment ago: a lost mount, a removed step
            raise CheckpointError(folder, f"cannot be read: {fault}") from fault
    if like is not None:
        values = _flat(tree)
        tree = jax.tree.unflatten(jax.tree.structure(like), [values[key] for key in wanted])
    return tree, about.custom_metadata["meta"]


def _compare(folder, saved, wanted, partial):
    """Raises one CheckpointError with all differences between two {path: array-like}."""
    found = {
        "missing in the checkpoint": [key for key in wanted if key not in saved],
        "unexpected in the checkpoint": [key for key in saved if key not in wanted and not partial],
    }
    lists = {title: ["/".join(key) for key in keys] for title, keys in found.items()}
    pairs = [(key, saved[key], leaf) for key, leaf in wanted.items() if key in saved]
    notes = [f"{'/'.join(key)} {note}" for key, *pair in pairs if (note := _misfit(*pair))]
    lists["different"] = notes
    text = "; ".join(f"{title}: {some(sorted(names))}" for title, names in lists.items() if names)
    if text:
        remedy = "use the config it was saved with (`meta` has it)"
        raise CheckpointError(folder, f"does not fit this model; {text}", remedy)


def _misfit(saved, wanted):
    """Why a saved array cannot become the wanted one as it is; "" if it can."""
    has, wants = _shape(saved), _shape(wanted)
    sharding = getattr(wanted, "sharding", None)
    if has != wants:
        return f"is {has}, wanted {wants}"
    if isinstance(sharding, jax.sharding.Sharding):
        if jax.dtypes.canonicalize_dtype(wanted.dtype) != wanted.dtype:
            return f"is {has}, which JAX would cut to 32 bits; take it without a sharding, as numpy"
        try:
            sharding.shard_shape(tuple(wanted.shape))
        except ValueError:
            return f"{has} cannot be split by {sharding}"
    return ""


def _shape(leaf):
    """An array-like's type as text: bfloat16[2,3]."""
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def savable(folder, state):
    """`state` with numbers as arrays. Raises on a leaf that orbax would not give back as it is."""
    names = [".".join(_key(path)) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    if not names or "" in names:
        raise CheckpointError(folder, "a state is a tree with named leaves", "wrap it in a dict")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:  # orbax joins the keys by dots: one leaf would overwrite another
        raise CheckpointError(folder, f"two leaves have one name: {some(twice)}", "rename one")

    def check(path, leaf):
        def error(reason, remedy):
            return CheckpointError(folder, f"{'/'.join(_key(path))} {reason}", remedy)

        if not isinstance(leaf, jax.Array):
            leaf = np.asarray(leaf)  # orbax copies it before `save` returns
        elif leaf.is_deleted():
            raise error("was donated", "save before the step that donates it")
        elif jax.process_count() > 1 and leaf.is_fully_addressable:
            raise error("is on this process only", "make it an array of the global mesh, or numpy")
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise error("is a typed PRNG key", "save jax.random.key_data of it")
        if not (jax.dtypes.issubdtype(leaf.dtype, np.number) or leaf.dtype == bool):
            raise error(f"is not an array of numbers but {leaf.dtype}", "put it into `meta`")
        return leaf

    return jax.tree_util.tree_map_with_path(check, state)


def plain(folder, meta):
    """`meta` as JSON gives it back. Raises where it cannot."""
    try:
        return json.loads(json.dumps(meta, allow_nan=False))
    except (TypeError, ValueError) as fault:
        raise CheckpointError(folder, f"`meta` is not JSON-able: {fault}") from fault


def _key(path):
    """('params', 'layers', '0') of a jax key path: the names orbax gives to the same leaf."""
    return tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path)


def _flat(tree):
    return {_key(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
