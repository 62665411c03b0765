"""How a command ends when it is told to: so that whatever is half-written is removed first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM: ``kill``, the end of a container or of a job."""


@contextmanager
def stoppable() -> Iterator[None]:
    """A block that Ctrl-C and SIGTERM leave as exceptions; a second one ends the process at once.

    A signal that is ignored, as in background jobs of a shell, or that somebody else handles, stays so.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
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
    """As of a process that the signal ended itself, in the words of a shell: 143 or 130."""
    terminated = isinstance(stopped, Terminated) or isinstance(stopped.__cause__, Terminated)
    return 128 + (signal.SIGTERM if terminated else signal.SIGINT)
