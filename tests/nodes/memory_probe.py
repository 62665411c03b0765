"""Run in ComfyUI's interpreter by `test_nodes`: where ComfyUI's memory manager puts a stage on a GPU.

The GPU is a pretence: tensors are fake, the rest is ComfyUI's own code. Prints one JSON line.
"""

import importlib.util
import json
import sys
from unittest.mock import MagicMock


pack, checkout = sys.argv[1:]
sys.argv[1:] = ["--cpu"]
sys.path.insert(0, checkout)
# Compiled against another torch on some test machines, and of no concern here.
for name in ("torchvision", "torchvision.transforms", "torchaudio"):
    sys.modules[name] = MagicMock()
    sys.modules[name].__spec__ = None

import comfy.model_management as mm  # noqa: E402
import torch  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402


spec = importlib.util.spec_from_file_location("pack", f"{pack}/__init__.py", submodule_search_locations=[pack])
assert spec is not None and spec.loader is not None
module = importlib.util.module_from_spec(spec)
sys.modules["pack"] = module
spec.loader.exec_module(module)
memory = importlib.import_module("pack.nodes.memory")

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")
mm.get_free_memory = lambda device=None, torch_free_too=False: (10**12, 10**12) if torch_free_too else 10**12
mm.minimum_inference_memory = lambda: 0
mm.soft_empty_cache = lambda *arguments, **options: None
torch.cuda.synchronize = lambda *arguments: None


class Part(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(10, 10) for _ in range(3))
        self.queries = torch.nn.Parameter(torch.zeros(4, 10))
        self.register_buffer("frequencies", torch.ones(3), persistent=False)


def places(patcher) -> list[str]:
    tensors = [*patcher.model.parameters(), *patcher.model.buffers()]
    return sorted({tensor.device.type for tensor in tensors})


found = {}
with FakeTensorMode(allow_non_fake_inputs=True):
    for state in ("NORMAL_VRAM", "LOW_VRAM", "NO_VRAM", "HIGH_VRAM"):
        mm.vram_state = getattr(mm.VRAMState, state)
        mm.current_loaded_models.clear()
        patcher = memory._WholePatcher(memory.DeepGenDiT(part=Part()), load_device=GPU, offload_device=CPU)
        mm.load_models_gpu([patcher], force_full_load=True)
        loaded = places(patcher)
        mm.current_loaded_models[0].model_unload()
        unloaded = places(patcher)
        mm.current_loaded_models.clear()
        mm.load_models_gpu([patcher], force_full_load=True)
        found[state] = [loaded, unloaded, places(patcher)]
print(json.dumps(found))
