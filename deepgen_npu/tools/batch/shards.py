"""Parts of a table, each for a command of its own. Nothing here needs torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...checks import must_be


@dataclass(frozen=True)
class Shard:
    """Every ``count``-th row from ``index``: for schedulers that start a command for each device.

    The name of its files tells shards of one folder apart.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``2/8``: the third of eight.

        Raises:
            ValueError: For something else.
        """
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if found is None or not int(found[1]) < int(found[2]):
            raise ValueError(must_be("--shard", "i/n with i from 0 to n - 1", text))
        return cls(int(found[1]), int(found[2]))

    def has(self, number: int) -> bool:
        """Whether a row is in it."""
        return number % self.count == self.index

    def name(self, stem: str, ending: str) -> str:
        """Of a file that each shard has for itself."""
        return f"{stem}{ending}" if self.count == 1 else f"{stem}.{self.index}-of-{self.count}{ending}"


WHOLE = Shard()
"""All rows."""
