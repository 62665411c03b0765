"""What an edit left alone, as it is reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


REASONS = {
    "few": "too little unchanged texture",
    "scatter": "parts moved differently",
    "spread": "too blurred",
    "two": "two shifts are as likely",
    "far": "it would be too far",
    "failed": "the comparison failed",
}
"""Why a shift cannot be told, by the reasons of `registration.Registration`."""


@dataclass(frozen=True)
class EditedRegion:
    """How the edit of one region, or of a whole image, was put back.

    Attributes:
        box: (left, top, width, height) in pixels of the image.
        drawn: (width, height) that it was drawn at, in pixels of the model.
        shift: How far the edit had moved, (x, y) in pixels of the image; it was undone.
        scale: By how much it had grown, (x, y): 0.01 is one per cent; it was undone.
        certain: Whether shift and scale could be told. If not, nothing was moved.
        reason: Why not, a key of `REASONS`; empty if it is certain.
        drift: How far colours moved all over, in CIE Lab; None where that was not measured.
        global_edit: Whether all of it was meant, so that nothing but what a mask keeps was kept.
    """

    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    drawn: tuple[int, int] = (0, 0)
    shift: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (0.0, 0.0)
    certain: bool = False
    reason: str = ""
    drift: float | None = None
    global_edit: bool = False

    def __str__(self) -> str:
        """A part of a sentence: ``shift (1.3, -2.6) px undone``."""
        if self.global_edit:
            return f"a global edit (colours drift by {self.drift or 0:.1f} in CIE Lab)"
        if not self.certain:
            return f"not moved: a shift cannot be told ({REASONS[self.reason]})"
        moved = [f"shift ({self.shift[0]:.1f}, {self.shift[1]:.1f}) px"] if any(self.shift) else []
        if any(self.scale):
            moved.append(f"scale ({100 * self.scale[0]:.2f} %, {100 * self.scale[1]:.2f} %)")
        return f"{' and '.join(moved)} undone" if moved else "no shift"


@dataclass(frozen=True)
class Kept:
    """What an edit left of an image.

    Attributes:
        part: Of the pixels that are the image's own, to the bit.
        regions: What was edited, in that order; none if the mask was empty.
    """

    part: float
    regions: Sequence[EditedRegion] = ()

    def __str__(self) -> str:
        """A sentence: ``kept 81.3 % of the pixels; shift (1.3, -2.6) px undone``."""
        # Rounded down: 100 % means all.
        head = f"kept {int(self.part * 1000) / 10:.1f} % of the pixels"
        if not self.regions:
            return f"{head}; the mask is empty"
        if len(self.regions) == 1:
            return f"{head}; {self.regions[0]}"
        each = "; ".join(f"region {number}: {region}" for number, region in enumerate(self.regions, 1))
        return f"{head} around {len(self.regions)} regions; {each}"

    def as_dict(self) -> dict[str, Any]:
        """For a PNG's text."""
        return {"part": self.part, "regions": [asdict(region) for region in self.regions]}
