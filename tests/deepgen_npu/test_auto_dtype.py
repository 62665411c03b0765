"""Which dtype ``auto`` is, for every family of cards and every answer of torch_npu."""

from __future__ import annotations

import pytest

from deepgen_npu.auto_dtype import CARDS, card_of, on_cuda, on_npu


FAMILIES = {
    "910 of the first generation": "Ascend910A Ascend910B Ascend910ProA Ascend910ProB Ascend910PremiumA",
    "310P": "Ascend310P1 Ascend310P3 Ascend310P7",
    "910B": "Ascend910B1 Ascend910B2 Ascend910B2C Ascend910B3 Ascend910B4 Ascend910B4-1",
    "310B": "Ascend310B1 Ascend310B4",
    "910C": "Ascend910_9391 Ascend910_9381 Ascend910_9362",
    "950": "Ascend910_9589 Ascend910_9599 Ascend950PR_9589 Ascend950DT_9591 Ascend950",
}


@pytest.mark.parametrize(("family", "socs"), FAMILIES.items())
def test_every_chip_has_its_family(family, socs):
    for soc in socs.split():
        card = card_of(soc)
        assert card is not None and card.name.partition(" (")[0] == family, soc
        assert card_of(f"{soc} (simulated)") == card
    assert len(CARDS) == len(FAMILIES)


@pytest.mark.parametrize(
    ("soc", "answer", "dtype", "why"),
    [
        ("Ascend910B3", True, "bfloat16", "torch_npu says that Ascend910B3 has bfloat16"),
        ("Ascend910_9391", True, "bfloat16", "torch_npu says that Ascend910_9391 has bfloat16"),
        ("Ascend950PR_9589", None, "bfloat16", "Ascend950PR_9589 is a 950, which has bfloat16"),
        ("Ascend310P3", False, "float16", "torch_npu says that Ascend310P3 has no bfloat16"),
        ("Ascend310P3", None, "float16", "Ascend310P3 is a 310P (Atlas 300I Duo, 300I Pro, 300V Pro), which has no"),
        ("Ascend910B", None, "float16", "Ascend910B is a 910 of the first generation, which has no bfloat16"),
        ("Ascend310B4", True, "float32", "Ascend310B4 is a 310B (Atlas 200I A2, Orange Pi AIpro), on which neither"),
        ("Ascend1000", True, "bfloat16", "torch_npu says that Ascend1000 has bfloat16"),
        ("Ascend1000", False, "float16", "torch_npu says that Ascend1000 has no bfloat16"),
        ("Ascend1000", None, "float32", "neither torch_npu nor the table of cards knows whether Ascend1000 has"),
    ],
)
def test_of_an_npu(soc, answer, dtype, why):
    choice = on_npu(soc, answer)
    assert choice.dtype == dtype and choice.why.startswith(why)


@pytest.mark.parametrize(
    ("capability", "rocm", "dtype"),
    [
        ((12, 0), False, "bfloat16"),
        ((8, 0), False, "bfloat16"),
        ((7, 5), False, "float16"),
        ((7, 0), False, "float16"),
        ((6, 1), False, "float32"),
        ((6, 0), True, "bfloat16"),
    ],
)
def test_of_a_gpu(capability, rocm, dtype):
    assert on_cuda("A card", capability, rocm).dtype == dtype
