"""What a command printed about its failure."""

from __future__ import annotations


def error_in(stderr: str) -> str:
    """The error at the end of stderr: a line that begins with ``error:``, then commands and what follows them."""
    lines = stderr.rstrip().splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    assert len(starts) == 1, stderr
    first, *further = lines[starts[0] :]
    # One line, unless it has a command: that stands alone, and the text goes on below it.
    assert not further or further[0].startswith("    "), stderr
    return "\n".join([first, *further])
