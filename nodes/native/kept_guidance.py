"""The negative prompt in every n-th evaluation: in between, the difference that it made is kept.

The library does the same to velocities (`guidance.GuidedVelocity`). ComfyUI combines denoised latents, x - sigma v, by
whatever function the user has. So a negative that was left out is given as denoised latents, too: those of the
positive, and sigma times the kept v_positive - v_negative.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable

from torch import Tensor


logger = logging.getLogger(__name__)

GUIDANCE_EVERY = "deepgen_guidance_every"
"""Key of the node's choice in ``transformer_options``."""


class Pair:
    """A positive and a negative conditioning in one sampling.

    Evaluations are counted, not steps. Where a sampler evaluates once a step, they are the same. Where it does so more
    often (heun, dpm_2 and others), which step an evaluation belongs to is known to the sampler alone; counted like
    this, a kept difference is never older than n - 1 evaluations, and n saves the same whatever the sampler.

    Args:
        every: Of `KeptGuidance`.
    """

    def __init__(self, every: int):
        self._every, self._count = every, 0
        self._difference: Tensor | None = None  # [b, C, h, w]: v_positive - v_negative

    def is_due(self) -> bool:
        """Whether this evaluation has both; each question is an evaluation."""
        self._count += 1
        return (self._count - 1) % self._every == 0

    def keep(self, positive: Tensor, negative: Tensor, sigma: Tensor) -> None:
        """Denoised latents [b, C, h, w] of an evaluation that had both, at sigma [b]."""
        self._difference = (negative - positive) / sigma[:, None, None, None]

    def negative(self, positive: Tensor, sigma: Tensor) -> Tensor:
        """Denoised latents [b, C, h, w] in place of those of the negative, at sigma [b]."""
        assert self._difference is not None
        return positive.addcmul(self._difference, sigma[:, None, None, None])


class KeptGuidance:
    """What is kept of the pairs of one sampling.

    Args:
        every: Both are evaluated in every so many-th evaluation, from the first on.

    Attributes:
        hindrance: Why there was an evaluation of both without it; empty if there was none.
    """

    def __init__(self, every: int):
        self.every = every
        self.hindrance = ""
        self._asked = False
        self._pairs: dict[Hashable, Pair] = {}

    def pair(self, key: Hashable, count: int) -> Pair | None:
        """The pair of a key; None where there is nothing to leave out.

        Args:
            key: Of conditionings and size.
            count: How many conditionings are to be evaluated.
        """
        self._asked = True
        if self.every == 1 or count != 2:
            return None
        return self._pairs.setdefault(key, Pair(self.every))

    def not_plain(self) -> None:
        """Conditionings are evaluated by ComfyUI's own sums."""
        self._asked = True
        self.hindrance = "there are several prompts, areas, masks, ranges of steps or other patches of conditionings"

    def warn(self) -> None:
        """After a sampling: say so if it had no effect, and why."""
        if not self._asked:
            self.hindrance = "another node evaluates the prompts"
        if self.every > 1 and self.hindrance:
            warn_of(self.hindrance)

    def end(self) -> None:
        """Give back what was kept."""
        self._pairs.clear()


def warn_of(hindrance: str) -> None:
    """Say why every evaluation of a sampling has both."""
    logger.warning(
        "DeepGen Guidance Every has no effect on this sampling, since %s: both prompts are evaluated in every step.",
        hindrance,
    )
