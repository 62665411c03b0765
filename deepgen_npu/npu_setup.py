"""What an Ascend host needs, and how to tell which part of it is missing. Nothing here imports torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path


SOURCE_COMMAND = "source /usr/local/Ascend/ascend-toolkit/set_env.sh"

NOT_INSTALLED = "torch_npu is not installed in this Python"
NOT_SOURCED = "torch_npu is installed, but the libraries of CANN are not found: its environment is not sourced"

VARIABLES = (
    "ASCEND_HOME_PATH",
    "ASCEND_TOOLKIT_HOME",
    "ASCEND_RT_VISIBLE_DEVICES",
    "ASCEND_LAUNCH_BLOCKING",
    "TASK_QUEUE_ENABLE",
    "CPU_AFFINITY_CONF",
    "PYTORCH_NPU_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "TORCH_DEVICE_BACKEND_AUTOLOAD",
    "HF_ENDPOINT",
    "LD_LIBRARY_PATH",
)
"""Environment variables that matter on an Ascend host."""


def release(version: str | None) -> tuple[int, int] | None:
    """Major and minor number of a version."""
    match = re.match(r"(\d+)\.(\d+)", version or "")
    return (int(match[1]), int(match[2])) if match else None


def mismatch(torch: str | None, torch_npu: str | None) -> str | None:
    """Why these releases of torch and torch_npu do not belong together, or None."""
    if torch is None or torch_npu is None or release(torch) == release(torch_npu):
        return None
    return f"torch_npu {torch_npu} does not belong to torch {torch}: the first two numbers have to be the same"


def install_command(torch: str | None) -> str:
    """The command that installs the torch_npu of a torch."""
    numbers = release(torch)
    wanted = f"torch_npu=={numbers[0]}.{numbers[1]}.*" if numbers else "-r requirements-npu.txt"
    return f'pip install "{wanted}"' if numbers else f"pip install {wanted}"


def is_missing_library(error: str) -> bool:
    """Whether an error of the import says that a library of CANN is not found."""
    return bool(re.search(r"lib(hccl|ascend|acl|ge_|graph|runtime|atb)\w*\.so", error))


def no_card(environment: Mapping[str, str], cards: Sequence[str], driver: str | None) -> tuple[str, str]:
    """Why a working torch_npu finds no card, and what to do."""
    visible = environment.get("ASCEND_RT_VISIBLE_DEVICES")
    if cards and visible is not None:
        return (
            f"torch_npu finds no NPU, although there is {', '.join(cards)}: ASCEND_RT_VISIBLE_DEVICES is {visible!r}",
            "unset ASCEND_RT_VISIBLE_DEVICES, or set it to the number of a card of `npu-smi info`",
        )
    if cards:
        return (
            f"torch_npu finds no NPU, although there is {', '.join(cards)}",
            "npu-smi info  # does it list the card as OK, and may this user read it (group HwHiAiUser)?",
        )
    if driver is not None:
        return (
            "torch_npu finds no NPU: the driver is installed, but no card is at /dev/davinci*",
            "npu-smi info  # in a container, start it with --device /dev/davinci0 (and the manager devices)",
        )
    return (
        "torch_npu finds no NPU: no Ascend driver and no card are on this machine",
        "Install the driver and firmware of the card, or choose --device auto or --device cpu",
    )


def cann_version(environment: Mapping[str, str], root: Path = Path("/")) -> str | None:
    """The release of CANN that the environment points to, or else of its usual place."""
    homes = [environment.get(name) for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")]
    places = [Path(home) for home in homes if home] + [root / "usr/local/Ascend/ascend-toolkit/latest"]
    for place in places:
        for name in ("*-linux/ascend_toolkit_install.info", "version.cfg", "compiler/version.info"):
            for path in sorted(place.glob(name)):
                if found := _version_in(path):
                    return found
    return None


def driver_version(root: Path = Path("/")) -> str | None:
    return _version_in(root / "usr/local/Ascend/driver/version.info")


def _version_in(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(r"^\s*\w*version\w*\s*=\s*\[?([\w.:\-]+)", text, re.IGNORECASE | re.MULTILINE)
    return match[1].rpartition(":")[2] if match else None


def advice(environment: Mapping[str, str], torch_npu: str) -> Iterator[tuple[str, str]]:
    """Settings that are known to help, and such that hurt. Nothing sets them but the user."""
    if environment.get("ASCEND_LAUNCH_BLOCKING") == "1":
        yield (
            "ASCEND_LAUNCH_BLOCKING=1 makes the host wait for every operator: for finding errors, not for work",
            "unset ASCEND_LAUNCH_BLOCKING",
        )
    if environment.get("TASK_QUEUE_ENABLE") != "2":
        yield (
            "TASK_QUEUE_ENABLE=2 launches operators in two stages, faster than the default 1, for some more memory",
            "export TASK_QUEUE_ENABLE=2",
        )
    if "CPU_AFFINITY_CONF" not in environment:
        yield (
            "CPU_AFFINITY_CONF binds threads to the card's processor cores; measure it, ComfyUI has further threads",
            "export CPU_AFFINITY_CONF=1",
        )
    both = "PYTORCH_NPU_ALLOC_CONF" in environment and "PYTORCH_ALLOC_CONF" in environment
    if both and (release(torch_npu) or (0, 0)) >= (2, 10):
        yield (
            "PYTORCH_NPU_ALLOC_CONF and PYTORCH_ALLOC_CONF are both set, at which torch_npu 2.10 and later stops",
            "unset PYTORCH_ALLOC_CONF",
        )
    elif "PYTORCH_NPU_ALLOC_CONF" not in environment and "PYTORCH_ALLOC_CONF" not in environment:
        yield (
            "expandable segments leave fewer gaps in the card's memory",
            "export PYTORCH_NPU_ALLOC_CONF=expandable_segments:True",
        )
