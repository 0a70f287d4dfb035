"""Where every array lives: one mesh and one table, for parameters, adapters and Adam's moments.

The mesh has three axes. `data` holds copies of the parameters, `fsdp` splits them (and the batch),
`tensor` splits the matrices of a block (and its heads). `jax.jit` with these shardings is what pjit
used to be.
"""

import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bind import tree
from bind.errors import ConfigError

AXES = ("data", "fsdp", "tensor")

# (path ends with, axis per dimension). Right-aligned: scanned layers and Adam's moments only add in
# front. The first match wins. An axis that does not divide its dimension is left out.
RULES = (
    (r"(q|k|v|up|gate)/kernel", ("fsdp", "tensor")),
    (r"(q|k|v|up|gate)/bias", ("tensor",)),
    (r"bias_[kv]", ("tensor",)),
    (r"(out|down)/kernel", ("tensor", "fsdp")),
    (r"(q|k|v|up|gate)/a", ("fsdp", None)),
    (r"(q|k|v|up|gate)/b", (None, "tensor")),
    (r"(out|down)/a", ("tensor", None)),
    (r"(out|down)/b", (None, "fsdp")),
    (r"table", ("tensor", "fsdp")),
    (r"stem/kernel", ("fsdp",)),
    (r"projection/kernel", ("fsdp", None)),
    (r"positions", (None, "fsdp")),
    (r".*", ()),
)
_COMPILED = tuple((re.compile(rf"(.*/)?{pattern}"), axes) for pattern, axes in RULES)


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, devices=None) -> jax.sharding.Mesh:
    """A mesh over all devices; -1 for one axis means what is left.

    Raises: ConfigError where the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [data, fsdp, tensor]
    if shape.count(-1) > 1 or any(n == 0 or n < -1 for n in shape):
        raise ConfigError(
            "config.mesh",
            f"{dict(zip(AXES, shape, strict=True))} is not a mesh",
            "at most one axis may be -1",
        )
    if -1 in shape:
        known = -math.prod(shape)
        shape[shape.index(-1)] = max(len(devices) // known, 1)
    if math.prod(shape) != len(devices):
        raise ConfigError(
            "config.mesh",
            f"{dict(zip(AXES, shape, strict=True))} needs {math.prod(shape)} devices, "
            f"there are {len(devices)}",
            "make the product equal, or set one axis to -1",
        )
    # Auto is the compiler-driven mode (pjit's). The default is Explicit since JAX 0.9, under which
    # Linen breaks.
    return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def spec(path: str, shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> P:
    """The PartitionSpec of one leaf, by the table above."""
    axes = next(axes for pattern, axes in _COMPILED if pattern.fullmatch(path))
    axes = ((None,) * len(shape) + axes)[len(axes) :]  # right-aligned
    fits = (a if a and n % mesh.shape[a] == 0 else None for a, n in zip(axes, shape, strict=True))
    return P(*fits)


def shardings(shapes: Any, mesh: jax.sharding.Mesh) -> Any:
    """A tree of NamedShardings for a tree of arrays or ShapeDtypeStructs."""
    return tree.map_with_path(
        lambda path, x: NamedSharding(mesh, spec(path, x.shape, mesh)), shapes
    )


def abstract(shapes: Any, mesh: jax.sharding.Mesh) -> Any:
    """ShapeDtypeStructs that carry their shardings: what `lower` and a restore want."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        shardings(shapes, mesh),
    )


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Batches are split along their first axis over data and fsdp."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def put_batch(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """This process's rows of a global batch -> global arrays; the copy is asynchronous."""
    rows = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(rows, x) for name, x in batch.items()}


def local_rows(batch_size: int, mesh: jax.sharding.Mesh) -> tuple[int, int]:
    """The half-open range of the global batch's rows that this process must supply.

    Raises: ConfigError where the batch does not divide over the mesh.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % ways:
        raise ConfigError(
            "config.batch_size",
            f"{batch_size} does not divide over data x fsdp = {ways}",
            f"take a multiple of {ways}",
        )
    mine = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    starts = [(s[0].start or 0, batch_size if s[0].stop is None else s[0].stop) for s in mine]
    return min(a for a, _ in starts), max(b for _, b in starts)


def replicated(x: jax.Array) -> jax.Array:
    """Inside jit: x whole on every device of the mesh in force, for every process to read."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, P())
