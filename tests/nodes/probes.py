"""Runs a probe in ComfyUI's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from dev import ROOT
from dev.comfyui.checkouts import Checkout


def run_probe(
    checkout: Checkout, name: str, *arguments: object, timeout: float | None = None, **variables: str
) -> Any:
    """What a probe prints last, which is JSON.

    Args:
        checkout: The ComfyUI.
        name: Of the probe's file, in this folder.
        arguments: Of the probe, after the folders of the pack and of ComfyUI.
        timeout: Seconds after which it fails.
        variables: Of its environment.
    """
    run = subprocess.run(
        [
            str(checkout.python),
            str(Path(__file__).with_name(name)),
            str(ROOT),
            str(checkout.path),
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])
