"""Around every sampling of the model, by whichever node: what is computed once, and guards.

ComfyUI calls `around_sampling` (its wrapper OUTER_SAMPLE) with the guider. What is kept for the sampling lies in its
``transformer_options``, which ComfyUI copies for each sampling: so it ends with the sampling, and nothing of it is
left when weights, a LoRA or a conditioning change.
"""

from __future__ import annotations

import gc
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import comfy.cli_args
import comfy.k_diffusion.sampling
import comfy.model_management as mm
from comfy.patcher_extension import WrappersMP, get_all_wrappers
from torch import Tensor

from ...deepgen_npu.devices import free_memory, is_out_of_memory, prepare_thread
from ...deepgen_npu.model.modulation import MODULATION_BYTES
from ...deepgen_npu.model.numerics import require_finite
from .plain_conditioning import CALC_COND_BATCH, SAMPLING, evaluate_plain


if TYPE_CHECKING:
    import torch


Kept = TypeVar("Kept")

logger = logging.getLogger(__name__)

CAPTURE_GRAPH = "deepgen_capture_graph"
"""Key of the loader's choice there."""

_BY_RGB = (comfy.cli_args.LatentPreviewMethod.Auto, comfy.cli_args.LatentPreviewMethod.Latent2RGB)

ROOM_FOR_GRAPHS = 3 << 30
"""Graphs are kept only where the card has so many bytes that nobody uses, enough to decode in float32 at 512 x 512:
ComfyUI counts the memory of a graph as free."""

MOST_KEPT = 16
"""Evaluations kept at once, which differ in conditioning or size: regions, ranges of steps."""

SAMPLERS_OF_ONE_EVALUATION = frozenset(
    f"sample_{name}"
    for name in ("euler", "euler_ancestral", "lms", "ipndm", "ipndm_v", "deis", "dpmpp_2m", "lcm", "res_multistep")
)
"""Samplers that evaluate the model once a step, at the sigma that their schedule has for it. Others do it more often,
between two sigmas, or at a first sigma of their own. Read in ComfyUI 0.3.64, 0.8.0 and 0.33.0
(comfy/k_diffusion/sampling.py); tests/nodes holds it."""


class Sampling:
    """What is known of one sampling, and what it keeps.

    Args:
        timesteps: [n] in 0..1000 on the device: that of each step, where there is one evaluation a step; else None.
        may_capture: Whether a step can be captured in a graph of the device, once the weights are loaded.

    Attributes:
        step: The step that is evaluated.
        conditionings: What the rows of an evaluation are made of, joined once (see `plain_conditioning`).
        without_effect: Patches of other nodes that came with an evaluation: some add theirs no earlier.
    """

    def __init__(self, timesteps: Tensor | None, may_capture: Callable[[], bool]):
        self.timesteps, self.may_capture = timesteps, may_capture
        self.step = 0
        self.conditionings: dict[Hashable, dict[str, Any] | None] = {}
        self.without_effect: set[str] = set()
        self._kept: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._bytes_left = MODULATION_BYTES

    @staticmethod
    def key(options: dict[str, Any], x: Tensor) -> tuple[Any, ...] | None:
        """What an evaluation depends on, besides latents and timestep: conditionings, size and card. None if unknown.

        ComfyUI's MultiGPU CFG Split evaluates the conditionings of a step on several cards, each in a thread.
        """
        if "uuids" not in options:
            return None
        return tuple(options["uuids"]), tuple(options.get("cond_or_uncond", ())), tuple(x.shape), x.device

    def kept(self, key: tuple[Any, ...], make: Callable[[], Kept]) -> Kept:
        """The evaluation of a key, made if it is not there."""
        if key not in self._kept:
            if len(self._kept) == MOST_KEPT:
                self._kept.popitem(last=False)
            self._kept[key] = make()
        self._kept.move_to_end(key)
        return self._kept[key]

    def reserve(self, nbytes: int) -> int:
        """How many of these bytes a table of modulation may have: all tables together have `MODULATION_BYTES`."""
        granted = min(nbytes, self._bytes_left)
        self._bytes_left -= granted
        return granted

    def keep_graphs(self) -> None:
        """It has succeeded: its graphs are there for the next sampling, unless memory is short."""
        for (*_, device), evaluation in self._kept.items():
            room = free_memory(device)
            evaluation.keep_graph(room is not None and room[0] >= ROOM_FOR_GRAPHS)

    def end(self) -> None:
        """Give back what was kept, at once: it refers back here, and Python seldom looks for such circles."""
        self._kept.clear()
        self.conditionings.clear()


def around_sampling(executor: Any, noise: Tensor, *arguments: Any, **more: Any) -> Tensor:
    """For the wrapper OUTER_SAMPLE: run the sampling, and once more with all else moved out if memory runs out.

    Args:
        executor: Runs the sampling; its ``class_obj`` is the guider.
        noise: [b, C, h, w].
        arguments: latent_image, sampler, sigmas and others.
        more: Further arguments by name.

    Raises:
        ValueError: For latents that the model cannot denoise, and for timesteps of another model.
        FloatingPointError: When the latents become NaN or infinite.
        OutOfDeviceMemory: When the second attempt also runs out of memory.
    """
    guider = executor.class_obj
    model = guider.model_patcher.model
    model.check_latents(noise)
    model.check_timesteps(guider.model_patcher.get_model_object("model_sampling"))
    options = guider.model_options["transformer_options"]
    if not options.get(CAPTURE_GRAPH):
        model.diffusion_model.graphs.clear()  # of samplings before it was turned off
    known = patches_without_effect(options, model.diffusion_model)
    _warn_of(known)
    conds = {name: [one.copy() for one in conds] for name, conds in guider.conds.items()}
    reason: BaseException | None = None
    for attempt in range(2):
        options = guider.model_options["transformer_options"]
        options.pop(SAMPLING, None)
        if (sampling := _sampling_of(guider, *arguments[1:3])) is not None:
            options[SAMPLING] = sampling
            guider.model_options.setdefault(CALC_COND_BATCH, evaluate_plain)
        prepare_thread(guider.model_patcher.load_device)
        try:
            samples = executor(noise, *_with_callback(arguments, guider.model_patcher.load_device, sampling), **more)
            if sampling is not None:
                _warn_of(sampling.without_effect - known)
            require_finite(samples, "The latents", {"transformer": model.diffusion_model}, model.get_dtype())
            if sampling is not None:
                sampling.keep_graphs()
            return samples
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = error.with_traceback(None)  # its frames hold the tensors of the failed attempt
        finally:
            options.pop(SAMPLING, None)
            if sampling is not None:
                sampling.end()
            model.needs_all_memory = False
        del sampling
        gc.collect()
        mm.unload_all_models()
        mm.soft_empty_cache()
        guider.conds = {name: [one.copy() for one in kept] for name, kept in conds.items()}
        model.needs_all_memory = attempt == 0  # then as few weights as possible stay on the device
    assert reason is not None
    raise model.out_of_memory(noise, guider.conds, guider.model_patcher.load_device, reason)


def _with_callback(arguments: tuple[Any, ...], device: torch.device, sampling: Sampling | None) -> tuple[Any, ...]:
    """The same arguments, with a callback (the fifth) around the sampler's, which is called after each step.

    It counts the steps. And for a preview by Latent2RGB it gets x0 from an NPU: ComfyUI would copy its image without
    waiting for it. TAESD runs on the device.
    """
    report = arguments[4]
    to_cpu = device.type == "npu" and comfy.cli_args.args.preview_method in _BY_RGB

    def callback(step: int, x0: Tensor, x: Tensor, steps: int) -> None:
        if sampling is not None:
            sampling.step = step + 1
        if report is not None:
            report(step, x0.cpu() if to_cpu else x0, x, steps)

    return (*arguments[:4], callback, *arguments[5:])


def _sampling_of(guider: Any, sampler: Any, sigmas: Tensor) -> Sampling | None:
    """What may be kept for this sampling; None where a conditioning or the weights may change while it runs."""
    options, patcher = guider.model_options, guider.model_patcher
    transformer_options = options["transformer_options"]
    # What stands between sampler and model may change what the model is given.
    between = (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)
    if "model_function_wrapper" in options or any(get_all_wrappers(kind, transformer_options) for kind in between):
        return None
    # Hooks change weights between two evaluations.
    if any("hooks" in one for conds in guider.conds.values() for one in conds or ()):
        return None
    timesteps = None
    function = getattr(sampler, "sampler_function", None)
    name = getattr(function, "__name__", "")
    by_comfyui = name in SAMPLERS_OF_ONE_EVALUATION and function is vars(comfy.k_diffusion.sampling).get(name)
    if by_comfyui and not getattr(sampler, "extra_options", {}).get("s_churn"):
        listed = patcher.get_model_object("model_sampling").timestep(sigmas[:-1].float().cpu()).float()
        timesteps = listed.to(patcher.load_device)
    return Sampling(timesteps, partial(_may_capture, patcher, transformer_options))


def _may_capture(patcher: Any, options: dict[str, Any]) -> bool:
    """Whether the loader's choice is a graph, and all weights lie where they will be read, on each card."""
    patchers = [patcher, *patcher.get_additional_models_with_key("multigpu")]
    return bool(options.get(CAPTURE_GRAPH)) and not any(map(streams, patchers))


def streams(patcher: Any) -> bool:
    """Whether weights stay on the CPU, or are changed whenever they are used."""
    return bool(
        patcher.model.model_lowvram or patcher.weight_wrapper_patches or getattr(patcher, "is_dynamic", bool)()
    )


def patches_without_effect(options: dict[str, Any], denoiser: Any) -> set[str]:
    """Names of what other nodes put into the MODEL, and what this model has no place for."""
    replaced = options.get("patches_replace", {})
    names = {*options.get("patches", {}), *replaced} - {"dit"}
    if options.get("rope_options"):  # positions are added to the tokens
        names.add("rope_options")
    blocks = len(denoiser.transformer_blocks)
    for kind, *place in replaced.get("dit", {}):
        if kind != "double_block" or place[0] >= blocks:
            names.add(" ".join(map(str, (kind, *place))))
    return names


def _warn_of(names: set[str]) -> None:
    if names:
        logger.warning(
            "These patches of the MODEL have no effect on DeepGen, which has no such place: %s. Remove the node that "
            "adds them (for UNets, as Perturbed Attention Guidance), or choose other layers.",
            ", ".join(sorted(names)),
        )
