"""DeepGenLoader: the model."""

from __future__ import annotations

from comfy_api.latest import io

from ..deepgen_npu.arguments import DTYPES
from .compat import search_aliases
from .inputs import CATEGORY, Pipeline
from .models import find_model, model_choices, state_of


class DeepGenLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        models, default = model_choices()
        return io.Schema(
            node_id="DeepGenLoader",
            display_name="DeepGen Loader",
            category=CATEGORY,
            description="Loads DeepGen 1.0 from models/deepgen. One loader serves generation and editing; "
            "ComfyUI chooses the device. The weights are read when they are first needed.",
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
                    options=list(DTYPES),
                    default="auto",
                    tooltip="Precision of the weights. auto: bfloat16 on NPU and GPU (13.5 GB), float32 on a CPU "
                    "that does not compute in bfloat16 (27 GB).",
                ),
                io.Boolean.Input(
                    "capture_graph",
                    default=False,
                    optional=True,  # workflows saved before it was there stay valid
                    tooltip="NPU and CUDA: capture the denoising step in a graph and replay it, so that the device "
                    "does not wait for the host. The same pictures; where it cannot be used, the log says so.",
                ),
            ],
            outputs=[
                Pipeline.Output(display_name="pipeline", tooltip="The model, for all other DeepGen nodes."),
                io.Vae.Output(
                    display_name="vae",
                    tooltip="The model's VAE, for VAE Decode, VAE Encode and their tiled variants.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, model: str | None = None, dtype: str | None = None) -> bool | str:
        # ComfyUI 0.3.64 does not check the values of a V3 list itself.
        if dtype is not None and dtype not in DTYPES:
            return f"dtype is {dtype!r}; one of {', '.join(DTYPES)} is wanted."
        if model is None:
            return True
        try:
            find_model(model)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, model: str, dtype: str, capture_graph: bool = False) -> str:
        # A folder that was mended, or downloaded since, is another model.
        return state_of(find_model(model))

    @classmethod
    def execute(cls, model: str, dtype: str, capture_graph: bool = False) -> io.NodeOutput:
        from .handle import DeepGenHandle

        handle = DeepGenHandle(find_model(model), dtype, capture_graph)
        return io.NodeOutput(handle, handle.vae)
