"""DeepGenGuidanceEvery: a MODEL whose negative prompt is evaluated in every n-th step only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from .check import DeepGenNode
from .inputs import search_aliases
from .names import CATEGORY


if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


class DeepGenGuidanceEvery(DeepGenNode):
    """A MODEL that is sampled in less time. The one that came in is as before."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and texts."""
        return io.Schema(
            node_id="DeepGenGuidanceEvery",
            display_name="DeepGen Guidance Every",
            category=CATEGORY,
            description="Samples faster: the negative prompt is evaluated in every 2nd step (or 3rd, 4th, ...), and "
            "the difference that it makes is kept in between. The image changes a little.",
            **search_aliases("cfg", "guidance", "speed", "faster", "skip negative", "cfg cache", "guidance interval"),
            inputs=[
                io.Model.Input("model", tooltip="The model of DeepGen Loader, also with LoRAs and other patches."),
                io.Int.Input(
                    "guidance_every",
                    default=2,
                    min=1,
                    max=10,
                    tooltip="Evaluate the negative prompt in every so many-th step. 2 does 0.75 of the work, 4 "
                    "does 0.63 and differs more, 1 is without effect. To save more, take fewer steps. Where cfg is 1 "
                    "there is nothing to save.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For KSampler, and for DeepGen LoRA.")],
        )

    @classmethod
    def run(cls, model: ModelPatcher, guidance_every: int) -> io.NodeOutput:
        """A clone with the setting, which the sampling reads."""
        from .native.kept_guidance import GUIDANCE_EVERY

        patched = model.clone()
        patched.model_options["transformer_options"][GUIDANCE_EVERY] = guidance_every
        return io.NodeOutput(patched)
