"""The DiT as ComfyUI's ``diffusion_model``: the stock layers under their names, evaluated as in the library."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor, nn

from ...deepgen_npu.devices import prepare_thread
from ...deepgen_npu.graphs import Graphs
from ...deepgen_npu.model import modulation as modulations
from ...deepgen_npu.model.positions import take_out_positions
from ...deepgen_npu.model.transformer import AroundBlock, Block, prepare, step
from .castable import make_castable
from .evaluation import Evaluation
from .plain_conditioning import SAMPLING
from .sampling import patches_without_effect


if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel

    from .sampling import Sampling

MULTIGPU_THREAD = "multigpu_thread_device"
"""ComfyUI's key for the card of a thread, where each card has one."""

CHILDREN = ("pos_embed", "time_text_embed", "context_embedder", "transformer_blocks", "norm_out", "proj_out")
"""The stock model's. Their names are those of the keys of LoRAs and of merged models."""


class DeepGenDenoiser(nn.Module):
    """The layers of a stock DiT, which belong to this module from now on.

    Not the stock object: ComfyUI sets ``device`` and ``dtype``, which are read-only properties there.

    Args:
        transformer: The stock model.
    """

    def __init__(self, transformer: SD3Transformer2DModel):
        super().__init__()
        self.config, self.dtype = dict(transformer.config), transformer.dtype
        self.in_channels: int = self.config["in_channels"]  # RenormCFG reads it
        for name in CHILDREN:
            setattr(self, name, getattr(transformer, name))
        make_castable(self, self.dtype)
        take_out_positions(self)  # ComfyUI would move every buffer to the card
        self.slots = modulations.slots_of(self)
        self.graphs = Graphs()

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor,
        ref_latents: Sequence[Tensor] = (),
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **others: Any,
    ) -> Tensor:
        """The velocity, as ComfyUI asks for it.

        Args:
            x: [rows, C, h, w].
            timesteps: [rows] in 0..1000.
            context: [rows, L, joint_attention_dim].
            y: [rows, pooled_projection_dim].
            ref_latents: Each [rows, C, h_k, w_k] in scaled latent space.
            control: Of a ControlNet.
            transformer_options: What samplers and patches say.
            others: Of newer versions; they do not concern this model.

        Returns:
            [rows, C, h, w].

        Raises:
            ValueError: With a ControlNet.
        """
        if control is not None:
            raise ValueError(
                "ControlNet is not supported by DeepGen: remove Apply ControlNet. To keep parts of an image, use a "
                "noise mask (Set Latent Noise Mask) or connect the image to DeepGen Encode Prompt."
            )
        options = transformer_options or {}
        arguments = x, timesteps, context, y, list(ref_latents), options
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        if not wrappers:
            return self._velocity(*arguments)
        # EasyCache adds what it remembers to the model's input, in place. In float32 that is the sampler's own tensor.
        arguments = x.clone(), *arguments[1:]
        return WrapperExecutor.new_class_executor(self._velocity, self, wrappers).execute(*arguments)

    def _velocity(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor,
        references: Sequence[Tensor],
        options: dict[str, Any],
        *others: Any,
        **more: Any,
    ) -> Tensor:
        _prepare_this_thread(x.device)
        height, width = x.shape[-2:]
        x = self._padded(x)
        references = [self._padded(latents) for latents in references]
        around_block = _around_block(options, timesteps)
        sampling: Sampling | None = options.get(SAMPLING)
        if sampling is not None:
            sampling.without_effect |= patches_without_effect(options, self)
        # While a LoRA is trained nothing is kept: each step has a graph of its own to go back through.
        key = sampling.key(options, x) if sampling and not torch.is_grad_enabled() else None
        if sampling is None or key is None:
            prepared = prepare(self, context, references, *x.shape[-2:])
            embeddings = modulations.time_and_text(self, timesteps, y)[None]  # [1, rows, width]
            velocity = step(
                self, self.slots, prepared, x, modulations.modulate(self.slots, embeddings)[0], around_block
            )
        else:
            # Not in one of several threads: while one captures, no other may use a device.
            captures = sampling.may_capture() and MULTIGPU_THREAD not in options
            in_between = sampling.guidance.every > 1 and options.get("cond_or_uncond") == [0]
            evaluation = sampling.kept(
                key, lambda: Evaluation(self, sampling, x, context, y, references, captures, in_between)
            )
            velocity = evaluation(x, timesteps, around_block)
        return velocity[..., :height, :width]

    def _padded(self, latents: Tensor) -> Tensor:
        """Latents whose sides are multiples of the patch."""
        patch = self.config["patch_size"]
        below, right = (-side % patch for side in latents.shape[-2:])
        return F.pad(latents, (0, right, 0, below), mode="replicate") if below or right else latents


_thread = threading.local()


def _prepare_this_thread(device: torch.device) -> None:
    """Once for each card. ComfyUI's MultiGPU CFG Split may evaluate on each in a thread of its own."""
    known: set[torch.device] = vars(_thread).setdefault("devices", set())
    if device not in known:
        prepare_thread(device)
        known.add(device)


def _around_block(options: dict[str, Any], timesteps: Tensor) -> AroundBlock | None:
    """What patches of the MODEL put in place of blocks: of nodes such as Skip Layer Guidance."""
    replacements = options.get("patches_replace", {}).get("dit", {})
    if not replacements:
        return None

    def around(index: int, block: Block, image: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        replacement = replacements.get(("double_block", index))
        if replacement is None:
            return block(image, context)

        def original(given: dict[str, Any]) -> dict[str, Any]:
            image, context = block(given["img"], given["txt"])
            return {"img": image, "txt": context}

        given = {"img": image, "txt": context, "vec": timesteps, "transformer_options": options}
        found = replacement(given, {"original_block": original})
        return found["img"], found["txt"]

    return around
