"""What ``python -m deepgen_npu doctor`` says on Ascend hosts of all kinds, whose files and packages are faked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from platforms import not_on_windows

from deepgen_npu import auto_dtype
from deepgen_npu.tools import doctor
from deepgen_npu.tools.doctor import as_text, inspect_host


BEST = {"TASK_QUEUE_ENABLE": "2", "CPU_AFFINITY_CONF": "1", "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True"}
NO_LIBRARY = "ImportError: libhccl.so: cannot open shared object file\nRuntimeError: Failed to load the backend"
NO_SYMBOL = "ImportError: torch_npu/lib/libtorch_npu.so: undefined symbol: aclrtFoo"
GIB = 2**30
ROOT = Path(__file__).parents[3]

pytestmark = [
    not_on_windows("its paths have \\, and no Ascend host runs it"),
    pytest.mark.usefixtures("python_of_all_stacks"),
]


@pytest.fixture
def transcript(tmp_path, monkeypatch):
    """The report on a host: rows of its tables by their names, and what follows them, line by line."""

    def put(name: str, text: str = "") -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")

    def transcript(
        torch: str | None = None, torch_npu: str | None = None, cann: str | None = None, driver: str | None = "25.5.0",
        card: str | None = "Ascend910B3", error: str | None = None, works: bool = False, wanted: str | None = None,
        diffusers: str | None = "0.38.0",
    ) -> tuple[dict[str, str], list[str]]:  # fmt: skip
        if card is not None:
            put("dev/davinci0")
        if driver is not None:
            put("usr/local/Ascend/driver/version.info", f"Version={driver}\n")
        if cann is not None:
            put("usr/local/Ascend/cann/aarch64-linux/ascend_toolkit_install.info", f"version={cann}\n")
            put("usr/local/Ascend/cann/set_env.sh")
        packages = {"torch": torch, "torch_npu": torch_npu, "diffusers": diffusers, "transformers": "4.57.6"}
        packages |= {"huggingface_hub": "0.36.0", "requests": "2.32.5"}
        dtype, why = auto_dtype.on_npu(card or "", None)
        device = {"device": "npu:0", "name": card, "free": GIB, "total": 2 * GIB, "error": None}
        device |= {"dtype": dtype, "why": why}
        monkeypatch.setattr(doctor, "package_version", packages.get)
        monkeypatch.setattr(doctor, "probe", lambda environment: ([device] if works else [], error))
        text = as_text(inspect_host(wanted, BEST, tmp_path)).replace(str(tmp_path), "")
        rows = dict(re.findall(r"^  (\S+(?: \S+)*|) {2,}(\S.*)$", text, re.MULTILINE))
        return rows, text.rpartition("\n\n")[2].splitlines()

    return transcript


DRIVER = (
    "PROBLEM: this machine has no Ascend card, or no driver for it",
    "    Install driver and firmware of the card; npu-smi info then lists it",
)
NO_CANN = (
    "PROBLEM: CANN is not found on this machine",
    "    Install CANN 9.1.0 (toolkit, and the ops package of the card); if it is installed in a folder of its own, "
    "source the set_env.sh there",
)
NO_PACKAGES = (
    "PROBLEM: torch and torch_npu are not installed in this Python",
    "    pip install -r requirements-npu-cann9.1.txt torchvision==0.27.0 torchaudio==2.11.0",
)
REPORT = "    pip install -r requirements-npu.txt torchvision==0.24.0 torchaudio==2.9.0"
NO_TORCH_NPU = "PROBLEM: torch_npu is not installed in this Python, but there is /dev/davinci0"
NOT_SOURCED = (
    "PROBLEM: torch_npu is installed, but the environment of CANN is not sourced: its libraries are not found "
    "(libhccl.so)",
    "    source /usr/local/Ascend/cann/set_env.sh",
)
NOT_COMPATIBLE = "Ascend's release notes do not call them compatible"
ONE, WELL = ("1 problem(s) found.",), ("No problem was found.",)


def several(count: int) -> tuple[str]:
    return (f"{count} problem(s) found. Fix them in this order: each may need those above it.",)


HOSTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    # From the driver up: what is missing, in the order in which the README installs it.
    "an ordinary computer": (
        {"card": None, "driver": None, "torch": "2.13.0", "wanted": "npu"},
        (*DRIVER, *NO_CANN, "PROBLEM: torch_npu is not installed in this Python",
         f"{NO_PACKAGES[1]}  # CANN 9.1.0 has no torch_npu for torch 2.13.0", *several(3)),
    ),
    "a server as it was delivered": ({"card": None, "driver": None, "wanted": "npu"},
                                     (*DRIVER, *NO_CANN, *NO_PACKAGES, *several(3))),
    "a container without the driver": (
        {"driver": None, "cann": "9.1.0", "torch": "2.12.0", "torch_npu": "2.12.0"},
        ("PROBLEM: torch_npu finds no NPU: there is /dev/davinci0, but no driver in /usr/local/Ascend/driver",
         "    Start the container with -v /usr/local/Ascend/driver:/usr/local/Ascend/driver:ro; outside of a "
         "container, install the driver", *ONE),
    ),
    "a driver": ({}, (*NO_CANN, *NO_PACKAGES, *several(2))),
    "CANN 8.5": ({"cann": "8.5.1"}, (NO_PACKAGES[0], REPORT, *ONE)),
    "CANN 9.1": ({"cann": "9.1.0", "diffusers": None}, (*NO_PACKAGES, *ONE)),
    "CANN 9.0, for which there is no file": (
        {"cann": "9.0.0", "diffusers": None},
        (NO_PACKAGES[0], "    pip install torch==2.10.0 torch_npu==2.10.0",
         "PROBLEM: diffusers is not installed in this Python", '    pip install "diffusers>=0.33.0"', *several(2)),
    ),
    "a torch_npu without CANN": ({"torch": "2.12.0", "torch_npu": "2.12.0", "error": NO_LIBRARY}, (*NO_CANN, *ONE)),
    "a torch": ({"cann": "9.0.0", "torch": "2.9.0"}, (NO_TORCH_NPU, "    pip install torch_npu==2.9.0.post2", *ONE)),
    "a torch without a build": (
        {"cann": "8.5.0", "torch": "2.12.0"},
        (NO_TORCH_NPU, f"{REPORT}  # CANN 8.5.0 has no torch_npu for torch 2.12.0", *ONE),
    ),
    "CANN is not sourced": ({"cann": "8.5.1", "torch": "2.9.0", "torch_npu": "2.9.0", "error": NO_LIBRARY},
                            (*NOT_SOURCED, *ONE)),
    "neither a pair nor sourced": (
        {"cann": "9.1.0", "torch": "2.8.0", "torch_npu": "2.8.0", "error": NO_LIBRARY},
        ("PROBLEM: torch_npu 2.8.0 is built for CANN 8.3.RC1, this machine has CANN 9.1.0: "
         f"{NOT_COMPATIBLE}",
         f"{NO_PACKAGES[1]}  # CANN 9.1.0 has no torch_npu for torch 2.8.0",
         *NOT_SOURCED, *several(2)),
    ),
    "a symbol is missing": (
        {"cann": "8.5.1", "torch": "2.8.0", "torch_npu": "2.8.0", "error": NO_SYMBOL},
        ("PROBLEM: torch_npu 2.8.0 is built for CANN 8.3.RC1, this machine has CANN 8.5.1: "
         f"{NOT_COMPATIBLE}", "    pip install torch_npu==2.8.0.post2", *ONE),
    ),
    # Cards that work.
    "compatible": (
        {"cann": "8.5.1", "torch": "2.9.0", "torch_npu": "2.9.0.post2", "works": True},
        ("ADVICE: torch_npu 2.9.0.post2 is built for CANN 9.0.0, this machine has CANN 8.5.1: compatible by Ascend's "
         "release notes, but not the pair", "    pip install torch_npu==2.9.0", *WELL),
    ),
    "later than the table": ({"cann": "9.3.0", "torch": "2.15.0", "torch_npu": "2.15.0", "works": True}, WELL),
    "not in the table": ({"cann": "9.1.0", "torch": "2.9.1", "torch_npu": "2.9.1", "works": True}, WELL),
}  # fmt: skip


@pytest.mark.parametrize(("host", "told"), HOSTS.values(), ids=HOSTS)
def test_what_is_missing_and_in_which_order(transcript, host, told):
    assert transcript(**host)[1] == list(told)


# Cards of each kind, and pairs: dtype and pair as the report names them.
CARDS = [
    ("Ascend910B3", "8.5.1", "2.9.0", "bfloat16", "yes, torch_npu 2.9.0 is built for CANN 8.5.0"),
    ("Ascend910B3", "9.0.0", "2.9.0.post2", "bfloat16", "yes, torch_npu 2.9.0.post2 is built for CANN 9.0.0"),
    ("Ascend910B4-1", "9.1.0", "2.12.0", "bfloat16", "yes, torch_npu 2.12.0 is built for CANN 9.1.0"),
    ("Ascend910A", "8.5.0", "2.9.0", "float16", "yes, torch_npu 2.9.0 is built for CANN 8.5.0"),
    ("Ascend910B", "9.0.0", "2.10.0", "float16", "yes, torch_npu 2.10.0 is built for CANN 9.0.0"),
    ("Ascend910_9382", "9.1.1", "2.12.0.post2", "bfloat16", "yes, torch_npu 2.12.0.post2 is built for CANN 9.1.x"),
    ("Ascend950PR_9589", "9.2.0", "2.14.0", "bfloat16", "yes, torch_npu 2.14.0 is built for CANN 9.2.0"),
    ("Ascend310P3", "9.1.0", "2.9.0.post6", "float16", "yes, torch_npu 2.9.0.post6 is built for CANN 9.1.0"),
    ("Ascend310B4", "8.5.0", "2.9.0", "float32", "yes, torch_npu 2.9.0 is built for CANN 8.5.0"),
    ("Ascend910B3", "9.1.0", "2.9.1", "bfloat16", "unknown: torch_npu 2.9.1 is not in Ascend's table"),
    ("Ascend910B3", "9.3.0", "2.14.0", "bfloat16",
     "unknown: CANN 9.3.0 is not in Ascend's table, torch_npu 2.14.0 is built for 9.2.0"),
]  # fmt: skip


@pytest.mark.parametrize(("card", "cann", "torch_npu", "dtype", "pair"), CARDS)
def test_cards_and_pairs(transcript, card, cann, torch_npu, dtype, pair):
    torch = ".".join(torch_npu.split(".")[:3])
    rows, _ = transcript(torch, torch_npu, cann, card=card, works=True, wanted="npu")
    assert (rows["CANN"], rows["torch_npu"], rows["torch_npu for CANN"]) == (cann, torch_npu, pair)
    assert rows["npu:0"].startswith(f"{card}, ") and rows[""].startswith(f"dtype auto is {dtype}: ")


@pytest.mark.parametrize("card", auto_dtype.CARDS)
def test_the_page_has_each_card(card):
    page = (ROOT / "docs" / "ascend.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.splitlines() if line.count("|") == 7 and "`Ascend" in line]
    (row,) = [row for row in rows if auto_dtype.card_of(row[3].split("`")[1].rstrip("*")) == card]
    assert len(rows) == len(auto_dtype.CARDS) and row[4].strip().startswith(card.dtype)


def test_the_packages_of_a_torch_npu_without_its_torch(transcript):
    _, told = transcript(None, "2.12.0", "9.1.0")
    assert told == ["PROBLEM: torch is not installed in this Python", "    pip install torch==2.12.0", *ONE]
