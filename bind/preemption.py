"""Being asked to end: SIGTERM and Ctrl-C."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def requests() -> Iterator[Callable[[int], bool]]:
    """Yields should_stop(step): whether a signal asked the job, on any host, to save and end.

    A second signal ends it at once, unsaved.
    """
    asked = threading.Event()
    previous = {}

    def ask(number, _):
        asked.set()
        signal.signal(number, previous[number])

    def pass_on(number, _):
        signal.signal(number, previous[number])
        os.kill(os.getpid(), signal.SIGTERM)

    # With several processes SIGTERM belongs to JAX's preemption service, which tells all hosts.
    alone = jax.process_count() == 1
    handlers = {signal.SIGTERM: ask, signal.SIGINT: ask} if alone else {signal.SIGINT: pass_on}
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            previous[number] = signal.signal(number, handler)

    def should_stop(step: int) -> bool:
        if jax.process_count() == 1:
            return asked.is_set()
        # All hosts must leave at the same step, whichever of them got the signal.
        return multihost_utils.reached_preemption_sync_point(step)

    try:
        yield should_stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
