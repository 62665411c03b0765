"""DeepGenLoRA: a LoRA of any trainer on the pipeline and its MODEL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..deepgen_npu.checks import Named, must_be
from . import inputs
from .check import DeepGenNode
from .inputs import Pipeline, search_aliases
from .lora_folder import find_lora, lora_choices, state_of_loras
from .names import CATEGORY


if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

    from .lazy_pipeline import LazyPipeline


class DeepGenLora(DeepGenNode):
    """A pipeline and a MODEL that draw with a LoRA. Those that came in are as before."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and texts."""
        return io.Schema(
            node_id="DeepGenLoRA",
            display_name="DeepGen LoRA",
            category=CATEGORY,
            description="Applies a LoRA for SD3.5-medium or DeepGen, whichever trainer wrote it (also DoRA, LoHa, "
            "LoKr). Keys without effect are listed in the log; a file of another model is refused. For several LoRAs, "
            "use several nodes.",
            **search_aliases("lora", "load lora", "adapter", "dora", "lycoris", "turbo"),
            inputs=[
                inputs.pipeline(),
                io.Combo.Input(
                    "lora_name",
                    options=lora_choices(),
                    tooltip="A .safetensors file in models/loras.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                    tooltip="1 is as trained, 0 is without the LoRA, below 0 is the opposite.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="A MODEL of the same loader that other nodes have changed: the LoRA is added to it. "
                    "Without one, the pipeline's own is taken.",
                ),
            ],
            outputs=[
                Pipeline.Output(
                    display_name="pipeline",
                    tooltip="Draws with the LoRA and with all that model has, for all other DeepGen nodes.",
                ),
                io.Model.Output(display_name="model", tooltip="The same for KSampler and other nodes of ComfyUI."),
            ],
        )

    @classmethod
    def validate_inputs(cls, lora_name: str | None = None, strength: float | None = None) -> bool | str:
        """Called by ComfyUI before a prompt is queued: True, or the error."""
        if refusal := cls.refusal(strength=strength):
            return refusal
        try:
            if lora_name is not None:
                find_lora(lora_name)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None = None, **others: Any) -> str:
        """Called by ComfyUI: the node runs again when this changes."""
        return state_of_loras(lora_name)

    @classmethod
    def run(
        cls, pipeline: LazyPipeline, lora_name: str, strength: float, model: ModelPatcher | None = None
    ) -> io.NodeOutput:
        """Clones with the LoRA, whose file is read now."""
        from .native.lora import with_lora

        patcher = pipeline.patcher if model is None else model
        if not patcher.is_clone(pipeline.patcher):
            raise ValueError(must_be("model", "that of the DeepGen Loader of pipeline", Named("that of another")))
        patched = with_lora(patcher, find_lora(lora_name), strength)
        return io.NodeOutput(pipeline.with_patcher(patched), patched)
