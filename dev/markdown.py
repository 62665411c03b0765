"""Markdown tables on stdout, and progress on stderr, of the scripts that measure."""

from __future__ import annotations

import sys


def row(*cells: object) -> str:
    """A line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def head(*cells: str) -> list[str]:
    """The first two lines of a table."""
    return [row(*cells), f"|{'---|' * len(cells)}"]


def say(text: str) -> None:
    """Progress, which is not part of the result."""
    print(text, file=sys.stderr, flush=True)
