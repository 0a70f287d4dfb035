"""What is learned: a Task is a few functions, all that the loop in bind.train knows of a model."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bind import losses, settings, sharding, zoo
from bind.data import pipeline, tables
from bind.evaluate import held_out as held
from bind.models import imagebind


class Task(NamedTuple):
    """In the style of optax: functions, no base class. Parameters are {group: tree}.

    init(key) -> params: the initial parameters, pure.
    loss(params, batch, key) -> (f32[], {name: f32[]}): pure; sees the global batch.
    uses(batch keys) -> (group -> bool): which groups of the parameters such a batch needs.
    train_data(rows, start) -> an iterator of this process's rows of the batches from step `start`
      on, with close(); see bind.data.pipeline.
    evaluate(params) -> {name: float}: held-out metrics; {} where there is nothing to measure.
    """

    init: Callable[[Any], dict]
    loss: Callable[[dict, dict, Any], tuple]
    uses: Callable[[Any], Callable[[str], bool]]
    train_data: Callable[[tuple[int, int], int], Any]
    evaluate: Callable[[dict], dict]


def contrastive(config) -> Task:
    """Binding by InfoNCE, each batch from one modality pair (arXiv 2305.05665, section 3.2).

    config: see configs/demo.py, where every field is explained. The second modality of a pair
      carries the
    temperature. Raises: ConfigError, DataError.
    """
    settings.check(config)
    entry = zoo.lookup(config.model)
    model = entry.build(remat=config.remat, dtype=jnp.dtype(config.dtype))
    order = {frozenset(p.modalities): tuple(p.modalities) for p in config.pairs.values()}
    streams = [tables.make_stream(entry.inputs, n, p) for n, p in config.pairs.items()]

    def init(key):
        shapes = imagebind.example_inputs(model)
        examples = {name: jnp.zeros(s.shape, s.dtype) for name, s in shapes.items()}
        return model.init(key, examples)["params"]

    def loss(params, batch, key):
        first, second = order[frozenset(batch)]
        out = model.apply({"params": params}, batch, rngs={"dropout": key})
        scale = out[second].get("logit_scale", 1.0)
        return losses.info_nce(out[first]["embedding"], out[second]["embedding"], scale)

    def train_data(rows, start):
        return pipeline.Batches(
            streams, batch_size=config.batch_size, rows=rows, seed=config.seed, start=start,
            threads=config.data.threads, workers=config.data.workers,
        )  # fmt: skip

    measure = held_out_views(config, model, entry.inputs)

    def evaluate(params):
        rows = held.table(measure(params), list(order.values()))
        return {f"{r['set']}/{r['from']}->{r['to']} {r['metric']}": r["value"] for r in rows}

    return Task(init, loss, lambda names: set(names).__contains__, train_data, evaluate)


def held_out_views(config, model, inputs) -> Callable[[dict], dict[str, held.Views]]:
    """measure(params) -> {pair: its held-out part, embedded}; reads the data at the first call."""
    tests = {
        n: tables.make_stream(inputs, n, p, "test") for n, p in config.pairs.items() if "test" in p
    }
    encode = jax.jit(
        lambda params, x: jax.tree.map(sharding.replicated, embeddings(model, params, x))
    )
    read: dict = {}

    def measure(params):
        if not read:
            read.update({n: held.collect(s, config.eval.views) for n, s in tests.items()})
        return {
            n: held.Views(x, labels, held.embed(partial(encode, params), x, config.eval.batch_size))
            for n, (x, labels) in read.items()
        }

    return measure


def embeddings(model, params, inputs) -> dict:
    """{modality: f32[N, D]}, unit length."""
    out = model.apply({"params": {name: params[name] for name in inputs}}, inputs)
    return {name: losses.normalize(o["embedding"]) for name, o in out.items()}
