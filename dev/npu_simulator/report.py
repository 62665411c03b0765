"""The output of the tests on the simulated NPU, which run in a process of their own, for the summary of the tests."""

from __future__ import annotations

import re


printed: list[str] = []


def sections() -> list[tuple[str, list[str]]]:
    """Titles and lines of its tables."""
    found = []
    for section in re.split(r"^=+ (?=counted|measured|largest)", "\n".join(printed), flags=re.MULTILINE)[1:]:
        title, *lines = section.splitlines()
        end = next((index for index, line in enumerate(lines) if line.startswith("=")), len(lines))
        found.append((title.rstrip(" ="), lines[:end]))
    return found
