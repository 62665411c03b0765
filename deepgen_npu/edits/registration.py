"""How far an edit has moved from its input, told by what did not change.

The model is I(p) = E(p + t + k (p - c)): a shift t and a scale k for each axis, about the centre c of the image. They
are found by robust Gauss-Newton on locally normalised brightness, which takes away gain, gamma and drift of colours;
what was replaced drops out as a whole, since pixels are weighted by the differences around them. Whether the answer is
certain is put to the vote of blocks (`votes`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .filters import box_max, box_mean, gaussian, half
from .resampling import grid, resample
from .votes import SIDE as BLOCK
from .votes import Votes, count_votes


LUMA = (0.299, 0.587, 0.114)
"""Brightness of red, green and blue (ITU-R BT.601)."""

Numbers = tuple[float, float, float, float]
"""A motion: shift down and right in pixels of the finest level, vertical and horizontal scale."""

SMALLEST_SIDE = BLOCK
"""In pixels; smaller images have not one whole block that could vote."""

NEAR = 8
"""Pixels around what is known to have changed that do not count: normalisation spreads it so far."""

COARSEST = 4
"""Side of the pixels of the coarsest level."""

BORDER = 8
"""Pixels at the edges of each level that do not count: there the edit's content is reflected."""

LARGEST_STEP, LARGEST_SCALE_STEP = 2.0, 0.02
"""Of one iteration, in pixels and as a part."""

FINISHED = 0.002
"""A step below this, in pixels, is the last."""

LARGEST_SHIFT, LARGEST_SCALE = 0.035, 0.05
"""Beyond them nothing is believed: as a part of the longer side, and as a part."""

WIDEST_SPREAD = 0.2
"""Of the residual shifts of the blocks that agree, in pixels."""

NOISE = 0.05
"""Shifts below this, in pixels, are reported, but not undone: each resampling costs sharpness."""


@dataclass(frozen=True)
class Motion:
    """Where the pixels of the input are in the edit.

    Attributes:
        shift: Down and right, in pixels of the drawn image.
        scale: Vertical and horizontal, as a part of the distance to the centre.
    """

    shift: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (0.0, 0.0)

    def moves(self, height: int, width: int) -> float:
        """The largest displacement in an image of that size, in pixels."""
        sides = zip(self.shift, self.scale, (height, width), strict=True)
        down, right = (abs(shift) + abs(scale) * (side - 1) / 2 for shift, scale, side in sides)
        return (down * down + right * right) ** 0.5

    def scaled(self, vertical: float, horizontal: float) -> Motion:
        """The same motion in an image of another size: sides times these factors."""
        return Motion((self.shift[0] * vertical, self.shift[1] * horizontal), self.scale)

    def undone(self, image: Tensor) -> Tensor:
        """The edit [..., H, W] as if it had not moved."""
        if self == Motion():
            return image
        height, width = image.shape[-2:]
        rows, columns = grid(height, self.shift[0], self.scale[0]), grid(width, self.shift[1], self.scale[1])
        return resample(image, rows, columns)

    def seen(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of the input that the edit still shows; what was beyond its edges is not in it."""
        found = []
        for size, shift, scale in zip((height, width), self.shift, self.scale, strict=True):
            positions = grid(size, shift, scale)
            inside = torch.where((positions > -0.5) & (positions < size - 0.5))[0].tolist()
            found.append(slice(inside[0], inside[-1] + 1) if inside else slice(0, size))
        return found[0], found[1]


@dataclass(frozen=True)
class Registration:
    """What is known of a motion.

    Attributes:
        motion: What was found; nothing if it is not certain.
        reason: Why it is not certain: ``few`` blocks agree, they ``scatter``, their ``spread`` is large, there are
            ``two`` answers, it is ``far``, or it ``failed``: values are not finite. Empty if it is.
        agreeing: Number of blocks that agree.
    """

    motion: Motion
    reason: str = ""
    agreeing: int = 0

    @property
    def certain(self) -> bool:
        """Whether the motion may be undone."""
        return not self.reason


def normalised(values: Tensor) -> Tensor:
    """Brightness [H, W] without gain, gamma and drift: what is left is texture of about the size 1."""
    detail = gaussian(values, 1.0) - gaussian(values, 6.0)
    return detail / (gaussian(detail.square(), 6.0) + (2 / 255) ** 2).sqrt()


def register(image: Tensor, edit: Tensor, changed: Tensor | None = None) -> Registration:
    """Find the motion between an image and its edit.

    Args:
        image: [3, H, W] in [0, 1].
        edit: The same.
        changed: [H, W] in [0, 1], what is known to have changed, such as a user's mask; None if nothing is known.
    """
    if min(image.shape[-2:]) < SMALLEST_SIDE:
        return Registration(Motion(), "few")
    one, other = brightness(image), brightness(edit)
    if not bool((one + other).isfinite().all()):
        return Registration(Motion(), "failed")
    levels, weights = [(one, other)], [None if changed is None else _unchanged(changed)]
    while 2 ** (len(levels) - 1) < COARSEST and min(levels[-1][0].shape) >= 64:
        levels.append((half(levels[-1][0]), half(levels[-1][1])))
        weights.append(None if weights[-1] is None else half(weights[-1]))
    textures = [(normalised(one), normalised(other)) for one, other in levels]
    answers: list[tuple[Numbers, Votes]] = []
    for start in _starts(*textures[-1]):
        found = _coarsely(textures, weights, start)
        votes = count_votes(*_aligned(textures[0], found), weights[0])
        answers.append((found, votes))
        if votes.agreeing > votes.textured / 2:
            break
    best = max(answers, key=lambda answer: answer[1].agreeing)
    found, votes = _refined(textures[0], best[0], weights[0])
    reason = _doubt(found, votes, answers, image.shape[-2:])
    motion = Motion() if reason else Motion(found[:2], found[2:])
    return Registration(motion, reason, votes.agreeing)


def brightness(image: Tensor) -> Tensor:
    """Of an image [3, H, W] in [0, 1], on the CPU in float32: [H, W]; infinite values give NaN."""
    image = image.float().cpu()
    values = (image.clamp(0, 1) * torch.tensor(LUMA)[:, None, None]).sum(0)
    return values.where(image.isfinite().all(0), torch.tensor(torch.nan))


def _unchanged(changed: Tensor) -> Tensor:
    """What counts, [H, W]: not what is known to have changed, nor what is near it."""
    return 1 - box_max(changed.float().cpu(), 2 * NEAR + 1).clamp(0, 1)


def _coarsely(
    textures: list[tuple[Tensor, Tensor]], weights: list[Tensor | None], start: tuple[float, float]
) -> Numbers:
    """A motion from a start in pixels of the coarsest level, on all levels but the finest (on that if it is alone)."""
    coarsest = len(textures) - 1
    found: Numbers = (start[0] * 2**coarsest, start[1] * 2**coarsest, 0.0, 0.0)
    for level in range(coarsest, min(1, coarsest) - 1, -1):
        found = _fit(*textures[level], found, 2**level, weights[level], iterations=8)
    return found


def _aligned(textures: tuple[Tensor, Tensor], found: Numbers) -> tuple[Tensor, Tensor]:
    """The image's texture, and the edit's with a motion undone."""
    one, other = textures
    return one, Motion(found[:2], found[2:]).undone(other)


def _starts(one: Tensor, other: Tensor, count: int = 3) -> list[tuple[float, float]]:
    """No motion, and the best peaks of the cross-correlation, in pixels of the coarsest level."""
    height, width = one.shape
    window = torch.hann_window(height, periodic=False)[:, None] * torch.hann_window(width, periodic=False)
    size = (2 * height, 2 * width)  # twice the side: nothing wraps
    spectrum = torch.fft.rfft2(one * window, size).conj() * torch.fft.rfft2(other * window, size)
    correlation = torch.fft.irfft2(spectrum, size)
    reach_down, reach_right = max(1, height // 8), max(1, width // 8)
    down = torch.arange(-reach_down, reach_down + 1)
    right = torch.arange(-reach_right, reach_right + 1)
    near = correlation[down % size[0]][:, right % size[1]]
    peaks = box_max(near, 5) == near
    values = torch.where(peaks, near, near.new_full((), -torch.inf)).flatten()
    starts = [(0.0, 0.0)]
    for index in values.topk(min(count, len(values))).indices.tolist():
        place = float(down[index // len(right)]), float(right[index % len(right)])
        if place not in starts:
            starts.append(place)
    return starts


def _fit(
    one: Tensor,
    other: Tensor,
    found: Numbers,
    pixel: int,
    weight: Tensor | None,
    iterations: int,
    *,
    scales: bool = True,
) -> Numbers:
    """Robust Gauss-Newton on one level.

    Args:
        one: Texture of the image, [h, w].
        other: Texture of the edit.
        found: Shift down and right and both scales, in pixels of the finest level.
        pixel: Side of this level's pixels.
        weight: What counts, [h, w].
        iterations: At most.
        scales: Whether the scales may change.
    """
    height, width = one.shape
    down = torch.arange(height, dtype=torch.float32)[:, None] - (height - 1) / 2
    right = torch.arange(width, dtype=torch.float32)[None] - (width - 1) / 2
    for _ in range(iterations):
        motion = Motion((found[0] / pixel, found[1] / pixel), found[2:])
        warped = motion.undone(other)
        error = warped - one
        mean = (warped + one) / 2
        rows, columns = torch.gradient(mean)
        counts = _weights(error, weight)
        directions = [rows, columns] + ([rows * down, columns * right] if scales else [])
        step = _solve(directions, error, counts)
        step = [max(-LARGEST_STEP, min(LARGEST_STEP, one)) for one in step[:2]] + [
            max(-LARGEST_SCALE_STEP, min(LARGEST_SCALE_STEP, one)) for one in step[2:]
        ]
        step += [0.0] * (4 - len(step))
        found = (
            found[0] - step[0] * pixel,
            found[1] - step[1] * pixel,
            found[2] - step[2],
            found[3] - step[3],
        )
        if max(abs(step[0]), abs(step[1]), abs(step[2]) * height / 2, abs(step[3]) * width / 2) < FINISHED:
            break
    return found


def _weights(error: Tensor, weight: Tensor | None) -> Tensor:
    """How much each pixel counts: by the differences around it, so that what was replaced drops out as a whole."""
    around = box_mean(error.square(), 9).clamp_min(0).sqrt()
    some = around[::2, ::2].flatten()
    if weight is not None and bool((known := weight[::2, ::2].flatten() > 0.5).any()):
        some = some[known]
    usual = 1.2 * some.kthvalue(max(1, round(0.35 * len(some)))).values + 1e-6
    counts = (1 - (around / (3 * usual)).square()).clamp_min(0).square()
    border = min(BORDER, min(error.shape) // 4)
    counts[:border] = counts[-border:] = 0
    counts[:, :border] = counts[:, -border:] = 0
    return counts if weight is None else counts * weight


def _solve(directions: list[Tensor], error: Tensor, counts: Tensor) -> list[float]:
    """The weighted least squares of error = directions x step, in float64."""
    columns = torch.stack([one.flatten() for one in directions]).double()
    weighted = columns * counts.flatten().double()
    matrix = weighted @ columns.T
    matrix += torch.eye(len(matrix), dtype=torch.float64) * (1e-9 * matrix.diagonal().amax() + 1e-12)
    return torch.linalg.solve(matrix, weighted @ error.flatten().double()).tolist()


def _refined(textures: tuple[Tensor, Tensor], found: Numbers, weight: Tensor | None) -> tuple[Numbers, Votes]:
    """On the finest level, with its votes: the shift alone, and the scales where the blocks prove them."""
    one, other = textures
    shifted = _fit(one, other, (found[0], found[1], 0.0, 0.0), 1, weight, 6, scales=False)
    votes = count_votes(*_aligned(textures, shifted), weight)
    if not any(votes.slopes_are_proven(one.shape)):
        return shifted, votes
    scaled = _fit(one, other, found, 1, weight, 6)
    return scaled, count_votes(*_aligned(textures, scaled), weight)


def _doubt(
    found: Numbers,
    votes: Votes,
    answers: list[tuple[Numbers, Votes]],
    shape: torch.Size,
) -> str:
    """Why an answer is not believed; empty if it is."""
    if votes.agreeing < 8 or votes.agreeing < 0.15 * votes.textured:
        return "few"
    height, width = shape
    if max(abs(found[0]), abs(found[1])) > LARGEST_SHIFT * max(height, width):
        return "far"
    if max(abs(found[2]), abs(found[3])) > LARGEST_SCALE:
        return "far"
    if votes.agreeing < 0.6 * votes.counting:
        return "scatter"
    if votes.spread > WIDEST_SPREAD:
        return "spread"
    for other, of_other in answers:
        apart = max(abs(other[0] - found[0]), abs(other[1] - found[1]))
        if apart > 1 and of_other.agreeing >= 8 and of_other.agreeing > votes.agreeing / 2:
            return "two"
    return ""
