"""Errors that leave the library. They need no torch: the command line shows each as one line."""

from __future__ import annotations


class DeepGenError(Exception):
    """The base of every error whose message is written for the user: what is wrong, and what to do about it."""


class UsageError(DeepGenError, ValueError):
    """A command line that cannot work."""


class CheckpointError(DeepGenError, ValueError):
    """A checkpoint folder that is missing, incomplete or inconsistent. The message names the file."""


class DownloadError(DeepGenError, RuntimeError):
    """A download could not be done; the message says what to do about it."""


class DeviceError(DeepGenError, RuntimeError):
    """A device was asked for that this machine does not have; the message says why and what to do."""
