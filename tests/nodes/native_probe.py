"""Run in ComfyUI's interpreter by `test_native`: the native model on a simulated NPU. Prints one JSON line."""

from __future__ import annotations

import gc
import json
import logging
import re
import sys
import time
from contextlib import contextmanager
from typing import Any


# isort: off
import native_guidance  # while this folder is on the path
from native_bench import MODELS, NPU, PARTS, core_sample, counted, distance, encoded, error_of, opened, peak_while
from native_bench import Records, importlib, mm, replaced, sampled, simulated, state, torch, unload
# isort: on

import comfy.k_diffusion.sampling
import comfy.model_base
import comfy.model_sampling
import comfy.sample
import comfy.samplers
from comfy.patcher_extension import PatcherInjection


sampling = importlib.import_module("pack.nodes.native.sampling")
evaluation = importlib.import_module("pack.nodes.native.evaluation")
projections = importlib.import_module("pack.deepgen_npu.model.projections")
native_model = importlib.import_module("pack.nodes.native.model")
plain = importlib.import_module("pack.nodes.native.plain_conditioning")
pipeline = importlib.import_module("pack.deepgen_npu.pipeline")

CARD = state.memory[0]
found: dict[str, Any] = {}


def costs() -> None:
    """What a step costs, against the library's own loop; captured; and ComfyUI's own sums."""
    model = opened("deep", "bfloat16")
    captured = opened("deep", "bfloat16", capture_graph=True)
    library = pipeline.DeepGenPipeline.from_pretrained(f"{MODELS}/deep", torch_dtype=torch.bfloat16, device="npu:0")
    library.set_progress_bar_config(disable=True)
    noise = library.prepare_latents(1, 64, 64, seed=1)
    given = encoded(model, references=1)
    moved = given[0].to(NPU, torch.bfloat16)
    expected = sampled(model, given)
    step: dict[str, Any] = {
        "native": counted(lambda steps: sampled(model, given, steps)),
        "library": counted(lambda steps: library.denoise(moved, noise, steps, 4.0)),
        "captured": counted(lambda steps: sampled(captured, given, steps)),
    }
    with replaced(sampling, "evaluate_plain", _by_comfyui):
        step["apart from ComfyUI's sums"] = distance(sampled(model, given), expected)
    simulated.reset()
    step["apart when captured"] = distance(sampled(captured, given), expected)
    step["replays"] = state.counts.operators["replay of a graph"]
    found["step"] = step


def _by_comfyui(given: dict[str, Any]) -> Any:
    return comfy.samplers.calc_cond_batch(
        *(given[name] for name in ("model", "conds", "input", "sigma", "model_options"))
    )


def falls_back() -> None:
    """Where a step cannot be captured, the same latents come eagerly, without a warning."""
    eager, captured = opened("tiny"), opened("tiny", capture_graph=True)
    given = encoded(eager)
    ways = {}
    for name, change in (("a replaced block", _skip), ("a LoRA", _patched), ("a wrapper", _wrapped)):
        both = [change(model.patcher.clone()) for model in (eager, captured)]
        simulated.reset()
        latents = [core_sample(patcher, given) for patcher in both]
        ways[name] = [distance(*latents), state.counts.operators["replay of a graph"]]
        ways[name].append(distance(core_sample(eager.patcher, given), latents[0]))
    expected = core_sample(eager.patcher, given)
    unload()
    with replaced(mm, "vram_state", mm.VRAMState.NO_VRAM):
        simulated.reset()
        ways["streaming"] = [distance(core_sample(captured.patcher, given), expected)]
        ways["streaming"].append(state.counts.operators["replay of a graph"])
        unload()
    found["falls back"] = ways


def _skip(patcher: Any) -> Any:
    patcher.set_model_patch_replace(lambda given, extra: given, "dit", "double_block", 1)
    return patcher


def _patched(patcher: Any, strength: float = 1.0) -> Any:
    generator = torch.Generator().manual_seed(5)
    keys = [key for key in patcher.model.state_dict() if key.endswith(("attn.to_q.weight", "norm1.linear.weight"))]
    weights = patcher.model.state_dict()
    patches = {key: (0.3 * torch.randn(weights[key].shape, generator=generator),) for key in keys}
    assert len(patcher.add_patches(patches, strength)) == len(keys) > 4
    return patcher


def _beside(patcher: Any) -> Any:
    """As ComfyUI's LoRAs in bypass mode: the layer computes more, its weights stay."""
    layer = patcher.model.diffusion_model.transformer_blocks[0].attn.to_q

    def inject(patcher: Any) -> None:
        plain = layer.forward
        layer.forward = lambda x: plain(x) * 1.5

    def eject(patcher: Any) -> None:
        del layer.forward

    patcher.set_injections("a test", [PatcherInjection(inject, eject)])
    return patcher


def _wrapped(patcher: Any) -> Any:
    def wrapper(executor: Any, *arguments: Any, **more: Any) -> Any:
        return executor(*arguments, **more)

    patcher.add_wrapper(sampling.WrappersMP.DIFFUSION_MODEL, wrapper)
    return patcher


def nothing_stale() -> None:
    """What was kept of one sampling is never used in another: against samplings in which nothing is kept."""
    model = opened("tiny")
    first, second = encoded(model, 1), encoded(model, 2)
    runs = [(model.patcher, first), (_patched(model.patcher.clone()), first), (model.patcher, second)]
    runs += [(_patched(model.patcher.clone(), 0.5), second), (model.patcher, first)]
    kept = [core_sample(patcher, given) for patcher, given in runs]
    with replaced(sampling, "_sampling_of", lambda *arguments: None):
        fresh = [core_sample(patcher, given) for patcher, given in runs]
    found["stale"] = [distance(*pair) for pair in zip(kept, fresh, strict=True)]
    found["base again"] = distance(kept[0], kept[-1])
    found["a change"] = min(distance(kept[0], one) for one in kept[1:-1])


def kept_graphs() -> None:
    """A graph is replayed by the next sampling of the same shapes, with its own conditioning, until weights move."""
    model = opened("tiny", capture_graph=True)
    graphs = model.patcher.model.diffusion_model.graphs
    first, second = encoded(model, 1), encoded(model, 1, prompt="a red square")
    lora = _patched(model.patcher.clone())
    # Another conditioning, another clone with the same weights, a LoRA beside the weights, one in them, and back.
    runs = [(model.patcher, first), (model.patcher, second), (model.patcher.clone(), first)]
    runs += [(_beside(model.patcher.clone()), first), (lora, first), (model.patcher, second)]
    drawn, launched = [], []
    for patcher, given in runs:
        simulated.reset()
        drawn.append(core_sample(patcher, given))
        launched.append(state.counts.operators["npu::npu_fusion_attention_v3"])
    with replaced(sampling, "_sampling_of", lambda *arguments: None):
        fresh = [core_sample(patcher, given) for patcher, given in runs]
    found["kept graphs"] = {
        "apart": [distance(*pair) for pair in zip(drawn, fresh, strict=True)],
        "launched": launched,
        "kept": len(graphs),
    }
    total, CARD.total = CARD.total, CARD.now + (1 << 30)
    core_sample(model.patcher, first)
    found["kept graphs"]["on a full card"] = len(graphs)
    CARD.total = total
    core_sample(model.patcher, first)
    found["kept graphs"]["again"] = len(graphs)
    unload()
    found["kept graphs"]["after unloading"] = len(graphs)


def memory_of_weights() -> None:
    """Bytes on the card besides the weights: loaded, with a LoRA, without it; and where idle weights stay there."""
    model = opened("tiny")
    patcher, given = model.patcher, encoded(model)
    unload()
    gc.collect()
    before, idle = CARD.now, patcher.offload_device
    runs = [patcher, _patched(patcher.clone()), patcher]
    found["besides weights"] = rows = []
    for place in (idle, NPU):
        for one in runs:
            one.offload_device = place
            with torch.inference_mode():
                mm.load_models_gpu([one])
            gc.collect()
            kept = sum(kept.weight.nbytes for kept in one.backup.values() if kept.weight.device == NPU)
            groups = list(projections._groups(one.model.diffusion_model))
            joined = sum(projections._together([layer.weight for layer in group]) is not None for group in groups)
            rows.append([CARD.now - before - one.model_size(), kept, len(groups) - joined])
    # What ComfyUI computes with in place of a weight, where its layer lies together with others.
    trained = patcher.clone()
    trained.add_weight_wrapper("diffusion_model.transformer_blocks.0.attn.to_k.weight", lambda weight: weight * 2)
    found["a weight that is computed"] = distance(*(core_sample(one, given, steps=1) for one in (patcher, trained)))
    for one in (*runs, trained):
        one.offload_device = idle
    unload()


def guidance_every() -> None:
    """The negative prompt in every second evaluation."""
    found["guidance every"] = native_guidance.measured(_patched, _wrapped, _by_comfyui)


def timesteps_of_samplers() -> None:
    """Each sampler of the list asks for the timestep of its step, once a step."""
    model = opened("tiny")
    given = encoded(model)
    asked: list[tuple[int, float, float]] = []
    original = evaluation.Evaluation._modulation

    def watched(self: Any, timesteps: torch.Tensor) -> torch.Tensor:
        kept = self._sampling
        asked.append((kept.step, float(timesteps[0].cpu()), float(kept.timesteps[kept.step].cpu())))
        return original(self, timesteps)

    found["samplers"] = {}

    def drawn_by_the_host(x: torch.Tensor, seed: int | None = None) -> Any:
        """The simulated device has no generator of its own."""
        return lambda sigma, sigma_next: torch.zeros_like(x)

    comfy.k_diffusion.sampling.default_noise_sampler = drawn_by_the_host
    with replaced(evaluation.Evaluation, "_modulation", watched):
        for name in sorted(sampling.SAMPLERS_OF_ONE_EVALUATION):
            name = name.removeprefix("sample_")
            if name not in comfy.samplers.KSampler.SAMPLERS:
                found["samplers"][name] = "unknown"
                continue
            asked.clear()
            core_sample(model.patcher, given, name, 6)
            apart = max(abs(one - other) for _, one, other in asked)
            found["samplers"][name] = [[step for step, _, _ in asked], apart]


@contextmanager
def card_of(nbytes: int):
    """A card on which ComfyUI finds room for so many bytes of a model's weights."""
    unload()
    with replaced(CARD, "total", CARD.now + int(mm.minimum_inference_memory()) + nbytes):
        yield
    unload()


def streaming() -> None:
    """Latents and embeddings at budgets of the weights, by ComfyUI's own report of memory, and in its modes."""
    model = opened("streamed")
    given = encoded(model, 1)
    pipe = model.load()
    text = pipe.placement._patchers["vlm"]
    expected = sampled(model, given, 2)
    table = model.patcher.model.diffusion_model.pos_embed.pos_embed
    rows = []

    def measured(name: str, patcher: Any) -> None:
        if patcher is text:
            pipe.encodings.clear()
            made: list[Any] = []
            peak = peak_while(lambda: made.extend(encoded(model, 1)))
            apart = distance(made[0].prompt_embeds, given[0].prompt_embeds)
        else:
            latents: list[torch.Tensor] = []
            peak = peak_while(lambda: latents.append(sampled(model, given, 2)))
            apart = distance(latents[0], expected)
        rows.append([name, patcher is text, patcher.loaded_size() / patcher.model_size(), peak, apart])

    for patcher in (text, model.patcher):
        size = patcher.model_size()
        for share in (1.1, 0.25, 0.12, 0.0):
            with card_of(int(size * share)):
                measured(f"{share:.0%}", patcher)
        for mode in ("LOW_VRAM", "NO_VRAM"):
            unload()
            with replaced(mm, "vram_state", getattr(mm.VRAMState, mode)):
                measured(mode, patcher)
                unload()
    found["streaming"] = rows
    found["sizes"] = [text.model_size(), model.patcher.model_size()]
    found["table"] = [str(table.device), "pos_embed" in dict(model.patcher.model.named_buffers())]
    unload()
    gc.collect()
    found["after unload"] = [CARD.now, sorted({str(one.device) for one in text.model.parameters()})]


def guards() -> None:
    """Memory that runs out, latents that are not finite, and what is refused."""
    model = opened("tiny", "bfloat16")
    given = encoded(model)
    patcher = model.patcher
    unload()
    with replaced(CARD, "total", CARD.now + (16 << 20)):
        found["out of memory"] = error_of(lambda: core_sample(patcher, given, steps=1, shape=(2, 16, 120, 80)))
        width, height = re.findall(r"about (\d+) x (\d+) would fit", found["out of memory"])[0]
        fitting = (2, 16, int(height) // 8, int(width) // 8)
        found["a size that fits"] = [fitting, error_of(lambda: core_sample(patcher, given, steps=1, shape=fitting))]
    unload()
    weight = patcher.model.diffusion_model.transformer_blocks[1].attn.to_k.weight
    before = weight.detach().clone()
    with torch.inference_mode():
        weight[0, 0] = float("nan")
    found["not finite"] = error_of(lambda: core_sample(patcher, given))
    with torch.inference_mode():
        patcher.model.diffusion_model.transformer_blocks[1].attn.to_k.weight.copy_(before)
    found["finite again"] = error_of(lambda: core_sample(patcher, given))
    found["refused"] = [
        error_of(lambda: core_sample(patcher, given, shape=(1, 4, 8, 8))),
        error_of(lambda: core_sample(patcher, given, shape=(1, 16, 8, 200))),
        error_of(lambda: core_sample(patcher, given, positive=[[torch.zeros(1, 5, 7), {}]])),
        error_of(lambda: core_sample(patcher, given, positive=[[torch.zeros(1, 5, 64), {}]])),
        error_of(lambda: patcher.model.diffusion_model(None, None, None, None, control={})),
        error_of(lambda: core_sample(_of_another_model(patcher.clone()), given)),
    ]
    watcher = Records()
    logging.getLogger(sampling.__name__).addHandler(watcher)
    unet = patcher.clone()
    unet.set_model_attn1_patch(lambda *arguments: arguments)
    for kind, index in (("double_block", 99), ("single_block", 1)):
        unet.set_model_patch_replace(lambda given, extra: given, "dit", kind, index)
    core_sample(unet, given)
    found["without effect"] = watcher.messages


def _of_another_model(patcher: Any) -> Any:
    """What ModelSamplingAuraFlow does."""

    class Sampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    model_sampling = Sampling(patcher.model.model_config)
    model_sampling.set_parameters(shift=3.0, multiplier=1.0)
    patcher.add_object_patch("model_sampling", model_sampling)
    return patcher


def inherited() -> None:
    """What DeepGenModel has from the classes that it has for the names of LoRA keys alone."""
    names: set[str] = set()
    for kind in (comfy.model_base.QwenImage, comfy.model_base.HunyuanDiT):
        names |= {name for name in vars(kind) if not name.startswith("__") or name == "__init__"}
    found["inherited"] = sorted(names - set(vars(native_model.DeepGenModel)))


for name in PARTS:
    began = time.process_time()
    globals()[name]()
    print(f"{name}: {time.process_time() - began:.1f} s", file=sys.stderr)
print(json.dumps(found))
