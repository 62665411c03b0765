"""On a card: agreement with the original, the same bits twice, nothing done on the CPU instead."""

from __future__ import annotations

import pytest
import torch
from golden import CASES, TINY, differences
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deepgen_npu import DeepGenPipeline


# Largest difference of final latents, whose peaks are about 5. float32: another order of sums, over 12 to 20 steps.
# bfloat16 and float16: those of the CPU's tests.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.6, torch.float16: 0.1}


def load(device: torch.device, dtype: torch.dtype = torch.float32) -> DeepGenPipeline:
    pipe = DeepGenPipeline.from_pretrained(TINY, torch_dtype=dtype, device=device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: DeepGenPipeline, **options) -> torch.Tensor:
    options = {"height": 64, "width": 96, "num_inference_steps": 6, "seed": 3, "output_type": "pt", **options}
    return pipe("a red circle on a white background", **options).images


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_original(device, case, dtype, hardware_table):
    found = differences(load(device, dtype), case)
    hardware_table.append((f"{case}, {dtype}: final latents", f"{found['final_latents']:.1e}"))
    assert found["final_latents"] <= TOLERANCES[dtype], found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_are_identical_to_the_bit(device, dtype):
    first, second = (draw(load(device, dtype)) for _ in range(2))
    assert torch.equal(first.cpu(), second.cpu())


@pytest.mark.parametrize(("dtype", "every"), [(torch.float32, 1), (torch.bfloat16, 2)])
def test_a_captured_run_is_identical_to_an_eager_one(device, dtype, every, caplog):
    pipe = load(device, dtype)
    eager = draw(pipe, output_type="latent", guidance_every=every).cpu()
    pipe.capture_graph = True
    captured = draw(pipe, output_type="latent", guidance_every=every).cpu()
    assert not caplog.records, "the step was captured"
    assert torch.equal(captured, eager)


class Places(TorchDispatchMode):
    """Notes operators whose results are on the CPU although an input is on the card."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.seen, self.on_cpu = kind, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if any(tensor.device.type == self.kind for tensor in tensors((args, kwargs))):
            self.seen += 1
            if any(tensor.device.type == "cpu" for tensor in tensors(result)):
                self.on_cpu.add(func._schema.name)
        return result


def tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def test_the_loop_leaves_the_card_for_nothing(device):
    """On an NPU, TORCH_NPU_FALLBACK_CPU_DISABLE (conftest) also makes an operator that it lacks an error."""
    pipe = load(device, torch.bfloat16)
    conditioning = pipe.encode("a red circle", height=64, width=64)
    noise = pipe.prepare_latents(1, 64, 64, seed=0)
    with Places(device.type) as places:
        latents = pipe.denoise(conditioning, noise, 3)
    assert latents.device == device
    assert places.seen > 100 and places.on_cpu == set()
