"""What can be wrong with a machine, and what fixes it. Nothing here imports torch."""

from __future__ import annotations

from typing import NamedTuple

from .formatting import command


class Problem(NamedTuple):
    """What is wrong, and how to fix it.

    Attributes:
        what: What is wrong; no full stop at its end.
        fix: A command. Where none can fix it, a sentence, which begins with a capital letter and has no full stop.
    """

    what: str
    fix: str

    def message(self, alternative: str = "") -> str:
        """The problem, its fix and, if there is one, the alternative, for an error. See `formatting.command`."""
        if self.fix[:1].isupper():
            return f"{self.what}. {self.fix}.{' ' if alternative else ''}{alternative}"
        return f"{self.what}. To fix it:{command(self.fix)}{alternative}"
