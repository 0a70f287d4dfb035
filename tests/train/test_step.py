"""One step: what moves, what stays bit-equal, what is compiled, donated and read when."""

import logging

import jax
import numpy as np
import pytest
import runs

from bind import optim, sharding, task, train, tree
from bind.data.pipeline import DAMAGED
from bind.errors import ConfigError

WORDS, MOTION = {"vision", "text"}, {"text", "imu"}


def batches():
    """The first batch of each pair."""
    made = runs.config()
    data = task.contrastive(made).train_data((0, made.batch_size), 0)
    found = {frozenset(b) - {DAMAGED}: b for b, _ in zip(data, range(8), strict=False)}
    data.close()
    return found[frozenset(WORDS)], found[frozenset(MOTION)]


def build(changes=()):
    """(state, frozen, step) of a config, on no mesh."""
    made = runs.config(changes)
    optimizer = optim.from_config(made)
    learn = task.contrastive(made)
    state, frozen = jax.jit(train.make_init(learn, made.trainable, optimizer))(jax.random.key(0))
    return state, frozen, jax.jit(train.make_step(learn, optimizer, made.accumulate, made.seed))


def moved(before, after) -> set[str]:
    """Paths of the leaves that differ in any bit."""
    pairs = zip(tree.paths(before).items(), jax.tree.leaves(after), strict=True)
    return {path for (path, a), b in pairs if np.asarray(a).tobytes() != np.asarray(b).tobytes()}


def test_only_the_groups_of_the_batch_move():
    state, frozen, step = build()
    words, motion = batches()
    one, _ = step(state, frozen, motion)  # now imu has moments that could go on moving it
    two, _ = step(one, frozen, words)
    assert runs.bits(two.trainable["imu"]) == runs.bits(one.trainable["imu"])
    assert runs.bits(two.opt_state["imu"]) == runs.bits(one.opt_state["imu"])
    assert moved(one.trainable["vision"], two.trainable["vision"]) == set(
        tree.paths(one.trainable["vision"])
    )
    assert runs.bits(one.trainable["vision"]) == runs.bits(state.trainable["vision"])
    assert int(two.opt_state["text"].count) == 2 and int(two.opt_state["vision"].count) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing_and_counts_itself(bad):
    state, frozen, step = build()
    words, motion = batches()
    poisoned = {**words, "vision": words["vision"].copy()}
    poisoned["vision"][3, 0, 0, 0] = bad
    state, _ = step(state, frozen, words)
    once, values = step(state, frozen, poisoned)
    assert not np.isfinite(values["loss"])
    twice, values = step(once, frozen, poisoned)
    assert runs.bits((twice.trainable, twice.opt_state)) == runs.bits(
        (state.trainable, state.opt_state)
    )
    assert int(twice.skipped) == int(values["skipped"]) == 2
    assert int(twice.step) == 3
    after, values = step(twice, frozen, motion)
    assert int(after.skipped) == 0 and np.isfinite(values["loss"])
    assert "text/projection/kernel" in moved(twice.trainable, after.trainable)


def test_accumulation_averages_the_gradients_of_the_halves():
    words, _ = batches()
    state, frozen, step = build({"accumulate": 2})
    got, values = step(state, frozen, words)
    made = runs.config()
    learn, optimizer = task.contrastive(made), optim.from_config(made)

    def loss(active, half):
        params = tree.combine(active, {"imu": state.trainable["imu"]}, frozen)
        return learn.loss(params, half, jax.random.key(0))[0]

    active = {name: state.trainable[name] for name in WORDS}
    halves = [{name: words[name][i::2] for name in WORDS} for i in range(2)]
    found = [jax.jit(jax.value_and_grad(loss))(active, half) for half in halves]
    value, grads = jax.tree.map(lambda a, b: (a + b) / 2, *found)
    want, _, report = optimizer.update(grads, state.opt_state, state.trainable, state.step)
    assert float(values["loss"]) == pytest.approx(float(value), rel=1e-6)
    assert float(values["grad_norm"]) == pytest.approx(float(report["grad_norm"]), rel=1e-5)
    # Adam's first step is the sign of the gradient, so compare the moments, which are linear in it.
    shrink = min(1.0, 1.0 / float(report["grad_norm"]))
    for name in WORDS:
        for mu, g in zip(*map(jax.tree.leaves, (got.opt_state[name].mu, grads[name])), strict=True):
            np.testing.assert_allclose(mu, 0.1 * shrink * g, rtol=1e-4, atol=1e-7)
    assert runs.bits(got.trainable["imu"]) == runs.bits(want["imu"])


def test_a_batch_that_accumulation_cannot_cut_is_a_config_error():
    words, _ = batches()
    state, frozen, step = build({"accumulate": 3})
    with pytest.raises(ConfigError, match="accumulate: 16 rows do not divide by 3"):
        step(state, frozen, words)


def test_the_state_is_donated_whole():
    made = runs.config()
    learn, optimizer = task.contrastive(made), optim.from_config(made)
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        init = train.make_init(learn, made.trainable, optimizer)
        places = sharding.shardings(jax.eval_shape(init, jax.random.key(0)), mesh)
        state, frozen = jax.jit(init, out_shardings=places)(jax.random.key(0))
        run = train.CompiledStep(train.make_step(learn, optimizer, 1, 0), places[0], print)
        words, motion = (sharding.put_batch(b, mesh) for b in batches())
        for batch in (words, motion, words):
            old, (state, _) = state, run(state, frozen, batch)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
            assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(frozen))
    per_device = sum(
        leaf.dtype.itemsize * np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=int)
        for leaf in jax.tree.leaves(state)
    )
    assert len(run.executables) == 2
    for executable in run.executables.values():
        assert executable.memory_analysis().alias_size_in_bytes >= 0.99 * per_device


def compiled(caplog) -> list[str]:
    """The functions XLA compiled, in order."""
    lines = [r.getMessage() for r in caplog.records if "Finished XLA compilation" in r.getMessage()]
    return [line.split(" of ")[1].split(" in ")[0] for line in lines]


class Watched(train.CompiledStep):
    """Keeps itself, and notes each step and each time the host reads a metric."""

    made: list = []
    log: list = []

    def __init__(self, *args):
        super().__init__(*args)
        self.made.append(self)

    def __call__(self, state, frozen, batch):
        state, values = super().__call__(state, frozen, batch)
        self.log.append(("run", len([1 for what, _ in self.log if what == "run"]) + 1))
        step = self.log[-1][1]
        return state, {name: Reading(value, step, self.log) for name, value in values.items()}


class Reading:
    """An array that notes when it is read."""

    def __init__(self, value, step, log):
        self.value, self.step, self.log = value, step, log

    def __array__(self, *_, **__):
        if ("read", self.step) not in self.log:
            self.log.append(("read", self.step))
        return np.asarray(self.value)


@pytest.fixture
def watched(monkeypatch):
    monkeypatch.setattr(Watched, "made", [])
    monkeypatch.setattr(Watched, "log", [])
    monkeypatch.setattr(train, "CompiledStep", Watched)
    return Watched


def test_one_compilation_a_pair_and_none_behind_them(watched, tmp_path, caplog):
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        runs.fit(tmp_path / "run", {"save_every": 10}, devices=1)
        first = compiled(caplog)
        caplog.clear()
        runs.fit(runs.back_to(10, tmp_path / "run", tmp_path / "again"), devices=1)
        again = compiled(caplog)
    assert {batch for _, batch, *_ in runs.history(tmp_path / "again")} == {
        "text + vision",
        "imu + text",
    }
    for names, run in zip((first, again), watched.made, strict=True):
        assert names.count("jit(step)") == len(run.executables) == 2
        # Nothing else of ours is compiled: the initial state once, and no stray operation per step.
        assert len(set(names)) >= len(names) - 1, names
    assert first.count("jit(init)") == 1 and again.count("jit(init)") == 0


def test_the_host_reads_a_step_only_when_two_more_are_under_way(watched, tmp_path):
    runs.fit(tmp_path, {"save_every": 6, "log_every": 2}, devices=1)
    order = []
    for step in range(1, 21):
        order.append(("run", step))
        if step > train.LAG:
            order.append(("read", step - train.LAG))
        if step % 6 == 0 or step == 20:  # a checkpoint wants all metrics on disk
            order += [("read", s) for s in range(step - train.LAG + 1, step + 1)]
    wanted = list(dict.fromkeys(order))
    assert watched.log == wanted


def test_an_implicit_copy_in_the_step_loop_is_an_error(tmp_path, monkeypatch):
    class Careless(train.CompiledStep):
        def __call__(self, state, frozen, batch):
            state, values = super().__call__(state, frozen, batch)
            return state, {**values, "loss": values["loss"] + np.ones((), np.float32)}

    monkeypatch.setattr(train, "CompiledStep", Careless)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        runs.fit(tmp_path, devices=1)


def test_a_regex_that_matches_nothing_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="matches no parameter"):
        runs.fit(tmp_path, {"trainable": "visoin/.*"}, devices=1)
