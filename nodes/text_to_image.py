"""DeepGenTextToImage: a picture from a prompt."""

from __future__ import annotations

from comfy_api.latest import io

from . import inputs


MULTIPLE = 16


class DeepGenTextToImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DeepGenTextToImage",
            display_name="DeepGen Text to Image",
            category=inputs.CATEGORY,
            description="Generates pictures from a prompt with DeepGen 1.0: scenes, reasoning, rendered text.",
            inputs=[
                inputs.pipeline(),
                inputs.prompt("What to draw, in English or Chinese. Put text to render in quotation marks."),
                inputs.negative_prompt(),
                inputs.side("width", MULTIPLE, "In pixels, a multiple of 16. Trained at the area of 512 x 512."),
                inputs.side("height", MULTIPLE, "In pixels, a multiple of 16. Trained at the area of 512 x 512."),
                inputs.seed(),
                inputs.steps(),
                inputs.cfg(),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="Number of pictures made at once."),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The pictures, one batch.")],
        )

    @classmethod
    def validate_inputs(cls, width: int | None = None, height: int | None = None) -> bool | str:
        return inputs.check_sides(MULTIPLE, width=width, height=height)

    @classmethod
    def execute(
        cls,
        pipeline,
        prompt: str,
        negative_prompt: str,
        width: int,
        height: int,
        seed: int,
        steps: int,
        cfg: float,
        batch_size: int,
    ) -> io.NodeOutput:
        from .images import to_image
        from .memory import placement_of
        from .progress import step_callback
        from .scale import drawing_size, show

        drawn_height, drawn_width = drawing_size(pipeline.sizes, height, width, editing=False)
        placement_of(pipeline).expect(pipeline, drawn_height, drawn_width, batch_size, references=0)
        pixels = pipeline(
            prompt,
            negative_prompt=negative_prompt,
            height=drawn_height,
            width=drawn_width,
            num_inference_steps=steps,
            guidance_scale=cfg,
            num_images_per_prompt=batch_size,
            seed=seed,
            output_type="pt",
            callback_on_step_end=step_callback(pipeline, steps),
        ).images
        return io.NodeOutput(to_image(show(pixels, height, width)))
