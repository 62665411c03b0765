"""DeepGen as ComfyUI's own model: a MODEL for its samplers, LoRAs, guiders and caches, whose weights it streams."""
