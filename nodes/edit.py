"""DeepGenEdit: a picture changed as a prompt says, with up to three more references."""

from __future__ import annotations

from comfy_api.latest import io

from ..deepgen_npu.prompts import EDIT_NEGATIVE_PROMPT
from . import inputs


MULTIPLE = 32

FOLLOW = "follow image"
CUSTOM = "width and height"


class DeepGenEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DeepGenEdit",
            display_name="DeepGen Edit",
            category=inputs.CATEGORY,
            description="Edits a picture as the prompt says with DeepGen 1.0. A batch is edited picture by picture.",
            inputs=[
                inputs.pipeline(),
                io.Image.Input("image", tooltip="The picture to edit. Of a batch, each picture is edited."),
                inputs.prompt("What to change, in English or Chinese: 'Make the sky stormy.'"),
                inputs.negative_prompt(EDIT_NEGATIVE_PROMPT),
                io.Combo.Input(
                    "size_mode",
                    options=[FOLLOW, CUSTOM],
                    default=FOLLOW,
                    tooltip="follow image: the shape of the picture at the area the model was trained at. "
                    "width and height: the two numbers below; the picture is stretched to them.",
                ),
                inputs.side("width", MULTIPLE, "Used by 'width and height': in pixels, a multiple of 32."),
                inputs.side("height", MULTIPLE, "Used by 'width and height': in pixels, a multiple of 32."),
                inputs.seed(),
                inputs.steps(),
                inputs.cfg(),
                *(
                    io.Image.Input(
                        f"image_{number}",
                        optional=True,
                        tooltip=f"Reference {number}: one picture for all, or as many as image has.",
                    )
                    for number in (2, 3, 4)
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The edited pictures, one batch.")],
        )

    @classmethod
    def validate_inputs(
        cls, size_mode: str | None = None, width: int | None = None, height: int | None = None
    ) -> bool | str:
        if size_mode not in (None, FOLLOW, CUSTOM):
            return f"size_mode is {size_mode!r}; {FOLLOW!r} or {CUSTOM!r} is wanted."
        if size_mode == FOLLOW:
            return True
        return inputs.check_sides(MULTIPLE, width=width, height=height)

    @classmethod
    def execute(
        cls,
        pipeline,
        image,
        prompt: str,
        negative_prompt: str,
        size_mode: str,
        width: int,
        height: int,
        seed: int,
        steps: int,
        cfg: float,
        image_2=None,
        image_3=None,
        image_4=None,
    ) -> io.NodeOutput:
        import torch

        from .images import to_image, to_pil
        from .memory import placement_of
        from .progress import step_callback
        from .scale import drawing_size, pixel_size, show

        groups = reference_groups(image=image, image_2=image_2, image_3=image_3, image_4=image_4)
        sizes = pipeline.sizes
        if size_mode == FOLLOW:
            drawn = sizes.follow(image.shape[1], image.shape[2])
            height, width = (side * pixel_size(sizes) for side in drawn)
        else:
            drawn = drawing_size(sizes, height, width, editing=True)
        placement_of(pipeline).expect(pipeline, *drawn, batch=1, references=len(groups[0]))
        callback = step_callback(pipeline, steps, pictures=len(groups))
        # One draw for the whole batch: picture k has the same noise however many there are.
        noise = pipeline.prepare_latents(len(groups), *drawn, seed=seed)
        # Stage by stage for all of them, so that no stage has to be loaded twice.
        pictures = [[to_pil(reference)[0] for reference in group] for group in groups]
        conditionings = pipeline.encode_each(prompt, pictures, negative_prompt, *drawn)
        latents = [
            pipeline.denoise(conditioning, noise[index : index + 1], steps, cfg, callback)
            for index, conditioning in enumerate(conditionings)
        ]
        edited = [pipeline.decode(one, "pt") for one in latents]
        return io.NodeOutput(to_image(show(torch.cat(edited), height, width)))


def reference_groups(**images) -> list[list]:
    """The references of each picture of the batch.

    Args:
        images: IMAGE tensors [b, H, W, C] or None by input name; the first sets the batch.

    Returns:
        For each picture of the batch its references, each [1, H, W, C].

    Raises:
        ValueError: When a further input has neither one picture nor as many as the first.
    """
    given = {name: image for name, image in images.items() if image is not None}
    (first, batch), *others = [(name, len(image)) for name, image in given.items()]
    for name, count in others:
        if count not in (1, batch):
            raise ValueError(
                f"{name} has {count} pictures and {first} has {batch}; one is wanted, or as many as {first}."
            )
    return [[image[min(index, len(image) - 1) :][:1] for image in given.values()] for index in range(batch)]
