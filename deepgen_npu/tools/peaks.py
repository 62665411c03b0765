"""What cards can compute at most, as far as it is published, to compare a measurement with.

Left out are cards whose published number may be of another kind: of two chips, of 8-bit numbers, or with sparsity.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


_TORCHTITAN = "torchtitan/tools/utils.py of pytorch/torchtitan, commit 0258167, by"
_SKILLS = "external/mindstudio/op-mfu-calculator/SKILL.md of ascend-ai-coding/awesome-ascend-skills, commit 1e6a763"
_MINDIE = "docs/en/features/supported_matrix.md of Ascend/MindIE-SD, commit 1cc6117: Atlas 800I A2, 64 GB"


@dataclass(frozen=True)
class Peak:
    """Of matrix products in float16 and bfloat16, dense, summed in float32.

    Attributes:
        names: Of the cards, as their driver gives them; a regular expression for the whole name.
        tflops: 10^12 floating point operations a second.
        source: Where the number is published.
    """

    names: str
    tflops: float
    source: str


PEAKS = (
    Peak(r"Ascend910B1", 378.88, _SKILLS),
    Peak(r"Ascend910B2", 353.89, _SKILLS),
    Peak(r"Ascend910B3", 313, _MINDIE),
    Peak(r"Ascend910B4", 270, _SKILLS),
    Peak(r"NVIDIA A100\b.*", 312, f"{_TORCHTITAN} nvidia.com/en-us/data-center/a100"),
    Peak(r"NVIDIA L40S", 362, f"{_TORCHTITAN} resources.nvidia.com/en-us-l40s/l40s-datasheet-28413"),
    Peak(r"NVIDIA H100 PCIe", 756, f"{_TORCHTITAN} nvidia.com/en-us/data-center/h100"),
    Peak(r"NVIDIA H100 NVL", 835, f"{_TORCHTITAN} nvidia.com/en-us/data-center/h100"),
    Peak(r"NVIDIA H100 80GB HBM3", 989, f"{_TORCHTITAN} nvidia.com/en-us/data-center/h100"),
    Peak(r"NVIDIA H200", 989, f"{_TORCHTITAN} nvidia.com/en-us/data-center/h200"),
    Peak(r"NVIDIA B200", 2250, f"{_TORCHTITAN} nvdam.widen.net/s/wwnsxrhm2w/blackwell-datasheet-3384703"),
)


def peak_of(card: str, dtype: str) -> Peak | None:
    """The peak of a card; None where none is known, as of slices of a card (MIG).

    Args:
        card: Its name.
        dtype: Of the weights.
    """
    if dtype not in ("float16", "bfloat16") or "MIG" in card:
        return None
    return next((peak for peak in PEAKS if re.fullmatch(peak.names, card)), None)


def compared(flops: float, rate: float, card: str, dtype: str) -> str:
    """How near a rate of steps is to the card's limit, in a sentence.

    Args:
        flops: Of a step.
        rate: Steps a second.
        card: Its name, or that of the processor.
        dtype: Of the weights.
    """
    reached = f"{flops / 1e12:.3g} TFLOP a step x {rate:.3g} it/s = {flops * rate / 1e12:.3g} TFLOPS"
    peak = peak_of(card, dtype)
    if peak is None:
        return f"{reached}. The peak of {card} in {dtype} is not known."
    share = flops * rate / 1e12 / peak.tflops
    return f"{reached}, {share:.1%} of the {peak.tflops:g} of {card} in {dtype} ({peak.source})."
