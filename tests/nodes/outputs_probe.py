"""Run in ComfyUI's interpreter by `test_outputs`: what the executor may touch of our outputs, outside of any node.

Arguments: the pack, ComfyUI's checkout, a checkpoint to break, one to run. Prints one JSON line.
"""

import importlib
import json
import shutil
import sys
from pathlib import Path

from load_module import launch, load_pack


pack, checkout, doomed, good = sys.argv[1:]
launch().enter(checkout, ["--cpu"])

import comfy.model_management as mm  # noqa: E402
import comfy.model_patcher  # noqa: E402
import torch  # noqa: E402
from comfy.cli_args import args  # noqa: E402


load_pack(pack)
lazy_pipeline = importlib.import_module("pack.nodes.lazy_pipeline")
weights = importlib.import_module("pack.deepgen_npu.checkpoint.weights")

reads: list[str] = []
read_tensor = weights.read_tensor


def counted(*arguments, **options):
    reads.append("tensor")
    return read_tensor(*arguments, **options)


weights.read_tensor = counted


def touch(thing: object) -> list[str]:
    """Read every attribute there is; what raised anything but AttributeError."""
    failed = []
    for name in {*dir(thing), "patcher", "get_models", "is_dynamic", "cached_patcher_init"}:
        try:
            getattr(thing, name)
        except AttributeError:
            pass
        except BaseException as error:
            failed.append(f"{type(thing).__name__}.{name}: {type(error).__name__}")
    return failed


# What is called as well as read, by the caches and trackers of the three versions.
CALLED = ("get_ram_usage", "is_dynamic", "model_size", "loaded_size")


def call(thing: object) -> None:
    for name in CALLED:
        method = getattr(thing, name, None)
        if callable(method):
            method()


model = lazy_pipeline.LazyPipeline(Path(doomed), "float32", False)
found: dict = {"failed": [], "read by the loader": len(reads)}
reads.clear()
shutil.rmtree(doomed)
for output in (model, model.vae, model.vae.patcher, model.patcher):
    found["failed"] += touch(output)
    call(output)
if hasattr(comfy.model_patcher, "PromptModelTracker"):
    comfy.model_patcher.PromptModelTracker().add([model, [model.vae], model.patcher])
found["reads"] = len(reads)
found["ram of the loader"] = [model.get_ram_usage(), model.vae.get_ram_usage()]

latents = torch.zeros(1, 16, 4, 4)
errors = []
for _attempt in range(2):
    try:
        model.vae.decode(latents)
    except Exception as error:
        errors.append(type(error).__name__)
found["errors of decoding"] = errors
found["placed in spite of it"] = len(mm.current_loaded_models)

model = lazy_pipeline.LazyPipeline(Path(good), "float32", False)
known = model.vae.patcher.model_size()
model.vae.decode(latents)
mm.get_total_memory = lambda *arguments, **options: 8 << 30
for huge in (torch.zeros(1).expand(1, 16, 1500, 1500), torch.zeros(1).expand(1, 16, 5000, 4)):
    try:
        model.vae.decode(huge)
    except ValueError as error:
        found.setdefault("huge", []).append(str(error))
stage = model.vae.first_stage_model
found["size known, size read"] = [known, sum(tensor.nbytes for tensor in stage.state_dict().values())]
model.load()
found["has a patcher"] = isinstance(model.patcher, comfy.model_patcher.ModelPatcher)
found["failed"] += touch(model)
found["ram after reading"] = model.get_ram_usage()
(loaded,) = [one for one in mm.current_loaded_models if one.model is model.vae.patcher]
found["loaded"] = loaded.model_loaded_memory()
found["unloaded whole"] = loaded.model_unload(1)
found["loaded after"] = model.vae.patcher.loaded_size()
found["mapped"] = []
for args.disable_mmap in (True, False):
    copy = shutil.copytree(good, f"{doomed} {args.disable_mmap}")
    model = lazy_pipeline.LazyPipeline(Path(copy), "bfloat16", False)
    model.load()
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    found["mapped"].append(sorted({Path(line).parent.name for line in maps if copy in line}))
print(json.dumps(found))
