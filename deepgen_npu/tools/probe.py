"""Which devices torch finds, asked in a process of its own.

Where torch_npu is installed and CANN is not sourced, even importing torch fails.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .. import auto_dtype


PROBE_SECONDS = 180
"""The time that torch gets to list its devices."""
# A busy or broken card must not hide the others. `python -c` would import modules from the current folder, whosever it
# is.
_PROBE = """
import sys
sys.path[:] = [folder for folder in sys.path if folder]
import json
import torch
kinds = ["cuda"]
try:
    import torch_npu
    kinds.insert(0, "npu")
except ModuleNotFoundError as error:
    if error.name != "torch_npu":
        raise
found = []
for kind in kinds:
    backend = getattr(torch, kind)
    for index in range(backend.device_count() if backend.is_available() else 0):
        card = {"device": f"{kind}:{index}", "name": None, "free": None, "total": None, "error": None}
        try:
            card["name"] = backend.get_device_name(index)
            card["free"], card["total"] = backend.mem_get_info(index)
        except Exception as error:
            card["error"] = str(error).strip().split("\\n")[0]
        try:
            if kind == "npu":
                card["bfloat16"] = bool(backend.is_bf16_supported())
            else:
                card["capability"], card["rocm"] = backend.get_device_capability(index), bool(torch.version.hip)
        except Exception:
            pass
        found.append(card)
print("\\n" + json.dumps(found))
"""


def probe(environment: Mapping[str, str]) -> tuple[list[dict[str, Any]], str | None]:
    """The devices that torch finds in a process of its own, and its error if it does not load."""
    try:
        child = subprocess.run(
            [sys.executable, "-c", _PROBE],
            capture_output=True,
            text=True,
            errors="replace",
            env=dict(environment),
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [], f"torch did not answer within {PROBE_SECONDS} s"
    if child.returncode != 0:
        return [], _errors(child.stderr) or f"the process ended with status {child.returncode}"
    found = json.loads(child.stdout.strip().splitlines()[-1])
    return [_with_dtype(**device) for device in found], None


def _with_dtype(
    bfloat16: bool | None = None, capability: Sequence[int] | None = None, rocm: bool = False, **device: Any
) -> dict[str, Any]:
    """A device with what the dtype ``auto`` is there, from what the probe asked it."""
    best, name = None, device["name"]
    if name is not None and device["device"].startswith("npu"):
        best = auto_dtype.on_npu(name, bfloat16)
    elif name is not None and capability is not None:
        best = auto_dtype.on_cuda(name, (capability[0], capability[1]), rocm)
    return {**device, "dtype": best and best.dtype, "why": best and best.why}


def _errors(traceback: str) -> str:
    """The lines of a traceback that name an error, such as "ImportError: ...", causes first."""
    lines = traceback.strip().splitlines()
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt|Exit)\b", line)]
    return "\n".join(errors or lines[-1:])
