"""Run in ComfyUI's interpreter by `test_nodes`: where ComfyUI's memory manager puts a stage on a GPU.

The GPU is a pretence: layers only note where they are sent; the rest is ComfyUI's own code. Prints one JSON line.
"""

import importlib
import json
import sys

from load_module import finder, load_pack


pack, checkout = sys.argv[1:]
sys.argv[1:] = []
# In the place of the tests' folder, whose modules must not stand before ComfyUI's.
sys.path[0] = checkout
sys.meta_path.insert(0, finder())

import comfy.cli_args  # noqa: E402


comfy.cli_args.args.cpu = True

import comfy.model_management as mm  # noqa: E402
import torch  # noqa: E402


load_pack(pack)
memory = importlib.import_module("pack.nodes.placement")

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")
mm.get_free_memory = lambda device=None, torch_free_too=False: (10**12, 10**12) if torch_free_too else 10**12
mm.minimum_inference_memory = lambda: 0
mm.soft_empty_cache = lambda *arguments, **options: None
torch.cuda.synchronize = lambda *arguments: None


class Layer(torch.nn.Linear):
    """Remembers where it was sent, since there is no GPU to go to."""

    place = "cpu"

    def to(self, device):
        self.place = torch.device(device).type
        return self


class Stage(memory.DeepGenDiT):
    def to(self, device):
        for layer in self.layers:
            layer.to(device)
        return self


def places(patcher) -> list[str]:
    return sorted({layer.place for layer in patcher.model.layers})


found = {}
for state in ("NORMAL_VRAM", "LOW_VRAM", "NO_VRAM", "HIGH_VRAM"):
    mm.vram_state = getattr(mm.VRAMState, state)
    stage = Stage(layers=torch.nn.ModuleList(Layer(10, 10) for _ in range(3)))
    patcher = memory.WholePatcher(stage, load_device=GPU, offload_device=CPU)
    mm.load_models_gpu([patcher], force_full_load=True)
    loaded = places(patcher)
    mm.current_loaded_models[0].model_unload()
    unloaded = places(patcher)
    mm.current_loaded_models.clear()
    mm.load_models_gpu([patcher], force_full_load=True)
    found[state] = [loaded, unloaded, places(patcher)]
    mm.current_loaded_models.clear()
print(json.dumps(found))
