"""The formula against PyTorch's own count of a real step."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from deepgen_npu.model.transformer import PreparedTransformer
from deepgen_npu.tools.peaks import PEAKS, peak_of
from deepgen_npu.tools.work import step_flops


@pytest.mark.parametrize(
    ("references", "images", "guided"),
    [([], 1, True), ([(16, 12)], 1, True), ([(16, 12), (8, 8)], 2, False)],
    ids=["text to image", "edit", "two references, two images, unguided"],
)
def test_a_step_is_counted_to_the_operation(pipe, references, images, guided):
    config = pipe.transformer.config
    height, width, tokens = 16, 24, 21
    rows, channels = images * (2 if guided else 1), config["in_channels"]
    prepared = PreparedTransformer(
        pipe.transformer,
        torch.tensor([500.0]),
        torch.randn(rows, tokens, config["joint_attention_dim"]),
        torch.randn(rows, config["pooled_projection_dim"]),
        [torch.randn(rows, channels, *size) for size in references],
        height,
        width,
    )
    modulation, latents = prepared.modulation(0), torch.randn(images, channels, height, width)
    # As matrix products: PyTorch counts no fused attention on the CPU.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        prepared(latents, modulation)
    assert step_flops(config, (height, width), tokens, references, images, guided) == counter.get_total_flops()


def test_peaks_are_those_of_whole_cards_in_sixteen_bits():
    known = peak_of("NVIDIA H100 80GB HBM3", "bfloat16")
    assert known is not None and known.tflops == 989
    for card in ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "NVIDIA H200 NVL", "Ascend910B3 (simulated)", "Ascend910B4-1"):
        assert peak_of(card, "bfloat16") is None, card
    assert peak_of("NVIDIA H100 80GB HBM3", "float32") is None
    assert peak_of("NVIDIA A100-SXM4-80GB", "float16") == peak_of("NVIDIA A100 80GB PCIe", "float16") is not None
    assert all(peak.source.count("commit") == 1 for peak in PEAKS)
