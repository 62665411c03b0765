"""Run in ComfyUI's interpreter by `test_nodes`: where ComfyUI's memory manager puts a stage, in each memory mode.

It is moved to a simulated NPU and back by ComfyUI's own code, without a server. Prints one JSON line: for each mode
where a stage is once loaded, once unloaded and once loaded again; and where ComfyUI's own patcher puts it.
"""

import importlib
import json
import sys

from load_module import launch, load_pack


pack, checkout = sys.argv[1:]
launch().enter(checkout, simulated_npu=64 * 1024)

import comfy.model_management as mm  # noqa: E402
import torch  # noqa: E402
from comfy.model_patcher import ModelPatcher  # noqa: E402


load_pack(pack)
placement = importlib.import_module("pack.nodes.placement")

NPU, CPU = mm.get_torch_device(), torch.device("cpu")
assert NPU.type == "npu", NPU


def places(patcher: ModelPatcher) -> list[str]:
    return sorted({parameter.device.type for parameter in patcher.model.parameters()})


def load(patcher: ModelPatcher) -> list[str]:
    mm.load_models_gpu([patcher], force_full_load=True)
    return places(patcher)


def unload(patcher: ModelPatcher) -> list[str]:
    mm.current_loaded_models[0].model_unload()
    mm.current_loaded_models.clear()
    return places(patcher)


def stage(kind: type[ModelPatcher]) -> ModelPatcher:
    layers = torch.nn.ModuleList(torch.nn.Linear(10, 10) for _ in range(3))
    return kind(placement.Stage(layers=layers), load_device=NPU, offload_device=CPU)


found = {}
for mode in ("NORMAL_VRAM", "LOW_VRAM", "NO_VRAM", "HIGH_VRAM"):
    mm.vram_state = getattr(mm.VRAMState, mode)
    ours, usual = stage(placement.WholePatcher), stage(ModelPatcher)
    found[mode] = {"ours": [load(ours), unload(ours), load(ours)]}
    unload(ours)
    found[mode]["usual"] = load(usual)
    mm.current_loaded_models.clear()
print(json.dumps(found))
