"""A pack such as many that lie beside ours: V1 nodes, and diffusers imported while ComfyUI starts."""

from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.utils import logging


# Packs do this for the whole process.
logging.set_verbosity_error()


class NeighbourSteps:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "steps": ("INT", {"default": 3})}}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "look"
    CATEGORY = "neighbour"

    def look(self, image, steps):
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(steps)
        assert len(scheduler.timesteps) == steps
        return (image,)


NODE_CLASS_MAPPINGS = {"NeighbourSteps": NeighbourSteps}
