"""Which dtype ``auto`` is on a card, and why. Nothing here imports torch: `devices` asks the card, the doctor a child.

DeepGen was trained and published in bfloat16. A card without it gets float16, which has a smaller range (see
`model.float16`), and one of which not even that is known float32.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Choice(NamedTuple):
    """A dtype by its name in PyTorch, and the reason, which completes "float16, since ..."."""

    dtype: str
    why: str


class Card(NamedTuple):
    """A family of Ascend cards.

    Attributes:
        name: For users, with the products of the family.
        soc: A regular expression for the names of its chips, as ``aclrtGetSocName`` and torch_npu spell them.
        dtype: What ``auto`` is where torch_npu does not say.
        trusted: Whether torch_npu's own answer counts.
    """

    name: str
    soc: str
    dtype: str
    trusted: bool = True


# Names and numbers of chips: Ascend/pytorch, torch_npu/csrc/core/npu/NpuVariables.h. torch_npu calls every chip from
# Ascend910B1 on capable of bfloat16, by the order of these numbers.
CARDS = (
    Card("910 of the first generation", r"Ascend910(A|B|(Pro|Premium)[AB])", "float16"),
    Card("310P (Atlas 300I Duo, 300I Pro, 300V Pro)", r"Ascend310P\d*", "float16"),
    Card("910B (Atlas A2)", r"Ascend910B\w*(-\d+)?", "bfloat16"),
    # By its number it comes after the 910B, so torch_npu says yes; nothing shows that it computes in bfloat16.
    Card("310B (Atlas 200I A2, Orange Pi AIpro)", r"Ascend310B\d*", "float32", trusted=False),
    Card("950", r"Ascend950\w*|Ascend910_95\w*", "bfloat16"),
    Card("910C (Atlas A3)", r"Ascend910_\w+", "bfloat16"),
)
"""The first that matches counts: ``Ascend910B`` without a digit is of the first generation."""


def card_of(soc: str) -> Card | None:
    """The family of a chip; None for an unknown one.

    Args:
        soc: Its name. What follows a space does not count.
    """
    name = soc.partition(" ")[0]
    return next((card for card in CARDS if re.fullmatch(card.soc, name)), None)


def on_npu(soc: str, bfloat16: bool | None) -> Choice:
    """What ``auto`` is on an NPU.

    Args:
        soc: The name of its chip.
        bfloat16: What ``torch.npu.is_bf16_supported()`` answers; None where it does not.
    """
    card = card_of(soc)
    if card is not None and not card.trusted:
        return Choice(card.dtype, f"{soc} is a {card.name}, on which neither bfloat16 nor float16 is known to work")
    if bfloat16 is not None:
        has = "has" if bfloat16 else "has no"
        return Choice("bfloat16" if bfloat16 else "float16", f"torch_npu says that {soc} {has} bfloat16")
    if card is not None:
        has = "has" if card.dtype == "bfloat16" else "has no"
        return Choice(card.dtype, f"{soc} is a {card.name}, which {has} bfloat16")
    return Choice("float32", f"neither torch_npu nor the table of cards knows whether {soc} has bfloat16")


def on_cuda(name: str, capability: tuple[int, int], rocm: bool = False) -> Choice:
    """What ``auto`` is on a GPU.

    Args:
        name: Of the card.
        capability: As PyTorch's ``get_device_capability()`` returns it.
        rocm: Whether this is AMD's build of PyTorch, which calls all its cards capable of bfloat16.
    """
    number = ".".join(map(str, capability))
    if rocm or capability >= (8, 0):
        return Choice("bfloat16", f"{name} has bfloat16")
    # Volta and Turing multiply float16 in tensor cores, and emulate bfloat16; before them even float16 is slow.
    if capability >= (7, 0):
        return Choice("float16", f"{name} (compute capability {number}) has no bfloat16")
    return Choice("float32", f"{name} (compute capability {number}) has neither bfloat16 nor fast float16")
