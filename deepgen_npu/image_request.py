"""What is to be drawn from which images: checked before weights are read, then drawn. Importing it needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from .edits.fitting import Fit, padded
from .sizes import PAD, STRETCH


if TYPE_CHECKING:
    from PIL import Image

    from .editing import Drawing, EditPlan
    from .edits.kept import Kept
    from .sizes import SizeRules


@dataclass(frozen=True)
class ImageRequest:
    """Images and sizes of a run.

    Attributes:
        rules: Sizes of the checkpoint.
        references: The image to edit and further references, as `rgb.to_rgb` returns them; none to generate.
        mask: Where the first may be changed, as `rgb.to_mask` returns it; None for everywhere.
        keep_unchanged: Whether what the edit left alone comes from the first.
        follow_input: `PAD` or `STRETCH`: the size comes from the first; None for the next two.
        height: In pixels; None for the trained size, or with ``mask`` or ``keep_unchanged`` for what suits the image.
        width: As height.
    """

    rules: SizeRules
    references: Sequence[Image.Image] = field(default=(), repr=False)
    mask: Image.Image | None = field(default=None, repr=False)
    keep_unchanged: bool = False
    follow_input: str | None = None
    height: int | None = None
    width: int | None = None

    @property
    def in_place(self) -> bool:
        """Whether the result is the first reference at its own size, changed in part."""
        return self.mask is not None or self.keep_unchanged

    @property
    def has_sides(self) -> bool:
        """Whether a side was asked for, and counts."""
        return not self.follow_input and (self.height is not None or self.width is not None)

    @cached_property
    def size(self) -> tuple[int, int]:
        """(height, width) to draw at; of a mask, each region has its own unless a side was asked for.

        Raises:
            ValueError: When the model cannot draw it.
        """
        first = self.references[0] if self.references else None
        if first is not None and self.follow_input == STRETCH:
            return self.rules.match_aspect(first.height, first.width)
        if first is not None and (self.follow_input or (self.in_place and not self.has_sides)):
            return self.rules.least_padding(first.height, first.width)
        editing = first is not None
        given = zip((self.height, self.width), self.rules.match_aspect(1, 1, editing), strict=True)
        height, width = (trained if side is None else side for side, trained in given)
        return self.rules.check(height, width, editing)

    @property
    def fit(self) -> Fit:
        """Where the first reference lies in what is drawn of it."""
        if self.follow_input == PAD:
            return Fit.padded(self.references[0].height, self.references[0].width, *self.size)
        return Fit.stretched(*self.size)

    @property
    def shown(self) -> list[Image.Image]:
        """The references as the model sees them, if it is not an edit in place."""
        return padded(self.references, *self.size) if self.follow_input == PAD else list(self.references)

    @property
    def result_size(self) -> tuple[int, int]:
        """(height, width) of the images that come out."""
        if self.in_place:
            return self.references[0].height, self.references[0].width
        return self.fit.rows, self.fit.columns

    @cached_property
    def plan(self) -> EditPlan | None:
        """The regions of an edit in place; None for another run."""
        from .editing import EditPlan

        if not self.in_place:
            return None
        size = self.size if self.has_sides else None
        return EditPlan.of(self.rules, self.references[0], self.mask, self.keep_unchanged, size)

    def draw(self, drawing: Drawing) -> list[tuple[Image.Image, Kept | None]]:
        """All images of a drawing, and what each kept of the first reference where that was asked for.

        Args:
            drawing: With prompts, noise and the other references.
        """
        from .images import in_form

        if self.plan is not None:
            edits = self.plan.run(drawing)
            return [(in_form(edit.image[None], "pil")[0], edit.kept) for edit in edits]  # pyright: ignore
        noise = drawing.noise(*self.size)
        drawn = drawing.draw(drawing.prompts, self.shown, *self.size, noise, drawing.copies)
        return [(image, None) for image in in_form(self.fit.content(drawn), "pil")]  # pyright: ignore
