"""A harness that drives real ComfyUI servers and their front end. Nothing of ComfyUI is in it."""
