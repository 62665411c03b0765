"""ComfyUI nodes for DeepGen 1.0. See `extension` for the list."""
