"""Weights of half the size: int8 and float8, in the form in which ComfyUI keeps them in files."""
