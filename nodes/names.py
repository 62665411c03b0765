"""Texts that appear in saved workflows, and so never change. This module imports nothing."""

from __future__ import annotations


CATEGORY = "DeepGen"
"""Of the nodes, in ComfyUI's menu."""

FOLDER = "deepgen"
"""The folder below ``models``."""

DEMO = "coloured shapes (demo, not DeepGen 1.0)"
"""The loader's entry for the small model that comes with the pack."""
EITHER = "DeepGen 1.0 if downloaded, else the demo"
"""The loader's entry of workflows that are to run on every machine."""

PADDED = "follow image, no distortion"
FOLLOW = "follow image"
CUSTOM = "width and height"
RESTORE = "size of image"
"""The size modes of an edit."""
