"""Test bench that drives real ComfyUI servers: no part of the node pack itself."""
