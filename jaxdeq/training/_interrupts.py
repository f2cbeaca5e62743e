"""Ends a run in order when it is told to stop."""

import os
import signal
import threading
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp


class Interrupts:
    """While it is entered, SIGTERM and the first Ctrl-C are noted and not obeyed at once.

    In a run of several processes JAX itself sees to it that all stop after the same step, for
    SIGTERM, which a scheduler sends; Ctrl-C in one of them is made that.
    """

    def __init__(self) -> None:
        self.several = jax.process_count() > 1
        self.told, self.times = False, 0
        self.before: dict[int, Any] = {}

    def asked(self) -> bool:
        """Whether to stop here; to be called after each step, by nobody else, and first before them all."""
        self.times += 1  # JAX counts too, and from 0: told before the first call, processes agree on 1
        return ocp.multihost.reached_preemption(self.times) if self.several else self.told

    def __enter__(self) -> "Interrupts":
        ours = (signal.SIGINT,) if self.several else (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in ours}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        self.told = True
        signal.signal(number, self.before[number])  # a second one is obeyed
        if self.several:
            os.kill(os.getpid(), signal.SIGTERM)
