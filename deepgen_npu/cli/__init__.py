"""The command line: ``deepgen``, ``python -m deepgen_npu`` and ``inference.py``."""

from .entry import inference, main


__all__ = ["inference", "main"]
