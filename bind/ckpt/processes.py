"""What the processes of a job tell each other about a checkpoint."""

import json

import jax
import numpy as np
from jax.experimental import multihost_utils

from bind.errors import CheckpointError


def pack(fault):
    """A CheckpointError as text, to be raised on other processes; "" for None."""
    return json.dumps([fault.where, fault.reason, fault.remedy]) if fault else ""


def unpack(text):
    return CheckpointError(*json.loads(text))


def share(text):
    """The texts of all processes, by process index. A collective: main thread only."""
    if jax.process_count() == 1:
        return [text]
    raw = np.frombuffer(text.encode(), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(raw.size)))
    padded = np.zeros(max(sizes.max(), 1), np.uint8)
    padded[: raw.size] = raw
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]
