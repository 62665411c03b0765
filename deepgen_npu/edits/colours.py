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

LOCAL_SIGMA, LOCAL_LIMIT = 24.0, 12.0
"""Of the slow rest of the drift: pixels, and the residual up to which a pixel counts."""


def lab(image: Tensor) -> Tensor:
    """sRGB [3, H, W] in [0, 1] to CIE Lab (D65), the same shape: L in [0, 100]."""
    linear = torch.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055).clamp_min(0) ** 2.4)
    xyz = torch.einsum("ij,jhw->ihw", torch.tensor(TO_XYZ, dtype=image.dtype), linear)
    xyz = xyz / torch.tensor(WHITE, dtype=image.dtype)[:, None, None]
    root = torch.where(xyz > (6 / 29) ** 3, xyz.clamp_min(1e-12) ** (1 / 3), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = root
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def without_drift(before: Tensor, after: Tensor, weights: Tensor) -> tuple[Tensor, float]:
    """What the input's colours became where nothing was edited.

    Args:
        before: Lab of the input, [3, H, W].
        after: Lab of the edit, with its motion undone.
        weights: How surely a pixel was left alone, [H, W].

    Returns:
        Lab of the input with the edit's drift, [3, H, W]; and the drift, the median of how far colours moved.
    """
    matrix, offset = _fit(before, after, weights)
    drifted = torch.einsum("ij,jhw->ihw", matrix, before) + offset[:, None, None]
    rest = after - drifted
    counts = weights * (rest.norm(dim=0) < LOCAL_LIMIT)
    slow = gaussian(rest * counts, LOCAL_SIGMA) / (gaussian(counts, LOCAL_SIGMA) + 1e-3)
    drift = float((drifted - before).norm(dim=0).median())
    return drifted + slow, drift


def _fit(before: Tensor, after: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Matrix [3, 3] and offset [3] of the drift, robustly: what differs much does not count."""
    x, y = before.flatten(1).double(), after.flatten(1).double()
    base = weights.flatten().double() + 1e-9
    matrix = torch.eye(3, dtype=torch.float64)
    offset = (y - x).median(dim=1).values
    for _ in range(ROUNDS):
        rest = (y - matrix @ x - offset[:, None]).norm(dim=0)
        usual = 4 * rest.median() + 1e-6
        counts = base * (1 - (rest / usual).square()).clamp_min(0).square()
        total = counts.sum()
        mean_x, mean_y = (x * counts).sum(1) / total, (y * counts).sum(1) / total
        inner = x - mean_x[:, None]
        square = (inner * counts) @ inner.T + RIDGE * total * torch.eye(3, dtype=torch.float64)
        cross = ((y - mean_y[:, None]) * counts) @ inner.T + RIDGE * total * torch.eye(3, dtype=torch.float64)
        matrix = torch.linalg.solve(square, cross.T).T
        offset = mean_y - matrix @ mean_x
    return matrix.float(), offset.float()
