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
from typing import TYPE_CHECKING, Any

import comfy.cli_args
import comfy.model_management as mm
from comfy.patcher_extension import WrappersMP, get_all_wrappers
from torch import Tensor

from ...deepgen_npu.devices import is_out_of_memory, prepare_thread
from ...deepgen_npu.model.modulation import MODULATION_BYTES
from ...deepgen_npu.model.numerics import require_finite


if TYPE_CHECKING:
    import torch

    from .evaluation import Evaluation
    from .model import DeepGenModel

logger = logging.getLogger(__name__)

SAMPLING = "deepgen_sampling"
"""Key of the `Sampling` in ``transformer_options``."""
CAPTURE_GRAPH = "deepgen_capture_graph"
"""Key of the loader's choice there."""

_BY_RGB = (comfy.cli_args.LatentPreviewMethod.Auto, comfy.cli_args.LatentPreviewMethod.Latent2RGB)

MOST_KEPT = 16
"""Evaluations kept at once, which differ in conditioning or size: regions, ranges of steps."""

SAMPLERS_ON_THEIR_SIGMAS = frozenset(
    f"sample_{name}" for name in ("euler", "euler_ancestral", "heun", "lms", "ipndm", "deis", "dpmpp_2m", "lcm")
)
"""Samplers that evaluate the model at the sigmas of their schedule only; others do between them, or at a first sigma
of their own. Read in ComfyUI 0.3.64, 0.8.0 and 0.33.0 (comfy/k_diffusion/sampling.py), and tested."""


class Sampling:
    """What is known of one sampling, and what it keeps.

    Args:
        timesteps: [n] in 0..1000 on the device, the only ones at which the model is evaluated; None if unknown.
        capture_graph: Whether a step may be captured in a graph of the device.
    """

    def __init__(self, timesteps: Tensor | None, capture_graph: bool):
        self.timesteps, self.capture_graph = timesteps, capture_graph
        self._kept: OrderedDict[Hashable, Evaluation] = OrderedDict()
        self._bytes_left = MODULATION_BYTES

    @staticmethod
    def key(options: dict[str, Any], x: Tensor) -> Hashable | None:
        """What an evaluation depends on, besides latents and timestep: conditionings and size. None if unknown."""
        if "uuids" not in options:
            return None
        return tuple(options["uuids"]), tuple(options.get("cond_or_uncond", ())), tuple(x.shape)

    def kept(self, key: Hashable, make: Callable[[], Evaluation]) -> Evaluation:
        """The evaluation of a key, made if it is not there."""
        if key not in self._kept:
            if len(self._kept) == MOST_KEPT:
                self._kept.popitem(last=False)
            self._kept[key] = make()
        self._kept.move_to_end(key)
        return self._kept[key]

    def reserve(self, nbytes: int) -> bool:
        """Whether there is room for a table of modulation of this size; then it is taken."""
        if nbytes > self._bytes_left:
            return False
        self._bytes_left -= nbytes
        return True


def around_sampling(executor: Any, noise: Tensor, *arguments: Any, **more: Any) -> Tensor:
    """For the wrapper OUTER_SAMPLE: run the sampling, and once more with all else moved out if memory runs out.

    Args:
        executor: Runs the sampling; its ``class_obj`` is the guider.
        noise: [b, C, h, w].
        arguments: latent_image, sampler, sigmas and others.
        more: Further arguments by name.

    Raises:
        ValueError: For latents that the model cannot denoise.
        FloatingPointError: When the latents become NaN or infinite.
        OutOfDeviceMemory: When the second attempt also runs out of memory.
    """
    guider = executor.class_obj
    model: DeepGenModel = guider.model_patcher.model
    model.check_latents(noise)
    _warn_of_patches_without_effect(guider.model_options["transformer_options"])
    arguments = _with_preview_from_cpu(arguments, guider.model_patcher.load_device)
    conds = {name: [one.copy() for one in conds] for name, conds in guider.conds.items()}
    reason: BaseException | None = None
    for attempt in range(2):
        options = guider.model_options["transformer_options"]
        options.pop(SAMPLING, None)
        if (sampling := _sampling_of(guider, *arguments[1:3])) is not None:
            options[SAMPLING] = sampling
        prepare_thread(guider.model_patcher.load_device)
        try:
            samples = executor(noise, *arguments, **more)
            require_finite(samples, "The latents", {"transformer": model.diffusion_model}, model.get_dtype())
            return samples
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = error.with_traceback(None)  # its frames hold the tensors of the failed attempt
        finally:
            options.pop(SAMPLING, None)
            model.needs_all_memory = False
        del sampling
        gc.collect()
        mm.unload_all_models()
        mm.soft_empty_cache()
        guider.conds = {name: [one.copy() for one in kept] for name, kept in conds.items()}
        model.needs_all_memory = attempt == 0  # then as few weights as possible stay on the device
    assert reason is not None
    raise model.out_of_memory(noise, guider.conds, guider.model_patcher.load_device, reason)


def _with_preview_from_cpu(arguments: tuple[Any, ...], device: torch.device) -> tuple[Any, ...]:
    """The same arguments, with a callback (the fifth) that gets x0 on the CPU where that is needed.

    For a preview by Latent2RGB ComfyUI copies its image off an NPU without waiting for it. TAESD runs on the device.
    """
    by_rgb = comfy.cli_args.args.preview_method in _BY_RGB
    if device.type != "npu" or not by_rgb or len(arguments) < 5 or arguments[4] is None:
        return arguments
    report = arguments[4]

    def callback(step: int, x0: Tensor, x: Tensor, steps: int) -> None:
        report(step, x0.cpu(), x, steps)

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
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
    if name in SAMPLERS_ON_THEIR_SIGMAS and not getattr(sampler, "extra_options", {}).get("s_churn"):
        listed = patcher.get_model_object("model_sampling").timestep(sigmas[:-1].float().cpu()).float()
        timesteps = listed.to(patcher.load_device)
    captures = transformer_options.get(CAPTURE_GRAPH, False) and not transformer_options.get("patches_replace")
    return Sampling(timesteps, captures and not patcher.weight_wrapper_patches and not _is_dynamic(patcher))


def is_resident(patcher: Any) -> bool:
    """Whether all weights are on the device, so that a step can be captured in a graph."""
    return not _is_dynamic(patcher) and not patcher.model.model_lowvram


def _is_dynamic(patcher: Any) -> bool:
    return bool(getattr(patcher, "is_dynamic", bool)())


def _warn_of_patches_without_effect(options: dict[str, Any]) -> None:
    """Name what another node put into the MODEL and this model has no place for."""
    kinds = {*options.get("patches", {}), *options.get("patches_replace", {})} - {"dit"}
    if kinds:
        logger.warning(
            "Patches of the kind %s have no effect on DeepGen, whose blocks have no such place: remove the node that "
            "adds them (Perturbed Attention Guidance and others for UNets).",
            ", ".join(sorted(kinds)),
        )
