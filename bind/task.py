"""What is learned: a Task is a few functions; the loop in bind.train knows nothing else of a model."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Task(NamedTuple):
    """In the style of optax: functions, no base class. Parameters are {group: tree}.

    init(key) -> params: the initial parameters, pure.
    loss(params, batch, key) -> (f32[], {name: f32[]}): pure; sees the global batch.
    uses(batch keys) -> (group -> bool): which groups of the parameters such a batch needs.
    train_data(rows, start) -> an iterator of this process's rows of the batches from step `start` on, with
      close(); see bind.data.pipeline.
    evaluate(params) -> {name: float}: held-out metrics; {} where there is nothing to measure.
    """

    init: Callable[[Any], dict]
    loss: Callable[[dict, dict, Any], tuple]
    uses: Callable[[Any], Callable[[str], bool]]
    train_data: Callable[[tuple[int, int], int], Any]
    evaluate: Callable[[dict], dict]
