"""Errors of the library that are written for its users. They need no torch."""

from __future__ import annotations


class DeepGenError(Exception):
    """The base of every error whose message says what is wrong and what to do about it."""


class UsageError(DeepGenError, ValueError):
    """A command line that cannot work."""


class CheckpointError(DeepGenError, ValueError):
    """A checkpoint folder is missing, incomplete or inconsistent; the message names the file."""


class LoraError(DeepGenError, ValueError):
    """A LoRA file cannot be used; the message names the file."""


class DownloadError(DeepGenError, RuntimeError):
    """A download failed; the message says what to do about it."""


class DeviceError(DeepGenError, RuntimeError):
    """The requested device is not available on this machine; the message says why and what to do."""
