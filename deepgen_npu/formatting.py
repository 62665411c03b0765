"""How sizes, bytes and commands are worded, everywhere."""

from __future__ import annotations

import re


def format_size(width: int, height: int) -> str:
    """A size in pixels, width first, as every interface names it: ``768 x 512``."""
    return f"{width} x {height}"


def format_bytes(nbytes: int) -> str:
    """Memory or disk space in binary units: ``7.00 GiB``, ``83.5 MiB``, ``66.2 KiB``, ``12 bytes``."""
    if nbytes >= 2**30:
        return f"{nbytes / 2**30:.2f} GiB"
    if nbytes >= 2**20:
        return f"{nbytes / 2**20:.1f} MiB"
    if nbytes >= 2**10:
        return f"{nbytes / 2**10:.1f} KiB"
    return f"{nbytes} bytes"


def counted(number: int, noun: str) -> str:
    """A number with its noun: ``1 image``, ``1,000 images``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_download(nbytes: int) -> str:
    """The size of a download as hubs show it and as file managers do: ``13.5 GB (12.6 GiB)``."""
    return f"{nbytes / 10**9:.1f} GB ({nbytes / 2**30:.1f} GiB)"


_commands: set[str] = set()


def command(line: str) -> str:
    """A command within a message: on a line of its own, so that it can be copied whole."""
    _commands.add(line)
    return f"\n    {line}\n"


def split_commands(message: str) -> list[str]:
    """A message as text, command, text, command and so on, without the line breaks between them.

    Only what `command` made counts as a command: a file name cannot pass for one.
    """
    known = "|".join(map(re.escape, sorted(_commands, key=len, reverse=True)))
    return re.split(rf"\n    ({known})(?:\n|\Z)", message) if known else [message]
