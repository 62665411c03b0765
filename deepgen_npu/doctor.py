"""``python -m deepgen_npu doctor``: what this machine has, what is wrong with it, and how to mend that.

torch is never imported in this process: where torch_npu is installed and CANN is not sourced, importing torch fails
already. A child process tries it, and its error is one of the findings.
"""

from __future__ import annotations

import glob
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from . import npu_setup


PACKAGES = (
    "torch",
    "torch_npu",
    "torchvision",
    "diffusers",
    "transformers",
    "accelerate",
    "einops",
    "safetensors",
    "huggingface_hub",
    "modelscope",
    "numpy",
    "Pillow",
)

PROBE_SECONDS = 180
_PROBE = """
import json, sys
import torch
found = {"torch": torch.__version__, "cuda_build": torch.version.cuda, "devices": []}
wanted = [("cuda", torch.cuda)]
try:
    import torch_npu
    wanted.append(("npu", torch.npu))
except ModuleNotFoundError as error:
    if error.name != "torch_npu":
        raise
for kind, backend in wanted:
    for index in range(backend.device_count() if backend.is_available() else 0):
        free, total = backend.mem_get_info(index)
        name = backend.get_device_name(index)
        found["devices"].append({"device": f"{kind}:{index}", "name": name, "free": free, "total": total})
print("\\n" + json.dumps(found))
"""


@dataclass(frozen=True)
class Finding:
    """One thing to say.

    Attributes:
        level: ``problem`` (it will not work), ``advice`` (it works better otherwise).
        what: What was found.
        mend: What to do.
    """

    level: str
    what: str
    mend: str


@dataclass
class Examination:
    """Everything that was found, ready for JSON."""

    python: str
    system: str
    packages: dict[str, str | None]
    cann: str | None
    driver: str | None
    cards: list[str]
    devices: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, str | None] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        return not any(finding.level == "problem" for finding in self.findings)


def examine(environment: Mapping[str, str] | None = None, root: Path = Path("/")) -> Examination:
    """Look at this machine.

    Args:
        environment: Instead of the process's own.
        root: Instead of the root of the file system.
    """
    environment = os.environ if environment is None else environment
    found = Examination(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        packages={name: package_version(name) for name in PACKAGES},
        cann=npu_setup.cann_version(environment, root),
        driver=npu_setup.driver_version(root),
        cards=[f"/{path}" for path in sorted(glob.glob("dev/davinci[0-9]*", root_dir=root))],
        environment={name: environment.get(name) for name in npu_setup.VARIABLES},
    )
    probed, error = probe(environment)
    if probed is not None:
        found.devices = probed["devices"]
    found.findings = list(findings(found, error, environment))
    return found


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def probe(environment: Mapping[str, str]) -> tuple[dict[str, Any] | None, str | None]:
    """What torch finds in a process of its own, or the last line of its error."""
    try:
        child = subprocess.run(
            [sys.executable, "-c", _PROBE],
            capture_output=True,
            text=True,
            env=dict(environment),
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"torch did not answer within {PROBE_SECONDS} s"
    if child.returncode != 0:
        lines = child.stderr.strip().splitlines() or [f"exit status {child.returncode}"]
        # The cause stands in front of the error that torch makes of it.
        causes = [line for line in lines if "cannot open shared object" in line or "undefined symbol" in line]
        return None, (causes or lines)[-1 if not causes else 0].strip()
    return json.loads(child.stdout.strip().splitlines()[-1]), None


def findings(found: Examination, error: str | None, environment: Mapping[str, str]):
    """What is wrong, the most important first."""
    packages = found.packages
    for name in ("torch", "diffusers", "transformers", "huggingface_hub"):
        if packages[name] is None:
            yield Finding("problem", f"{name} is not installed.", "pip install -r requirements.txt")
    torch, torch_npu = packages["torch"], packages["torch_npu"]
    has_card = bool(found.cards) or any(device["device"].startswith("npu") for device in found.devices)
    if torch_npu is None:
        if has_card:
            yield Finding("problem", npu_setup.NOT_INSTALLED, npu_setup.install_command(torch))
    elif mismatch := npu_setup.mismatch(torch, torch_npu):
        yield Finding("problem", mismatch, npu_setup.install_command(torch))
    elif error is not None and npu_setup.is_missing_library(error):
        yield Finding("problem", f"{npu_setup.NOT_SOURCED} ({error}).", npu_setup.SOURCE_COMMAND)
    elif error is None and not any(device["device"].startswith("npu") for device in found.devices):
        level = "problem" if has_card else "advice"
        yield Finding(level, *npu_setup.no_card(environment, found.cards, found.driver))
    if error is not None and (torch_npu is None or not npu_setup.is_missing_library(error)):
        yield Finding("problem", f"torch does not load: {error}", "Reinstall torch for this Python and machine.")
    if torch_npu is not None:
        yield from (Finding("advice", *advice) for advice in npu_setup.advice(environment, torch_npu))


def as_text(found: Examination) -> str:
    """For reading, and for pasting into an issue."""
    lines = [f"Python {found.python} on {found.system}", ""]
    lines += _table([(name, installed or "-") for name, installed in found.packages.items()])
    lines += _table([("CANN", found.cann or "-"), ("Ascend driver", found.driver or "-")])
    lines += ["", "Devices"]
    lines += _table(
        [
            (device["device"], f"{device['name']}, {_gib(device['free'])} of {_gib(device['total'])} GiB free")
            for device in found.devices
        ]
        or [("cpu", "no accelerator was found")]
    )
    lines += ["", "Environment"]
    lines += _table([(name, value if value is not None else "-") for name, value in found.environment.items()])
    lines += [""]
    for finding in found.findings:
        lines += [f"{finding.level.upper()}: {finding.what}", f"    {finding.mend}"]
    lines += ["No problem was found." if found.healthy else "There are problems; see above."]
    return "\n".join(lines)


def as_json(found: Examination) -> str:
    return json.dumps({**asdict(found), "healthy": found.healthy}, indent=2)


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max((len(name) for name, _ in rows), default=0)
    return [f"  {name:{width}}  {value}" for name, value in rows]


def _gib(size: int) -> str:
    return f"{size / 1024**3:.1f}"
