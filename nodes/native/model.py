"""DeepGen as a model of ComfyUI: sampling, latent space, conditionings and memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management as mm
import comfy.model_patcher
import comfy.supported_models_base
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ...deepgen_npu.checkpoint.folder import Checkpoint
from ...deepgen_npu.checkpoint.reading import BytesRead
from ...deepgen_npu.checkpoint.weights import load_part
from ...deepgen_npu.checks import Named, must, must_be, type_of
from ...deepgen_npu.devices import is_out_of_host_memory
from ...deepgen_npu.formatting import format_size
from ...deepgen_npu.memory import OutOfDeviceMemory, Workload, explain, reason_of, transformer_activation_bytes
from ...deepgen_npu.model.float16 import sum_dtype
from ...deepgen_npu.model.positions import STAYS_ON_HOST
from ...deepgen_npu.model.projections import lay_together
from ..reading import disable_mmap
from .castable import place_rest
from .conditioning import References
from .denoiser import DeepGenDenoiser
from .latent_format import latent_format
from .sampling import around_sampling, streams


if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel


KEY = "deepgen"
"""Of our wrapper and callback in a patcher."""

ALL_MEMORY = 1e20
"""Bytes to ask for, so that ComfyUI moves everything out and loads as few weights as possible."""


class _Config(comfy.supported_models_base.BASE):
    """What ComfyUI wants to know of a model before it is made."""

    latent_format = comfy.latent_formats.SD3
    supported_inference_dtypes = [torch.bfloat16, torch.float32]


class DeepGenModel(comfy.model_base.QwenImage, comfy.model_base.HunyuanDiT):
    """The DiT with its flow matching.

    ComfyUI decides by the class which names of LoRA keys a model knows. With these two it knows those of diffusers,
    PEFT, LyCORIS and bare ones, besides kohya's. Nothing else is inherited: all methods that they have are here
    (tests/nodes holds it).

    Args:
        transformer: The stock DiT, which belongs to this model from now on.
        checkpoint: Which it was read from.
    """

    diffusion_model: DeepGenDenoiser

    def __init__(self, transformer: SD3Transformer2DModel, checkpoint: Checkpoint):
        scheduler = checkpoint.configs["scheduler"]
        config: Any = _Config({"disable_unet_model_creation": True})
        config.sampling_settings = {"shift": scheduler["shift"], "multiplier": scheduler["num_train_timesteps"]}
        config.latent_format = latent_format(checkpoint)
        comfy.model_base.BaseModel.__init__(self, config, comfy.model_base.ModelType.FLOW)
        self.diffusion_model = DeepGenDenoiser(transformer)
        self.memory_usage_factor_conds = ("ref_latents",)
        self.sizes = checkpoint.sizes
        self._largest_timestep: int = scheduler["num_train_timesteps"]
        self.needs_all_memory = False
        """Ask for the whole device, so that as few weights as possible stay there: after it ran out of memory."""

    # Conditionings

    def encode_adm(self, **given: Any) -> Tensor:
        """Becomes ``y`` of the denoiser."""
        width = self.diffusion_model.config["pooled_projection_dim"]
        return _checked("pooled_output", given.get("pooled_output"), 2, width)

    def extra_conds(self, **given: Any) -> dict[str, Any]:
        """What the denoiser is called with, on its device and in its dtype: nothing is moved or cast in a step.

        Raises:
            ValueError: For a conditioning that is not DeepGen's.
        """
        device, dtype = given.get("device"), self.get_dtype()
        width = self.diffusion_model.config["joint_attention_dim"]
        embeds = _checked("embeds", given.get("cross_attn"), 3, width)
        found = {
            "y": comfy.conds.CONDRegular(_moved(self.encode_adm(**given), device, dtype)),
            # Not CONDCrossAttn: that repeats texts of unequal length, which changes what joint attention computes.
            "c_crossattn": comfy.conds.CONDRegular(_moved(embeds, device, dtype)),
        }
        if references := given.get("reference_latents"):
            channels = self.latent_format.latent_channels
            for one in references:
                if one.ndim != 4 or one.shape[1] != channels:
                    requirement = f"have the shape [batch, {channels}, height, width]"
                    advice = "Make them with VAE Encode and the loader's vae."
                    raise ValueError(must("reference_latents", requirement, list(one.shape), advice=advice))
            scaled = [_moved(self.process_latent_in(one.float()), device, dtype) for one in references]
            found["ref_latents"] = References(scaled)
        return found

    def extra_conds_shapes(self, **given: Any) -> dict[str, list[int]]:
        """Sizes of conditionings for the estimate of memory, before they are made."""
        found = {}
        if (embeds := given.get("cross_attn")) is not None:
            found["c_crossattn"] = list(embeds.shape)
        if references := given.get("reference_latents"):
            found["ref_latents"] = References(references).size()
        return found

    def state_dict_for_saving(self, *parts: Any, **more: Any) -> dict[str, Any]:
        """What Save Model writes: with the table of positions, without which others read the file wrongly.

        Args:
            parts: Of this and other models, by version.
            more: The same.
        """
        saved = comfy.model_base.BaseModel.state_dict_for_saving(self, *parts, **more)
        return {**saved, f"model.diffusion_model.{STAYS_ON_HOST}": self.diffusion_model.pos_embed.pos_embed}

    # Memory and sizes

    def memory_required(self, input_shape: Sequence[int], cond_shapes: dict[str, list[Any]] | None = None) -> float:
        """Bytes of activations of an evaluation.

        Args:
            input_shape: [rows, C, h, w].
            cond_shapes: Shapes of conditionings by their names.
        """
        if self.needs_all_memory:
            return ALL_MEMORY
        return float(self._activation_bytes(self._workload(input_shape, cond_shapes or {})))

    def _workload(self, input_shape: Sequence[int], cond_shapes: dict[str, list[Any]]) -> Workload:
        rows, _, *sides = input_shape
        height, width = (side * self.sizes.vae_factor for side in sides)
        cells = max((shape[2] for shape in cond_shapes.get("ref_latents", [])), default=0)
        tokens = [shape[1] for shape in cond_shapes.get("c_crossattn", [])]
        return Workload(
            "transformer",
            height,
            width,
            rows,
            references=-(-cells // (sides[0] * sides[1])),
            text_tokens=max(tokens, default=Workload.text_tokens),
        )

    def _activation_bytes(self, work: Workload) -> int:
        itemsize = sum_dtype(self.get_dtype()).itemsize
        return transformer_activation_bytes(self.diffusion_model.config, self.sizes, work, itemsize)

    def check_latents(self, latents: Tensor) -> None:
        """Refuse latents [b, C, h, w] of another model, and those larger than the table of positions.

        Raises:
            ValueError: Naming the requirement.
        """
        channels, longest = self.latent_format.latent_channels, self.sizes.longest_side // self.sizes.vae_factor
        if latents.ndim != 4 or latents.shape[1] != channels:
            requirement = f"have the shape [batch, {channels}, height, width]"
            advice = "Make it with DeepGen Encode Prompt, VAE Encode and the loader's vae, or EmptySD3LatentImage."
            raise ValueError(must("latent_image", requirement, list(latents.shape), advice=advice))
        height, width = latents.shape[-2:]
        if max(height, width) > longest:
            requirement = f"have sides of at most {longest} latent cells with this model"
            advice = "The latent of DeepGen Encode Prompt has the right size."
            raise ValueError(must("latent_image", requirement, Named(format_size(width, height)), advice=advice))

    def check_timesteps(self, model_sampling: Any) -> None:
        """Refuse the sampling of another kind of model, which some nodes put into a MODEL.

        Raises:
            ValueError: When its timesteps are not those that the model was trained with.
        """
        largest, found = self._largest_timestep, float(model_sampling.timestep(torch.ones(1)))
        if abs(found - largest) > 1e-3 * largest:
            requirement = f"have timesteps from 0 to {largest}"
            advice = "Remove the node that changes it (for AuraFlow, Flux and others), or use ModelSamplingSD3."
            raise ValueError(must("model", requirement, Named(f"0 to {found:g}"), advice=advice))

    def out_of_memory(
        self, noise: Tensor, conds: dict[str, Any], device: torch.device, reason: BaseException
    ) -> OutOfDeviceMemory:
        """The error that names a size which would fit."""
        shapes: dict[str, list[Any]] = {}
        for one in (one for each in conds.values() for one in each or ()):
            for name, shape in self.extra_conds_shapes(**one).items():
                shapes.setdefault(name, []).append(shape)
        work = self._workload([len(noise) * min(2, len(conds)), *noise.shape[1:]], shapes)
        device = torch.device("cpu") if is_out_of_host_memory(reason) else device
        return OutOfDeviceMemory(explain(work, self.sizes, self._activation_bytes, device, reason_of(reason), ""))


def _moved(tensor: Tensor, device: torch.device | None, dtype: torch.dtype) -> Tensor:
    """A tensor that training can go back through, also if the node that made it ran in inference mode."""
    moved = tensor.to(device, dtype)
    return moved.clone() if moved.is_inference() and not torch.is_inference_mode_enabled() else moved


def _checked(name: str, value: Any, axes: int, width: int) -> Tensor:
    advice = "Connect positive and negative of DeepGen Encode Prompt: DeepGen has a text encoder of its own."
    if not isinstance(value, Tensor):
        raise ValueError(must_be(f"conditioning: {name}", "a tensor", type_of(value), advice=advice))
    if value.ndim != axes or value.shape[-1] != width:
        shape = f"have the shape {'[batch, tokens, ' if axes == 3 else '[batch, '}{width}]"
        raise ValueError(must(f"conditioning: {name}", shape, list(value.shape), advice=advice))
    return value


def model_patcher(
    transformer: SD3Transformer2DModel, checkpoint: Checkpoint, dtype: torch.dtype, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """A MODEL of a DiT whose weights have been read; no other may be made of the same DiT, but clones of this one.

    Args:
        transformer: The stock DiT.
        checkpoint: Which it was read from.
        dtype: Of its weights.
        disable_dynamic: Whether it must be ComfyUI's patcher that loads weights ahead of a run.
    """
    patcher = patcher_class(disable_dynamic)(
        DeepGenModel(transformer, checkpoint),
        load_device=mm.get_torch_device(),
        offload_device=mm.unet_offload_device(),
    )
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, around_sampling)
    patcher.add_callback_with_key(CallbacksMP.ON_LOAD, KEY, _on_load)
    patcher.add_callback_with_key(CallbacksMP.ON_DETACH, KEY, _drop_graphs)
    # For a copy with weights of its own: on a second card, or where hooks need the other patcher.
    patcher.cached_patcher_init = (read_model_patcher, (checkpoint.folder, dtype))
    return patcher


def _on_load(patcher: Any, device: torch.device, *options: Any) -> None:
    """The weights have come to the device: all of them, or those for which there is room."""
    place_rest(patcher, device)
    # With --gpu-only and --highvram, weights from before a LoRA stay on the card, as parts of what was laid together:
    # to lay their neighbours together anew would leave these there twice.
    kept_there = any(kept.weight.device == device for kept in patcher.backup.values())
    if not streams(patcher) and not kept_there:
        lay_together(patcher.model.diffusion_model)


def _drop_graphs(patcher: Any, unpatch_all: bool = True) -> None:
    """The weights have left the device: so does what graphs hold there. A clone that ends leaves them in place."""
    if unpatch_all:
        patcher.model.diffusion_model.graphs.clear()


def read_model_patcher(
    folder: Path, dtype: torch.dtype, on_bytes_read: BytesRead | None = None, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """`model_patcher` of a checkpoint whose DiT is read now, to where ComfyUI keeps idle models.

    Raises:
        CheckpointError: When it cannot be read.
    """
    checkpoint = Checkpoint.open(folder)
    where = mm.unet_offload_device()
    transformer: Any = load_part(checkpoint, "transformer", dtype, where, on_bytes_read, disable_mmap())
    return model_patcher(transformer, checkpoint, dtype, disable_dynamic)


def patcher_class(disable_dynamic: bool = False) -> type[comfy.model_patcher.ModelPatcher]:
    """ComfyUI's own; newer versions choose one at their start, so it is looked up now."""
    ordinary = comfy.model_patcher.ModelPatcher
    return ordinary if disable_dynamic else vars(comfy.model_patcher).get("CoreModelPatcher", ordinary)
