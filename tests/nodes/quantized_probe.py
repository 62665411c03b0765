"""Run in ComfyUI's interpreter by `test_quantized`: quantised weights in ComfyUI, on the CPU or on a simulated NPU.

Prints one JSON line.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

from load_module import launch, load_pack
from log_records import Records


PACK, COMFYUI, MODELS, WHERE = sys.argv[1:]
ON_NPU = WHERE == "npu"
launch().enter(COMFYUI, **({"simulated_npu": 64 * 1024} if ON_NPU else {"arguments": ["--cpu"]}))

import comfy.model_management as mm  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402


load_pack(PACK)
lazy_pipeline = importlib.import_module("pack.nodes.lazy_pipeline")
native_lora = importlib.import_module("pack.nodes.native.lora")
stages = importlib.import_module("pack.nodes.stages")
pipeline = importlib.import_module("pack.deepgen_npu.pipeline")
simulated: Any = sys.modules.get("dev.npu_simulator.simulated")
kitchen: Any = sys.modules.get("comfy_kitchen")

DTYPE = "bfloat16" if ON_NPU else "float32"
LAYERS = "transformer_blocks.0.attn.to_q", "transformer_blocks.0.norm1.linear"
"""One that is quantised, and one that is not."""


def prepare_card() -> None:
    """What the simulated card lacks, and how comfy-kitchen's operators are seen on it."""
    of_cpu = torch.Generator

    class Generator(of_cpu):
        """The card has none; that of the CPU draws as well."""

        def __new__(cls, device: Any = "cpu"):
            return of_cpu("cpu")

    torch.Generator = Generator
    codes = {0: torch.float32, 1: torch.float16, 2: torch.bfloat16}

    def int8_linear(x, weight, scale, bias, code, *options, **more):
        return kitchen.int8_linear(x, weight, scale, bias, codes[code], *options, **more)

    # As one custom operator it would be computed on the CPU: the card shall see what it consists of.
    simulated.state.composites["comfy_kitchen::int8_linear"] = int8_linear


def opened(name: str, dtype: str = DTYPE) -> Any:
    return lazy_pipeline.LazyPipeline(Path(MODELS) / name, dtype, False)


def encoded(model: Any) -> Any:
    return stages.encode(model, "a red circle", "blurry", [[]], 64, 64)


def sampled(model: Any, conditionings: Any, steps: int = 4) -> torch.Tensor:
    return stages.sample(model, conditionings, seed=1, steps=steps, cfg=4.0)["samples"].float().cpu()


def of_library(name: str) -> torch.Tensor:
    """The library's latents, on the CPU in float32."""
    pipe = pipeline.DeepGenPipeline.from_pretrained(f"{MODELS}/{name}", torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    options = {"negative_prompt": "blurry", "height": 64, "width": 64, "num_inference_steps": 4, "seed": 1}
    latents = pipe("a red circle", output_type="latent", **options).images
    return pipe.unscale_latents(latents).float()


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The length of the difference over that of the second."""
    return float((one - other).norm() / other.norm())


def lora(patcher: Any, prefix: str) -> dict[str, torch.Tensor]:
    """A LoRA with the keys of a trainer."""
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for name in LAYERS:
        layer = patcher.get_model_object(f"diffusion_model.{name}")
        name = name.replace(".", "_") if prefix.endswith("_") else name
        down = torch.randn(2, layer.in_features, generator=generator) * layer.in_features**-0.5
        up = torch.randn(layer.out_features, 2, generator=generator) * 0.5
        weights |= {f"{prefix}{name}.lora_down.weight": down, f"{prefix}{name}.lora_up.weight": up}
    return weights


def with_lora(model: Any) -> Any:
    """By ComfyUI's own loader."""
    patcher, _ = comfy.sd.load_lora_for_models(model.patcher, None, lora(model.patcher, "lora_unet_"), 1.0, 0.0)
    return model.with_patcher(patcher)


def with_our_node(model: Any) -> Any:
    """By DeepGen LoRA, from a file whose names ComfyUI does not know."""
    path = Path(MODELS) / "lora.safetensors"
    save_file(lora(model.patcher, "lora_transformer_"), path)
    return model.with_patcher(native_lora.with_lora(model.patcher, str(path), 1.0))


def of_one_step(model: Any, conditionings: Any) -> dict[str, int]:
    """Quantised operators that a second step adds."""
    runs = []
    for steps in (1, 2):
        simulated.reset()
        sampled(model, conditionings, steps)
        runs.append(dict(simulated.state.counts.operators))
    names = [name for name in runs[1] if "quant" in name or "kitchen" in name]
    return {name: runs[1][name] - runs[0].get(name, 0) for name in names}


def streamed(model: Any, conditionings: Any) -> torch.Tensor:
    """With as little room as ComfyUI gives: all weights but a few come to the card when they are used."""
    mm.unload_all_models()
    kind = type(model.patcher)
    load = kind.partially_load

    def with_little_room(patcher: Any, device: Any, extra_memory: int = 0, **more: Any) -> Any:
        return load(patcher, device, 1, **more)

    kind.partially_load = with_little_room
    try:
        return sampled(model, conditionings)
    finally:
        kind.partially_load = load


@torch.inference_mode()  # as ComfyUI runs nodes
def measure(name: str) -> dict[str, Any]:
    records = Records(logging.WARNING)
    logging.getLogger().addHandler(records)
    model = opened(name)
    conditionings = encoded(model)
    logging.getLogger().removeHandler(records)
    plain = opened("tiny")
    of_plain = encoded(plain)
    latents = sampled(model, conditionings)
    by_core = sampled(with_lora(model), conditionings)
    state = model.patcher.model.state_dict()
    found = {
        "log": records.messages,
        "layers": sum(getattr(one, "layout_type", None) is not None for one in model.patcher.model.modules()),
        "bytes": model.patcher.model_size() / plain.patcher.model_size(),
        "keys": sorted(key.rpartition(".")[2] for key in state if LAYERS[0] in key),
        "of plain weights": apart(latents, sampled(plain, of_plain)),
        "the LoRA": apart(by_core, latents),
        "with a LoRA": apart(by_core, sampled(with_lora(plain), of_plain)),
        "by our node": apart(sampled(with_our_node(model), conditionings), by_core),
        "after it": apart(sampled(model, conditionings), latents),
    }
    if not ON_NPU:
        return found | {"of the library": apart(latents, of_library(name))}
    return found | {
        "a step": of_one_step(model, conditionings),
        "streamed": apart(streamed(model, conditionings), latents),
    }


@torch.inference_mode()
def in_float32() -> dict[str, Any]:
    """Which Ascend's operators do not take."""
    records = Records(logging.WARNING)
    logging.getLogger().addHandler(records)
    model = opened("int8_convrot", "float32")
    found = of_one_step(model, encoded(model))
    logging.getLogger().removeHandler(records)
    return {"a step": found, "log": records.messages}


def main() -> None:
    found: dict[str, Any] = {}
    if ON_NPU:
        prepare_card()
    for name in ("int8_convrot", "int8", "fp8"):
        try:
            found[name] = measure(name)
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    if ON_NPU:
        found["in float32"] = in_float32()
        kitchen.registry.disable("ascend")
        lazy_pipeline._KNOWN.clear()
        found["without ascend"] = measure("int8_convrot")
    print(json.dumps(found))


main()
