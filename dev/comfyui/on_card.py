"""Run in ComfyUI's interpreter by `dev.small_cards`: all stages of a random model on a simulated card of some size.

    python on_card.py PLAN

PLAN is JSON: ``comfyui`` and ``pack`` (folders), ``card`` (GiB), ``options`` (of ComfyUI), ``model`` (a key of
`model_sizes.SIZES`), ``size`` (of the images, in pixels), ``steps``, ``threads``, ``arithmetic`` (whether to compute),
``full_table`` (whether to sample with the largest table of modulation, too), and ``results`` (a file for what was
computed). Prints a JSON line each time that ComfyUI loads a part.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import json
import math
import sys
import time
import traceback
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def load(name: str, path: Path, *folders: str) -> Any:
    """Import a file under a name of our choice: the names of our folders are also ComfyUI's."""
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=list(folders) or None)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PLAN = json.loads(sys.argv[1])
launch = load("launch", Path(__file__).with_name("launch.py"))
launch.enter(PLAN["comfyui"], PLAN["options"], simulated_npu=round(PLAN["card"] * 1024))

import comfy.model_management as mm  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from PIL import Image  # noqa: E402
from torch.utils._pytree import tree_map  # noqa: E402


load("pack", Path(PLAN["pack"]) / "__init__.py", PLAN["pack"])


def pack(name: str) -> Any:
    """A module of the pack, which may import ComfyUI's."""
    return importlib.import_module(f"pack.{name}")


stages = pack("nodes.stages")
lazy_pipeline = pack("nodes.lazy_pipeline")
weights = pack("deepgen_npu.checkpoint.weights")
modulation = pack("deepgen_npu.model.modulation")
simulated: Any = sys.modules["dev.npu_simulator.simulated"]
simulated_torch_npu: Any = sys.modules["dev.npu_simulator.simulated_torch_npu"]
state = simulated.state
MEMORY = state.memory[0]
KEPT: list[Any] = []


# The model


def find_weights_of(size: str) -> Path:
    """Let the pack find a checkpoint without files, whose tensors are made when they are read; returns its folder."""
    model = pack("deepgen_npu.tools.random_model").RandomModel.of_size(size)
    random_tensor = pack("deepgen_npu.tools.random_values").random_tensor
    stored_dtype = pack("deepgen_npu.dtypes").stored_dtype
    tensors = [item for part in model.checkpoint.tensors.values() for item in part.items()]
    names = {id(stored): name for name, stored in tensors}

    def draw(
        stored: Any,
        dtype: Any = None,
        device: Any = "cpu",
        on_bytes_read: Any = None,
        means: Any = None,
        target: Any = None,
    ) -> Any:
        assert target is None, "idle models are in main memory, where nothing is put together"
        if not PLAN["arithmetic"]:
            return untouched_zeros(stored.shape, dtype or stored_dtype(stored.dtype))
        name = names[id(stored)]
        # By the name, so that the order in which tensors are read does not matter.
        generator = torch.Generator("cpu").manual_seed(zlib.crc32(name.encode()))
        config, kind = model.checkpoint.configs["transformer"], stored_dtype(stored.dtype)
        return random_tensor(name, stored.shape, config, generator, kind, dtype, device, on_bytes_read)

    weights.read_tensor = draw
    lazy_pipeline.Checkpoint.open = lambda folder: model.checkpoint
    KEPT.append(model)  # the folder exists as long as it does
    if PLAN["arithmetic"]:
        # The card's memory is main memory as well, and ComfyUI may hold a part until all of it was moved.
        needed, free = (
            1.1 * model.nbytes(torch.bfloat16) + PLAN["card"] * 2**30,
            mm.get_free_memory(torch.device("cpu")),
        )
        if free < needed:
            sys.exit(f"free main memory must be at least {needed / 2**30:.1f} GiB, got {free / 2**30:.1f} GiB.")
    return model.checkpoint.folder


def untouched_zeros(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Zeros on the CPU that take main memory only where they are written to; PyTorch's own are written to."""
    nbytes = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(nbytes, np.uint8)).view(dtype).view(shape)


# The card


def compute_nothing() -> None:
    """Let tensors on the card have shapes alone: all arithmetic is skipped, and zeros come back."""
    compute, copy, wrap_shape = simulated.compute, simulated._copy, simulated.wrap

    def wrap(value: Any, index: int) -> Any:
        is_of_host = type(value) is torch.Tensor and value.device.type != "meta"
        if is_of_host:
            value = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")
        return wrap_shape(value, index)

    def inner(value: Any) -> Any:
        if isinstance(value, simulated.Tensor):
            return value._t
        # Some operators take indices on the host. A scalar stays a value.
        return value.to("meta") if isinstance(value, torch.Tensor) and value.dim() else value

    def landed(value: Any) -> Any:
        is_shape = type(value) is torch.Tensor and value.device.type == "meta"
        return untouched_zeros(value.shape, value.dtype) if is_shape else value

    def copy_shape(target: Any, source: Any, non_blocking: bool = False) -> Any:
        return copy(target, source) if isinstance(target, simulated.Tensor) else target.zero_()

    simulated.wrap = simulated_torch_npu.wrap = wrap
    simulated.inner, simulated._copy = inner, copy_shape
    simulated.compute = lambda *operator: tree_map(landed, compute(*operator))
    # What the host reads. All is finite, for instance.
    state.references["aten::_local_scalar_dense"] = lambda tensor: 1


def attend_in_less_memory() -> None:
    """Give the simulator a kernel without the float32 scores of all heads, which take GiB of main memory.

    The reference kernel checks the arguments and gives the shapes, on tensors without memory.
    """
    reference = state.references["npu::npu_fusion_attention_v3"]
    signature = inspect.signature(reference)

    def kernel(*arguments: Any, **options: Any) -> Any:
        given = signature.bind(*arguments, **options).arguments
        shapes = reference(**tree_map(lambda one: one.to("meta") if isinstance(one, torch.Tensor) else one, given))
        attended = shapes[0].contiguous()
        if PLAN["arithmetic"]:
            q, k, v = (given[name] for name in ("query", "key", "value"))
            tokens_first = {"BNSD": False, "BSND": True}[given["input_layout"]]
            if tokens_first:
                q, k, v = (one.transpose(1, 2) for one in (q, k, v))  # [b, heads, L, d] each
            mask = given.get("atten_mask")
            allowed = None if mask is None else ~mask
            grouped = q.shape[1] != k.shape[1]
            attended = F.scaled_dot_product_attention(q, k, v, allowed, scale=given["scale"], enable_gqa=grouped)
            attended = (attended.transpose(1, 2) if tokens_first else attended).contiguous()
        return attended, *shapes[1:]

    state.references["npu::npu_fusion_attention_v3"] = kernel


# What is measured


class Recorder:
    """A row for each time that ComfyUI loads a model: until it loads the next, that one runs.

    Attributes:
        run: What runs.
        references: With how many.
        part: What is loaded next, where the pack says it.
        estimate: Bytes of activations that the DiT was estimated to need.
        ends_after_a_step: Whether samplings do.
    """

    def __init__(self) -> None:
        self.run, self.references, self.ends_after_a_step = "", 0, False
        self.part, self.estimate = "", 0.0
        self._row: dict[str, Any] | None = None
        self._load = mm.load_models_gpu
        mm.load_models_gpu = self._on_load
        placement, model = pack("nodes.placement").ComfyPlacement, pack("nodes.native.model").DeepGenModel
        activate, memory_required = placement.activate, model.memory_required

        def noting_part(of: Any, part: str, nbytes: int = 0) -> Any:
            self.part = part
            return activate(of, part, nbytes)

        def noting_estimate(of: Any, *arguments: Any, **options: Any) -> float:
            required = memory_required(of, *arguments, **options)
            self.estimate = max(self.estimate, required)
            return required

        def noting_bytes(*arguments: Any, **options: Any) -> Any:
            report, self._to_card = step_callback(*arguments, **options), []

            def callback(*step: Any) -> None:
                self._to_card.append(state.counts.host_to_device[1])
                if self.ends_after_a_step:
                    raise mm.InterruptProcessingException
                report(*step)

            return callback

        step_callback, self._to_card = stages.step_callback, []
        placement.activate, model.memory_required = noting_part, noting_estimate
        stages.step_callback = noting_bytes

    def _on_load(self, models: Any, memory_required: float = 0, **options: Any) -> None:
        part = self.part or "transformer"
        estimate = memory_required if self.part else self.estimate
        self.part, self.estimate = "", 0.0
        self.end()
        left = MEMORY.now - weights_on_card()
        MEMORY.peak = MEMORY.now
        began, to_card = time.monotonic(), state.counts.host_to_device[1]
        self._load(models, memory_required=memory_required, **options)
        (patcher,) = models
        own = on_card(patcher)
        self._row = {
            "run": self.run,
            "references": self.references,
            "part": part,
            "weights": patcher.model_size(),
            "resident": own,
            "others": weights_on_card() - own,
            "left": left,
            "estimate": estimate,
            "loading": MEMORY.peak,
            "loaded": state.counts.host_to_device[1] - to_card,
            "began": began,
            "to_card": to_card,
        }
        MEMORY.peak = MEMORY.now

    def end(self, error: BaseException | None = None) -> None:
        """Print the row of what ran, if something did."""
        row, self._row = self._row, None
        if row is None:
            return
        row["to_card"] = state.counts.host_to_device[1] - row["to_card"]
        row["step"] = self._to_card[-1] - self._to_card[-2] if len(self._to_card) > 1 else None
        self._to_card = []
        row["seconds"] = time.monotonic() - row.pop("began")
        row["activations"] = MEMORY.peak - row["resident"] - row["others"]
        row["peak"] = max(MEMORY.peak, row.pop("loading"))
        row["error"] = f"{type(error).__name__}: {error}"[:200] if error else ""
        print(json.dumps(row), flush=True)


def on_card(patcher: Any) -> int:
    """Bytes of a patcher's model that are on the card."""
    tensors = {id(one): one for one in (*patcher.model.parameters(), *patcher.model.buffers())}
    return sum(one.nbytes for one in tensors.values() if one.device.type == "npu")


def weights_on_card() -> int:
    """Of all models that ComfyUI has loaded."""
    return sum(on_card(loaded.model) for loaded in mm.current_loaded_models)


# What runs


def encode(model: Any, prompt: str, references: int) -> Any:
    """Conditioning with references that differ from those of any other prompt."""
    size = PLAN["size"]
    images = [
        Image.effect_mandelbrot((size, size), (-2, -1.5, 1 + index + len(prompt) / 100, 1.5), 60).convert("RGB")
        for index in range(references)
    ]
    return stages.encode(model, prompt, "blurry, low quality", [images], size, size)


def draw(model: Any, prompt: str, references: int) -> dict[str, Any]:
    """All three stages, as the simple nodes do them: what they computed."""
    size = PLAN["size"]
    conditionings = encode(model, prompt, references)
    latent = stages.sample(model, conditionings, seed=1, steps=PLAN["steps"], cfg=4.0)
    pixels = stages.decode(model, latent, size, size)
    (one,) = conditionings
    embeds = [one.prompt_embeds, one.pooled_prompt_embeds, one.negative_prompt_embeds]
    return {"embeds": embeds, "references": one.reference_latents, "latents": [latent["samples"]], "pixels": [pixels]}


def fill_table(model: Any, prompt: str, references: int) -> None:
    """Sampling with as many steps as modulation is computed ahead for, in all the memory that it may take."""
    denoiser = model.patcher.model.diffusion_model
    width = denoiser.config["num_attention_heads"] * denoiser.config["attention_head_dim"]
    a_step = 2 * modulation.count_vectors(denoiser.slots) * width * denoiser.dtype.itemsize
    conditionings = encode(model, prompt, references)
    with contextlib.suppress(mm.InterruptProcessingException):
        stages.sample(model, conditionings, seed=1, steps=modulation.MODULATION_BYTES // a_step, cfg=4.0)


def main() -> int:
    """Run everything; the exit status is 1 if something failed."""
    torch.set_num_threads(PLAN["threads"])
    attend_in_less_memory()
    if not PLAN["arithmetic"]:
        compute_nothing()
    folder = find_weights_of(PLAN["model"])
    recorder, results, failed = Recorder(), {}, False
    runs = [("text to image", draw, "a red fox in the snow", 0), ("edit", draw, "put a red hat on it", 1)]
    if PLAN["full_table"]:
        runs += [("full table", fill_table, f"make it look like a painting, {count}", count) for count in (0, 1, 2)]
    # Not ComfyUI's inference mode, in which the simulator does not see what composite operators allocate inside.
    with torch.no_grad():
        model = lazy_pipeline.LazyPipeline(folder, "bfloat16", False)
        for name, run, prompt, references in runs:
            recorder.run, recorder.references, recorder.ends_after_a_step = name, references, run is fill_table
            try:
                results[name] = run(model, prompt, references) or {}
            except Exception as error:
                failed = True
                recorder.end(error)
                traceback.print_exc()
            recorder.end()
    torch.save(results, PLAN["results"])
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
