"""Tools for developers, never published. They may import the library and `nodes.names`, never the tests."""

from __future__ import annotations

from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
"""The folder of the repository."""
