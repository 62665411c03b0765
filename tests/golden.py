"""The golden outputs of the original implementation, and how far this one is from them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from deepgen_npu import DeepGenPipeline


REFERENCE = Path(__file__).parent / "data" / "reference"
TINY = REFERENCE / "tiny"
CASES = sorted(path.stem for path in (REFERENCE / "golden").glob("*.json"))


def load_case(name: str) -> tuple[dict, list[Image.Image], dict[str, torch.Tensor]]:
    """The call of a case, its reference images and its tensors."""
    folder = REFERENCE / "golden"
    call = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    references = [Image.open(folder / file) for file in call.pop("references")]
    return call, references, load_file(folder / f"{name}.safetensors")


def denoised(pipe: DeepGenPipeline, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Final latents of a case from its noise, on the CPU: this pipeline's and the original's."""
    call, references, golden = load_case(name)
    steps, scale = call.pop("num_inference_steps"), call.pop("guidance_scale")
    conditioning = pipe.encode(image=references or None, **call)
    latents = pipe.denoise(conditioning, golden["initial_latents"], steps, scale)
    return latents.float().cpu(), golden["final_latents"].float()


def differences(pipe: DeepGenPipeline, name: str) -> dict[str, float]:
    """Largest absolute difference of each golden tensor of a case, stage by stage."""
    call, references, golden = load_case(name)
    steps, scale = call.pop("num_inference_steps"), call.pop("guidance_scale")
    seen = {}
    conditioning = pipe.encode(image=references or None, **call)
    for key in ("prompt_embeds", "pooled_prompt_embeds"):
        seen[key] = getattr(conditioning, key)
        seen[f"negative_{key}"] = getattr(conditioning, f"negative_{key}")
    for index, latents in enumerate(conditioning.reference_latents):
        seen[f"reference_latents_{index}"] = latents[0]
    seen["initial_latents"] = pipe.prepare_latents(len(call["prompt"]), call["height"], call["width"], seed=42)
    outputs = []
    hook = pipe.transformer.proj_out.register_forward_hook(lambda *arguments: outputs.append(arguments[-1]))
    try:
        seen["final_latents"] = pipe.denoise(conditioning, golden["initial_latents"], steps, scale)
    finally:
        hook.remove()
    patch = pipe.transformer.config["patch_size"]
    rows, columns = call["height"] // 8 // patch, call["width"] // 8 // patch
    first = outputs[0].unflatten(1, (rows, columns)).unflatten(-1, (patch, patch, -1))
    seen["first_model_output"] = first.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
    seen["image"] = pipe.decode_latents(seen["final_latents"])
    return {key: (seen[key].float().cpu() - golden[key].float()).abs().max().item() for key in golden if key in seen}
