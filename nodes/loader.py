"""DeepGenLoader: the model."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..deepgen_npu.dtypes import CHOICES
from .cards import DEFAULT, DEVICES, find_device
from .check import DeepGenNode
from .inputs import Pipeline, advanced, search_aliases
from .model_folder import all_folders, find_model, model_choices, state_of
from .names import CATEGORY


class DeepGenLoader(DeepGenNode):
    """A model by its name: pipeline, VAE and MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs, outputs and texts."""
        models, default = model_choices()
        return io.Schema(
            node_id="DeepGenLoader",
            display_name="DeepGen Loader",
            category=CATEGORY,
            description="Loads DeepGen 1.0 from models/deepgen. One loader serves generation and editing; "
            "ComfyUI chooses the device, and streams what does not fit on it.",
            **search_aliases("load model", "checkpoint", "diffusers"),
            inputs=[
                io.Combo.Input(
                    "model",
                    options=models,
                    default=default,
                    tooltip="A folder in models/deepgen (or a 'deepgen' entry of extra_model_paths.yaml), or the demo "
                    "that comes with the pack: it draws coloured shapes and needs no download.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(CHOICES),
                    default="auto",
                    tooltip="Precision of the weights. auto: bfloat16 where the card has it (12.6 GiB), float16 where "
                    "it does not, float32 on a CPU without native bfloat16 (25.1 GiB).",
                ),
                io.Boolean.Input(
                    "capture_graph",
                    default=False,
                    optional=True,  # workflows saved before it was there stay valid
                    tooltip="NPU and CUDA: capture the denoising step in a graph and replay it, so that the device "
                    "does not wait for the host. Output is identical; if capture is unavailable, a warning is logged.",
                ),
                io.Combo.Input(
                    "text_encoder_device",
                    options=DEVICES,
                    default=DEFAULT,
                    optional=True,
                    **advanced(),
                    tooltip="Where VLM and connector run: default is the card of the model, gpu:1 the second card of "
                    "this machine. Each card then holds only its own parts; images are identical. A card that this "
                    "machine does not have is the default, and the log says so.",
                ),
            ],
            outputs=[
                Pipeline.Output(display_name="pipeline", tooltip="The model, for all other DeepGen nodes."),
                io.Vae.Output(
                    display_name="vae",
                    tooltip="The model's VAE, for VAE Decode, VAE Encode and their tiled variants.",
                ),
                io.Model.Output(
                    display_name="model",
                    tooltip="For ComfyUI's own nodes: KSampler with positive, negative and latent of DeepGen Encode "
                    "Prompt, LoRA loaders, guidance and sampling patches.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, model: str | None = None, dtype: str | None = None, text_encoder_device: str | None = None
    ) -> bool | str:
        """Called by ComfyUI before a prompt is queued: True, or the error."""
        # ComfyUI 0.3.64 does not check the values of a V3 list itself.
        if refusal := cls.refusal(dtype=dtype, text_encoder_device=text_encoder_device):
            return refusal
        try:
            if model is not None:
                find_model(model)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, model: str | None = None, **others: Any) -> str:
        """Called by ComfyUI: the loader runs again when this changes."""
        # A folder that was repaired, or downloaded since, is another model. A name over a wire may be any.
        return state_of(*all_folders() if model is None else [find_model(model)])

    @classmethod
    def run(
        cls, model: str, dtype: str, capture_graph: bool = False, text_encoder_device: str = DEFAULT
    ) -> io.NodeOutput:
        """The pipeline, its VAE, and its DiT, whose weights are read now."""
        from .lazy_pipeline import LazyPipeline

        text_device = find_device(text_encoder_device, "the text encoder")
        opened = LazyPipeline(find_model(model), dtype, capture_graph, text_device)
        return io.NodeOutput(opened, opened.vae, opened.patcher)
