"""How a command ends on Ctrl-C or SIGTERM: whatever is half-written is removed first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM: ``kill``, the end of a container or of a batch job."""


@contextmanager
def stoppable() -> Iterator[None]:
    """A block in which Ctrl-C and SIGTERM raise an exception; a second one ends the process immediately.

    A signal that is ignored, as in background jobs of a shell, or that has another handler, is left alone.
    """
    if threading.current_thread() is not threading.main_thread():  # only it may set handlers
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = [number for number, handler in before.items() if handler in (signal.SIG_DFL, signal.default_int_handler)]

    def stop(number: int, frame: FrameType | None) -> None:
        for one in ours:
            signal.signal(one, signal.SIG_DFL)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


def exit_status(stopped: KeyboardInterrupt) -> int:
    """The status that shells report for a process ended by the signal: 143 or 130."""
    terminated = isinstance(stopped, Terminated) or isinstance(stopped.__cause__, Terminated)
    return 128 + (signal.SIGTERM if terminated else signal.SIGINT)
