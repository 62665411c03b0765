"""How sizes are worded, everywhere."""

from __future__ import annotations


def amount(nbytes: int) -> str:
    """A size of weights or memory, for people."""
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**27 else f"{nbytes / 2**20:.2f} MiB"
