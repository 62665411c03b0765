"""What cannot be tested on a system that does not have it. Each mark says what that is."""

from __future__ import annotations

import sys
from typing import Any

import pytest


def not_on_windows(reason: str) -> Any:
    return pytest.mark.skipif(sys.platform == "win32", reason=f"Windows: {reason}")


def linux_only(reason: str) -> Any:
    return pytest.mark.skipif(sys.platform != "linux", reason=f"Linux only: {reason}")
