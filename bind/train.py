"""The one loop: contrastive training, LLaVA's stages and LoRA differ only in Task and config.

The order: mesh, initial or restored state, data from the state's step on, then step after step. The
host never waits for the step it has just dispatched: metrics are read two steps late. A checkpoint
holds all that is needed to go on; the frozen leaves, which never change, are stored once.
"""

import collections
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from bind import metrics, optim, preemption, settings, sharding, tree
from bind.ckpt.store import Store
from bind.data.pipeline import DAMAGED
from bind.errors import ConfigError, TrainingError
from bind.task import Task

LAG = 2  # steps in flight before the host reads a metric


@flax.struct.dataclass
class TrainState:
    """Everything a step changes. Gradients and moments exist only for `trainable`.

    step i32[]: steps taken. skipped i32[]: steps in a row left out because they were not finite.
    trainable: {group: tree}. opt_state: see bind.optim.
    """

    step: jax.Array
    skipped: jax.Array
    trainable: Any
    opt_state: Any


def make_init(task: Task, trainable: str, optimizer: optim.Optimizer) -> Callable:
    """init(key) -> (TrainState, frozen), pure, to be jitted with shardings.

    Raises: ConfigError where the regex matches no parameter.
    """
    wanted = tree.matcher(trainable)

    def init(key):
        learns, frozen = tree.partition(task.init(key), wanted)
        if not learns:
            raise ConfigError(
                "config.trainable", f"{trainable!r} matches no parameter", "see launch.list --paths"
            )
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, zero, learns, optimizer.init(learns)), frozen

    return init


def make_step(task: Task, optimizer: optim.Optimizer, accumulate: int, seed: int) -> Callable:
    """step(state, frozen, batch) -> (state, metrics), pure, to be jitted with the state donated.

    Only the groups that the batch's keys use are differentiated and moved. A step with a loss or
    gradient that is not finite leaves trainable and opt_state as they were, and counts itself. The
    marks of damaged records pass through, so that every process learns those of all.
    """

    def step(state: TrainState, frozen, batch):
        marks, batch = batch[DAMAGED], {n: x for n, x in batch.items() if n != DAMAGED}
        uses = task.uses(batch.keys())
        active = {g: sub for g, sub in state.trainable.items() if uses(g)}
        others = {g: sub for g, sub in state.trainable.items() if g not in active}

        def loss(active, batch, key):
            return task.loss(tree.combine(active, others, frozen), batch, key)

        grad = optim.accumulated(jax.value_and_grad(loss, has_aux=True), accumulate)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        (value, aux), grads = grad(active, batch, key)
        learned, opt_state, report = optimizer.update(
            grads, state.opt_state, state.trainable, state.step
        )
        good = jnp.isfinite(value) & jnp.isfinite(report["grad_norm"])

        def keep(new, old):
            return jax.tree.map(lambda n, o: n if n is o else jnp.where(good, n, o), new, old)

        state = TrainState(
            step=state.step + 1,
            skipped=jnp.where(good, 0, state.skipped + 1),
            trainable=keep(learned, state.trainable),
            opt_state=keep(opt_state, state.opt_state),
        )
        values = {"loss": value, **aux, **report, "skipped": state.skipped}
        return state, {**values, DAMAGED: sharding.replicated(marks)}

    return step


class CompiledStep:
    """The jitted step: one executable per batch signature, announced and compiled before use."""

    def __init__(self, step: Callable, state_shardings, say: Callable[[str], None]):
        self.jitted = jax.jit(step, donate_argnums=0, out_shardings=(state_shardings, None))
        self.say, self.executables = say, {}

    def __call__(self, state, frozen, batch):
        signature = tuple((name, x.shape, str(x.dtype)) for name, x in sorted(batch.items()))
        if signature not in self.executables:
            note = "large models take minutes; cached for the next run"
            self.say(f"compiling the step for {_title(batch)} ({note}) ...")
            began = time.perf_counter()
            self.executables[signature] = self.jitted.lower(state, frozen, batch).compile()
            self.say(f"compiled in {time.perf_counter() - began:.1f} s")
        return self.executables[signature](state, frozen, batch)


def _title(batch) -> str:
    return " + ".join(sorted(name for name in batch if name != DAMAGED))


def fit(task: Task, config, workdir: str | Path) -> tuple[TrainState, Any]:
    """Trains until config.steps, resuming from the newest good checkpoint in `workdir`.

    Returns the final state and the frozen leaves. Returns early, saved, after SIGTERM.
    Raises: ConfigError, DataError, CheckpointError, TrainingError, each with what to do.
    """
    settings.check(config)
    workdir = Path(workdir)
    mesh = sharding.make_mesh(**config.mesh)
    rows = sharding.local_rows(config.batch_size, mesh)
    optimizer = optim.from_config(config)
    init = make_init(task, config.trainable, optimizer)
    key = jax.random.key(config.seed)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        shardings = sharding.shardings(jax.eval_shape(init, key), mesh)
        store = stack.enter_context(Store(workdir / "checkpoints", keep=config.keep))
        state, frozen, damaged = _start(init, key, shardings, store, config, workdir, metrics.say)
        start = int(state.step)
        writer = stack.enter_context(contextlib.closing(metrics.Writer(workdir, start)))
        progress = metrics.Progress(config.steps, start, config.batch_size)
        stack.enter_context(contextlib.closing(progress))
        step = make_step(task, optimizer, config.accumulate, config.seed)
        run = CompiledStep(step, shardings[0], metrics.say)
        batches = stack.enter_context(contextlib.closing(task.train_data(rows, start)))
        should_stop = stack.enter_context(preemption.requests())
        loop = _Loop(task, config, mesh, store, writer, progress, damaged)
        return loop(run, batches, state, frozen, should_stop), frozen


def _start(init, key, shardings, store: Store, config, workdir: Path, say):
    """The state to go on from: (state, frozen, fingerprints of damaged records met so far)."""
    like, frozen_like = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(init, key),
        shardings,
    )
    found = store.restore(like)
    with Store(workdir / "frozen", keep=1) as once:
        if found is None:
            state, frozen = jax.jit(init, out_shardings=shardings)(key)
            if frozen:  # also over those of a run that ended before its first checkpoint
                once.save(max(once.steps(), default=-1) + 1, frozen, {})
            return state, frozen, set()
        frozen = once.restore(frozen_like)[0] if frozen_like else {}
    state, meta, step = found
    say(f"resumed from step {step} in {store.directory}")
    for line in settings.changes(meta["config"], config.to_dict()):
        say(f"  this run differs from the one that was saved: {line}")
    return state, frozen, set(meta["damaged"])


class _Loop:
    """The running part of `fit`: what happens at each step, and what happens now and then."""

    def __init__(self, task, config, mesh, store, writer, progress, damaged: set[int]):
        self.task, self.config, self.mesh = task, config, mesh
        self.store, self.writer, self.progress = store, writer, progress
        self.damaged = damaged
        self.latest: dict[str, float] = {}
        self.pending: collections.deque = collections.deque()
        self.waited = 0.0  # seconds without a batch, of this window

    def __call__(self, run, batches, state, frozen, should_stop) -> TrainState:
        start = int(state.step)
        saved = start
        for step in range(start + 1, self.config.steps + 1):
            batch = self._next(batches)
            known = len(run.executables)
            began = time.perf_counter()
            with jax.transfer_guard("disallow"):
                state, values = run(state, frozen, batch)
            if len(run.executables) > known:
                self.progress.pause(time.perf_counter() - began)
            self.pending.append((step, _title(batch), values))
            self._drain(LAG)
            self.progress.advance(step)

            last = step == self.config.steps
            stop = should_stop(step)
            if last or step % self.config.log_every == 0:
                self._report()
            if last or (self.config.eval_every and step % self.config.eval_every == 0):
                self._evaluate(step, tree.combine(state.trainable, frozen))
            if last or stop or step % self.config.save_every == 0:
                self._save(step, state)
                saved = step
            if stop and not last:
                metrics.say(f"stopped by a signal at step {saved}, saved; the same command goes on")
                break
        self.store.wait()
        return state

    def _next(self, batches) -> dict[str, jax.Array]:
        began = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - began
        return sharding.put_batch(batch, self.mesh)

    def _drain(self, keep: int) -> None:
        """Writes the metrics of all but the newest `keep` steps; waits only for those it writes."""
        while len(self.pending) > keep:
            step, batch, values = self.pending.popleft()
            values = jax.device_get(values)
            self.damaged |= set(values.pop(DAMAGED).tolist()) - {0}
            self.latest = {name: float(x) for name, x in values.items()}
            self.writer.write(step, {"batch": batch, **self.latest})
            self._check_limits(f"step {step} ({batch})", int(values["skipped"]))

    def _check_limits(self, where: str, skipped: int) -> None:
        if len(self.damaged) > self.config.max_damaged:
            limit = f"more than config.max_damaged = {self.config.max_damaged}"
            raise TrainingError(
                where,
                f"{len(self.damaged)} different records were damaged so far, {limit}",
                f"the warnings above name them; mend the data or raise the limit; {self._kept()}",
            )
        if skipped >= self.config.max_skipped:
            raise TrainingError(
                where,
                f"{skipped} steps in a row gave a loss or gradient that is not finite",
                "lower the learning rate, or look at the batches of these steps; nothing is lost: "
                f"the parameters are as before them, {self._kept()}",
            )

    def _kept(self) -> str:
        self.store.wait()
        steps = self.store.steps()
        return f"the last checkpoint is step {steps[-1]}" if steps else "no checkpoint was due yet"

    def _report(self) -> None:
        if not self.pending:
            return
        newest = self.pending[-1][0]
        window = time.perf_counter() - self.progress.mark
        values = {"waited_for_data": self.waited / max(window, 1e-9), "damaged": len(self.damaged)}
        text = f"loss {self.latest['loss']:.4f}" if self.latest else "first steps"
        values |= self.progress.report(text)
        self.waited = 0.0
        self.writer.write(newest, values)

    def _evaluate(self, step: int, params) -> None:
        began = time.perf_counter()
        values = self.task.evaluate(params)
        if values:
            self._drain(0)
            self.writer.write(step, values)
            shown = "  ".join(f"{name} {value:.3f}" for name, value in list(values.items())[:6])
            metrics.say(f"evaluation at step {step}: {shown}")
        self.progress.pause(time.perf_counter() - began)

    def _save(self, step: int, state: TrainState) -> None:
        began = time.perf_counter()
        self._drain(0)
        self.writer.flush()
        meta = {
            "config": self.config.to_dict(),
            "damaged": sorted(self.damaged),
            "mesh": dict(self.mesh.shape),
            "versions": {m.__name__: m.__version__ for m in (jax, np)},
        }
        self.store.save(step, state, meta)
        self.progress.pause(time.perf_counter() - began)
