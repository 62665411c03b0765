"""Lab colours, and the drift of colours that an edit has all over."""

from __future__ import annotations

import torch
from torch import Tensor

from .filters import gaussian


WHITE = (0.95047, 1.0, 1.08883)
"""D65, of sRGB (IEC 61966-2-1)."""

TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
"""From linear sRGB (IEC 61966-2-1)."""

ROUNDS = 12
"""Of the robust fit."""

RIDGE = 300.0
"""How hard the matrix of the drift is pulled to the identity, in sums of weights. A free fit would take an edit for a
drift wherever an image has two colours."""

PLAIN_WEIGHT = 0.15
"""Of pixels without texture, where the correlation tells nothing."""

CHROMA, COLOURED_PART = 8.0, 0.3
"""An image has colours if this part of its pixels has more than that chroma."""

FADED, FADED_PART = 0.4, 0.95
"""A pixel is faded that has less than that part of its chroma; an image, if that part of its coloured pixels is."""

LOCAL_LIMIT = 12.0
"""Of the slow rest of the drift: the residual up to which a pixel counts."""


def lab(image: Tensor) -> Tensor:
    """sRGB [3, H, W] in [0, 1] to CIE Lab (D65), the same shape: L in [0, 100]."""
    linear = torch.where(image <= 0.04045, image / 12.92, _power((image + 0.055) / 1.055, 2.4))
    matrix = torch.tensor(TO_XYZ) / torch.tensor(WHITE)[:, None]
    xyz = torch.einsum("ij,jhw->ihw", matrix.to(image), linear)
    x, y, z = torch.where(xyz > (6 / 29) ** 3, _power(xyz, 1 / 3), xyz * ((29 / 6) ** 2 / 3) + 4 / 29)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _power(values: Tensor, exponent: float) -> Tensor:
    """Of what is above 0. This takes half of the time of ``pow``."""
    return (values.clamp_min(1e-6).log() * exponent).exp()


def length(colours: Tensor) -> Tensor:
    """Of differences of colours [3, H, W] or [3, n]; ``norm`` takes ten times as long here."""
    one, two, three = colours
    return (one * one + two * two + three * three).sqrt()


def lost_colour(before: Tensor, after: Tensor) -> bool:
    """Whether an image became grey, all but a few pixels of what had a colour: both in Lab, [3, H, W]."""
    chroma, left = (torch.hypot(one[1], one[2]) for one in (before, after))
    coloured = chroma > CHROMA
    lost = coloured & (left < FADED * chroma)
    return bool(coloured.float().mean() > COLOURED_PART and lost.sum() > FADED_PART * coloured.sum())


def without_drift(before: Tensor, after: Tensor, weights: Tensor, sigma: float) -> tuple[Tensor, float]:
    """What the input's colours became where nothing was edited.

    Args:
        before: Lab of the input, [3, H, W].
        after: Lab of the edit, with its motion undone.
        weights: How surely a pixel was left alone, [H, W].
        sigma: Of the slow rest of the drift, in pixels.

    Returns:
        Lab of the input with the edit's drift, [3, H, W]; and the drift, the median of how far colours moved.
    """
    matrix, offset = _fit(before.flatten(1), after.flatten(1), weights.flatten())
    drifted = torch.einsum("ij,jhw->ihw", matrix, before) + offset[:, None, None]
    rest = after - drifted
    counts = weights * (length(rest) < LOCAL_LIMIT)
    slow = gaussian(rest * counts, sigma) / (gaussian(counts, sigma) + 1e-3)
    return drifted + slow, float(length(drifted - before).median())


def _fit(before: Tensor, after: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Matrix [3, 3] and offset [3] of the drift, robustly: what differs much does not count.

    Args:
        before: [3, n].
        after: [3, n].
        weights: [n].
    """
    identity = torch.eye(3)
    matrix, offset = identity, (after - before).median(dim=1).values
    for _ in range(ROUNDS):
        rest = length(after - matrix @ before - offset[:, None])
        counts = (weights + 1e-9) * (1 - (rest / (4 * rest.median() + 1e-6)).square()).clamp_min(0).square()
        counts = counts / counts.sum()
        centre, of_after = before @ counts, after @ counts
        inner = before - centre[:, None]
        weighted = (inner * counts).T
        square = inner @ weighted + RIDGE * identity
        cross = (after - of_after[:, None]) @ weighted + RIDGE * identity
        matrix = torch.linalg.solve(square, cross.T).T
        offset = of_after - matrix @ centre
    return matrix, offset
