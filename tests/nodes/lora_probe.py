"""Run in ComfyUI's interpreter by `test_lora_node`: DeepGen LoRA on a simulated NPU. Prints one JSON line."""

from __future__ import annotations

import copy
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any


# isort: off
from native_bench import MODELS, PARTS, Records, core_sample, distance, encoded, error_of, importlib, mm, opened
from native_bench import replaced, sampled, torch, unload
# isort: on

import comfy.lora
import folder_paths
from safetensors.torch import load_file


node = importlib.import_module("pack.nodes.lora").DeepGenLora
merge = importlib.import_module("pack.deepgen_npu.lora.merge")
files = importlib.import_module("pack.deepgen_npu.lora.file")
reader = importlib.import_module("pack.deepgen_npu.lora.changes")
tensor_shapes = importlib.import_module("pack.deepgen_npu.checkpoint.tensor_shapes")
folder_paths.add_model_folder_path("loras", f"{MODELS}/loras")

found: dict[str, Any] = {}
NAME = "kohya.safetensors"


def applied(name: str, pipeline: Any = None, strength: float = 1.0, **more: Any) -> tuple[Any, Any]:
    """Pipeline and MODEL of the node."""
    return node.execute(pipeline=pipeline or base, lora_name=name, strength=strength, **more).result


def weights(patcher: Any) -> dict[str, torch.Tensor]:
    """Those on the card, once ComfyUI has loaded it."""
    mm.load_models_gpu([patcher], force_full_load=True)
    state = patcher.model.diffusion_model.state_dict()
    return {key: tensor.cpu().clone() for key, tensor in state.items()}


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(distance(one[key], other[key]) for key in one)


def styles() -> None:
    """Each file by the node, by the library, and by its definition; and the weights that are there afterwards."""
    before = weights(base.patcher)
    shapes = tensor_shapes.transformer(base.patcher.model.diffusion_model.config)
    rows = {}
    for name in PARTS:
        _, model = applied(name)
        got = weights(model)
        by_definition = load_file(f"{MODELS}/expected/{name}")
        unload()
        library = copy.deepcopy(base.patcher.model.diffusion_model)
        changes = reader.read_changes(files.inspect(f"{MODELS}/loras/{name}", shapes))
        merge.Merged(library).merge([(change, 1.0) for change in changes])
        rows[name] = [
            apart(got, by_definition),
            apart(got, {key: tensor.cpu() for key, tensor in library.state_dict().items()}),
            apart(got, before),
            apart(weights(base.patcher), before),
        ]
    found["styles"] = rows
    found["patches of the loader's model"] = len(base.patcher.patches)


def strengths() -> None:
    """Half and half, none, and on a MODEL that another node has changed."""
    whole, before = weights(applied(NAME)[1]), weights(base.patcher)
    half, _ = applied("diffusers.safetensors", strength=0.5)
    found["half and half"] = apart(weights(applied(NAME, half, 0.5)[1]), whole)
    found["there and back"] = apart(weights(applied(NAME, applied(NAME)[0], -1.0)[1]), before)
    pipeline, model = applied(NAME, strength=0.0)
    found["none"] = [apart(weights(model), before), model is base.patcher, len(model.patches)]
    changed = base.patcher.clone()
    changed.add_patches({"diffusion_model.proj_out.bias": ("diff", (torch.ones_like(before["proj_out.bias"]),))})
    pipeline, model = applied(NAME, model=changed)
    both = dict(whole)
    both["proj_out.bias"] = whole["proj_out.bias"] + 1
    found["on a changed MODEL"] = [apart(weights(model), both), pipeline.patcher is model]


def drawn() -> None:
    """Latents with a LoRA: by our nodes, by KSampler, and with weights that stay on the CPU."""
    given = encoded(base)
    before = sampled(base, given)
    for name in (NAME, "dora.safetensors"):
        pipeline, model = applied(name)
        whole = sampled(pipeline, given)
        row = [distance(whole, before), distance(core_sample(model, given), whole)]
        unload()
        with replaced(mm, "vram_state", mm.VRAMState.NO_VRAM):
            row.append(distance(sampled(pipeline, given), whole))
            unload()
        found[f"drawn with {name}"] = row
    found["drawn without again"] = distance(sampled(base, given), before)


def copied() -> None:
    """Where ComfyUI fetches patches ahead, it makes each anew with tensors of its own."""
    model = applied("dora.safetensors")[1]
    ((key, ((_, patch, *_),)),) = model.patches.items()
    make = vars(comfy.lora).get("prefetch_prepared_value", lambda value, *others: value)
    weight = model.model.state_dict()[key].float()
    found["copied"] = distance(
        *(one.calculate_weight(weight.clone(), key, 1.0, 1.0) for one in (patch, make(patch, [0], None, None, False)))
    )


def words() -> None:
    """What the log and errors say."""
    watcher = Records(logging.INFO)
    logging.getLogger().addHandler(watcher)
    applied("with more.safetensors")
    logging.getLogger().removeHandler(watcher)
    found["log"] = watcher.messages
    names = ("of another model.safetensors", "dora of fused columns.safetensors", "pickled.pt", "nowhere.safetensors")
    found["refused"] = [error_of(lambda name=name: applied(name)) for name in names]
    stranger = opened("tiny", "bfloat16").patcher
    found["another loader"] = error_of(lambda: applied(NAME, model=stranger))
    found["no model of DeepGen"] = error_of(lambda: applied(NAME, model=torch.nn.Linear(1, 1)))
    found["before the queue"] = [node.validate_inputs(lora_name=name) for name in (NAME, "pickled.pt", None)]
    found["list"] = node.define_schema().inputs[1].options


def fingerprints() -> None:
    beside = "alpha beside/adapter_model.safetensors"
    first = [node.fingerprint_inputs(lora_name=name) for name in (NAME, beside, None)]
    config = Path(MODELS, "loras", "alpha beside", "adapter_config.json")
    config.write_text(config.read_text() + "\n")
    second = [node.fingerprint_inputs(lora_name=name) for name in (NAME, beside, None)]
    found["changed"] = [one != other for one, other in zip(first, second, strict=True)]


mm.lora_compute_dtype = lambda device: torch.float32  # newer versions merge in float16 where the device has it
with torch.inference_mode():  # as ComfyUI runs nodes
    base = opened("tiny")
    for part in (styles, strengths, drawn, copied, words, fingerprints):
        began = time.process_time()
        part()
        print(f"{part.__name__}: {time.process_time() - began:.1f} s", file=sys.stderr)
print(json.dumps(found))
