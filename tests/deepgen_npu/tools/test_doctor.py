"""``python -m deepgen_npu doctor``, and what the other commands say where torch does not load."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from golden import TINY
from platforms import not_on_windows

from deepgen_npu import cli, npu_setup
from deepgen_npu.tools import doctor, probe
from deepgen_npu.tools.doctor import Report, as_json, as_text, findings, inspect_host


ROOT = Path(__file__).parents[3]
BEST = {
    "TASK_QUEUE_ENABLE": "2",
    "CPU_AFFINITY_CONF": "1",
    "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True",
}
GIB = 1024**3

# A torch that finds the cards in the variable CARDS (a JSON list of [kind, name, free, total]).
TORCH = """
import json, os, sys
class Backend:
    def __init__(self, kind):
        self.cards = [card for card in json.loads(os.environ.get("CARDS", "[]")) if card[0] == kind]
    def is_available(self): return bool(self.cards)
    def device_count(self): return len(self.cards)
    def get_device_name(self, index): return self.cards[index][1]
    def mem_get_info(self, index):
        if self.cards[index][2] is None:
            raise RuntimeError("the card is busy\\nsecond line")
        return self.cards[index][2:]
    def get_device_capability(self, index): return (7, 5)
cuda = Backend("cuda")
class version: hip = None
"""
# torch loads an installed torch_npu by itself, and wraps its error.
AUTOLOAD = """
try:
    import torch_npu
except ImportError as error:
    raise RuntimeError("Failed to load the backend extension: torch_npu. You can disable ...") from error
"""
TORCH_NPU = "import torch\ntorch.npu = torch.Backend('npu')\n"
NO_CANN = "raise ImportError('libhccl.so: cannot open shared object file: No such file or directory')\n"


def package(folder: Path, name: str, code: str, version: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code, encoding="utf-8")
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")


def host(folder: Path, torch: str = TORCH, torch_npu: str | None = TORCH_NPU, **environment: str) -> dict[str, str]:
    """The environment of a host whose torch and torch_npu are these."""
    package(folder, "torch", torch, "2.9.0+cpu")
    if torch_npu is not None:
        package(folder, "torch_npu", torch_npu, "2.9.0.post2")
    kept = {name: value for name, value in os.environ.items() if name not in npu_setup.VARIABLES}
    return {**kept, "PYTHONPATH": str(folder), **environment}


def npus(*free: int | None) -> str:
    return json.dumps([["npu", "Ascend910B3", amount, 64 * GIB] for amount in free])


def run(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deepgen_npu", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


def examined(**changes) -> Report:
    """A healthy host with two cards, changed."""
    packages = dict.fromkeys(doctor.PACKAGES, "1.0")
    packages |= {"torch": "2.9.0+cpu", "torch_npu": "2.9.0", "diffusers": "0.38.0", "transformers": "4.57.6"}
    packages |= {"huggingface_hub": "0.36.0", "requests": "2.32.5", **changes.pop("packages", {})}
    cards = [
        {"device": f"npu:{i}", "name": "Ascend910B3", "free": GIB, "total": 2 * GIB, "error": None} for i in (0, 1)
    ]
    facts = {"cards": ["/dev/davinci0", "/dev/davinci1"], "devices": cards, "cann": "8.5.1", "driver": "25.0"}
    facts |= {"deepgen": "0", "python": "3.11", "system": "Linux", "processor": "x", "environment": {}}
    return Report(packages=packages, **{**facts, **changes})


def problems(found: Report, environment=BEST, root: Path = Path("/nowhere")) -> list[tuple[str, str]]:
    return [
        (finding.what, finding.fix) for finding in findings(found, environment, root) if finding.level == "problem"
    ]


# This machine


def test_this_machine_without_a_card_is_healthy(capsys):
    """And the version of everything that is installed is shown."""
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    import diffusers
    import torch
    import transformers

    for name, module in (("torch", torch), ("diffusers", diffusers), ("transformers", transformers)):
        assert re.search(rf"^  {name} +{re.escape(module.__version__)}$", text, re.MULTILINE)
    for word in (
        "torch_npu",
        "accelerate",
        "einops",
        "CANN",
        "Ascend driver",
        "TASK_QUEUE_ENABLE",
        "CPU_AFFINITY_CONF",
    ):
        assert re.search(rf"^  {word} ", text, re.MULTILINE), word
    assert text.endswith("No problem was found.\n")


def test_who_wants_an_npu_misses_it(capsys):
    assert cli.main(["doctor", "--device", "npu"]) == 1
    text = capsys.readouterr().out
    assert "PROBLEM: torch_npu is not installed" in text and "\n    pip install " in text
    assert "problem(s) found." in text.splitlines()[-1]


@pytest.mark.slow
def test_json_is_for_scripts(capsys):
    assert cli.main(["doctor", "--json", "--device", "npu"]) == 1
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["healthy"] is False and outcome["wanted"] == "npu"
    assert set(doctor.PACKAGES) == set(outcome["packages"]) and set(npu_setup.VARIABLES) == set(outcome["environment"])
    assert {finding["level"] for finding in outcome["findings"]} == {"problem"}


@pytest.mark.parametrize("name", ["gpu", "npu:", "cpu:0", "auto", ""])
def test_unknown_devices_are_a_usage_error(name, capsys):
    assert cli.main(["doctor", "--device", name]) == 2
    assert "device must be npu, npu:N, cuda, cuda:N or cpu, got" in capsys.readouterr().err


def test_torch_is_not_imported():
    code = (
        "import sys; from deepgen_npu.tools.doctor import inspect_host; inspect_host(); print('torch' in sys.modules)"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert outcome == "False\n"


# Other machines, in a process of their own


def test_a_healthy_host_shows_its_cards_and_their_free_memory(tmp_path):
    environment = host(tmp_path, TORCH + AUTOLOAD, CARDS=npus(60 * GIB, 31 * GIB // 2), **BEST)
    outcome = run("doctor", "--device", "npu:1", environment=environment)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert re.search(r"npu:0 +Ascend910B3, 60.00 GiB of 64.00 GiB free", outcome.stdout)
    assert re.search(r"npu:1 +Ascend910B3, 15.50 GiB of 64.00 GiB free", outcome.stdout)
    assert re.search(r"torch_npu +2.9.0.post2", outcome.stdout)
    assert "ADVICE" not in outcome.stdout
    assert "dtype auto is bfloat16: Ascend910B3 is a 910B (Atlas A2), which has bfloat16" in outcome.stdout

    outcome = run("doctor", "--device", "npu:2", environment=environment)
    assert outcome.returncode == 1
    assert "PROBLEM: npu:2 does not exist: this machine has npu:0, npu:1" in outcome.stdout


def test_the_dtype_of_each_card(tmp_path):
    """torch_npu is asked first; a GPU by its compute capability; a card without a name has none."""
    answers = f"{TORCH_NPU}torch.npu.is_bf16_supported = lambda: False\n"
    cards = [["npu", "Ascend310P3", GIB, GIB], ["cuda", "T4", GIB, GIB]]
    environment = host(tmp_path, torch_npu=answers, CARDS=json.dumps(cards))
    found, error = probe.probe(environment)
    assert error is None
    assert [(card["dtype"], card["why"]) for card in found] == [
        ("float16", "torch_npu says that Ascend310P3 has no bfloat16"),
        ("float16", "T4 (compute capability 7.5) has no bfloat16"),
    ]
    assert probe._with_dtype(device="npu:0", name=None) == {
        "device": "npu:0", "name": None, "dtype": None, "why": None
    }  # fmt: skip


def test_a_card_that_does_not_answer_hides_no_other(tmp_path):
    outcome = run("doctor", "--json", environment=host(tmp_path, CARDS=npus(None, GIB), **BEST))
    found = json.loads(outcome.stdout)
    assert outcome.returncode == 1
    assert [device["free"] for device in found["devices"]] == [None, GIB]
    assert found["findings"][0]["what"] == "npu:0 does not answer: the card is busy"
    assert "npu-smi" in found["findings"][0]["fix"]
    assert "Ascend910B3, memory unknown" in run("doctor", environment=host(tmp_path / "2", CARDS=npus(None))).stdout


def test_advice_is_no_problem(tmp_path):
    outcome = run("doctor", environment=host(tmp_path, CARDS=npus(GIB)))
    assert outcome.returncode == 0
    for name in BEST:
        assert f"    export {name}=" in outcome.stdout


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "--model_path", str(TINY), "--device", "cpu"],
        ["generate", "--model_path", str(TINY)],
        ["bench", "--random-weights", "tiny"],
        ["verify", "--model_path", str(TINY)],
    ],
)
def test_without_cann_every_command_ends_in_one_error(tmp_path, command):
    """torch itself does not load there; the error has what is missing and what fixes it, and no traceback."""
    outcome = run(*command, environment=host(tmp_path, TORCH + AUTOLOAD, NO_CANN))
    assert outcome.returncode == 2 and outcome.stdout == ""
    error = " ".join(outcome.stderr.split())
    assert error.startswith("error: torch_npu is installed, but ") and "libhccl.so" in error
    assert "set_env.sh" in error and error.endswith("To run without an NPU: pip uninstall torch_npu")


@pytest.mark.skipif(bool(npu_setup.cann_folders({})), reason="CANN is installed here")
def test_without_cann_the_doctor_says_so(tmp_path):
    environment = host(tmp_path / "packages", TORCH + AUTOLOAD, NO_CANN, HOME=str(tmp_path))
    outcome = run("doctor", environment=environment)
    assert outcome.returncode == 1
    assert f"PROBLEM: {npu_setup.NO_CANN} (libhccl.so)" in outcome.stdout
    # Installed for this user, and not sourced.
    script = tmp_path / "Ascend" / "cann" / "set_env.sh"
    script.parent.mkdir(parents=True)
    script.touch()
    outcome = run("doctor", environment=environment)
    assert f"PROBLEM: {npu_setup.NOT_SOURCED} (libhccl.so)\n    source {script}\n" in outcome.stdout
    assert "Traceback" not in outcome.stdout + outcome.stderr


def test_another_error_keeps_its_traceback(tmp_path):
    outcome = run("bench", "--random-weights", "tiny", environment=host(tmp_path, "raise RuntimeError('mine')", None))
    assert outcome.returncode == 1 and "Traceback" in outcome.stderr and "RuntimeError: mine" in outcome.stderr


# Other machines, as they were found


def test_a_healthy_host():
    assert problems(examined()) == []
    assert problems(examined(wanted="npu")) == problems(examined(wanted="npu:1")) == []
    assert problems(examined(wanted="cpu")) == []
    assert list(findings(examined(), BEST, Path("/nowhere"))) == []


def test_a_card_and_no_torch_npu(python_of_all_stacks):
    for wanted in (None, "npu"):
        found = examined(packages={"torch_npu": None}, devices=[], wanted=wanted)
        (problem,) = problems(found)
        assert "but there is /dev/davinci0, /dev/davinci1" in problem[0]
        assert problem[1] == "pip install torch_npu==2.9.0"


def test_torch_npu_and_no_card():
    """That is a CPU machine with a package too many, unless an NPU was asked for."""
    found = examined(cards=[], devices=[], driver=None)
    assert problems(found) == []
    (advice,) = findings(found, BEST, Path("/nowhere"))
    assert advice.level == "advice" and "no Ascend card" in advice.what
    (problem,) = problems(examined(cards=[], devices=[], driver=None, wanted="npu"))
    assert "no Ascend card" in problem[0]


def test_a_card_that_torch_npu_does_not_find():
    found = examined(devices=[])
    hidden = {**BEST, "ASCEND_RT_VISIBLE_DEVICES": "7"}
    (problem,) = problems(found, hidden)
    assert "ASCEND_RT_VISIBLE_DEVICES is '7'" in problem[0]
    (problem,) = problems(found)
    assert "although there is /dev/davinci0" in problem[0]


def test_releases_that_do_not_belong_together(python_of_all_stacks):
    """Told once, whether torch still loads or not."""
    for error in (None, "ImportError: undefined symbol: x"):
        found = examined(packages={"torch": "2.13.0"}, torch_error=error, devices=[] if error else examined().devices)
        (problem,) = problems(found)
        assert "torch_npu 2.9.0 does not belong to torch 2.13.0" in problem[0]
        assert problem[1].startswith("pip install -r requirements-npu")


def test_settings_at_which_torch_npu_stops():
    found = examined(packages={"torch": "2.10.0", "torch_npu": "2.10.0"})
    assert problems(found, {**BEST, "PYTORCH_ALLOC_CONF": "x"})[0][1] == "unset PYTORCH_ALLOC_CONF"


def test_no_torch():
    found = examined(packages={"torch": None}, devices=[])
    assert [problem[0] for problem in problems(found)] == ["torch is not installed in this Python"]


def test_a_broken_torch():
    found = examined(packages={"torch_npu": None}, cards=[], devices=[], torch_error="OSError: x\nImportError: broken")
    assert [problem[0] for problem in problems(found)] == ["torch does not load (ImportError: broken)"]


def test_cuda():
    card = {"device": "cuda:0", "name": "H100", "free": GIB, "total": GIB, "error": None}
    cuda = {"packages": {"torch_npu": None}, "cards": []}
    for wanted, count in ((None, 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), ("npu", 1)):
        assert len(problems(examined(**cuda, devices=[card], wanted=wanted))) == count, wanted
    (problem,) = problems(examined(**cuda, devices=[], wanted="cuda"))
    assert problem[0] == "cuda does not exist: torch finds no CUDA device" and "nvidia-smi" in problem[1]


def test_packages_that_are_missing_or_too_old():
    """By the versions of requirements.txt."""
    versions = doctor.requirements()["diffusers"]
    (problem,) = problems(examined(packages={"diffusers": "0.32.2"}))
    assert problem == (f"diffusers must be {versions}, got 0.32.2", f'pip install "diffusers{versions}"')
    assert problems(examined(packages={"diffusers": f"{versions.removeprefix('>=')}.dev0"})) == []


def test_a_missing_package(monkeypatch):
    monkeypatch.setattr(doctor, "package_version", lambda name: None)
    (problem,) = problems(examined(packages={"transformers": None}))
    assert problem[0] == "transformers is not installed in this Python"


@not_on_windows("its paths have \\, and no Ascend host runs it")
def test_files_of_a_host_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "probe", lambda environment: ([], None))
    for name, text in {
        "dev/davinci0": "",
        "usr/local/Ascend/driver/version.info": "Version=25.0.rc1\n",
        "usr/local/Ascend/cann/aarch64-linux/ascend_toolkit_install.info": "version=8.5.1\n",
        "proc/cpuinfo": "processor : 0\nmodel name\t: Kunpeng-920\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = inspect_host(environment={"TASK_QUEUE_ENABLE": "1"}, root=tmp_path)
    assert (found.cann, found.driver, found.cards) == ("8.5.1", "25.0.rc1", ["/dev/davinci0"])
    assert found.processor.startswith("Kunpeng-920, ")
    assert found.environment["TASK_QUEUE_ENABLE"] == "1"
    text = as_text(found)
    for words in (r"CANN +8\.5\.1", r"Ascend driver +25\.0\.rc1", "card files +/dev/davinci0", "TASK_QUEUE_ENABLE +1"):
        assert re.search(words, text), words
    assert json.loads(as_json(found))["cann"] == "8.5.1"
    named = doctor.versions({}, tmp_path)
    assert named["CANN"] == "8.5.1" and named["Ascend driver"] == "25.0.rc1" and "torch_npu" not in named


def test_a_torch_in_the_current_folder_is_not_imported(tmp_path, monkeypatch):
    """Which is whoever's the folder is."""
    for name in ("torch", "json"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    package(tmp_path / "site", "torch", TORCH, "2.9.0")
    monkeypatch.chdir(tmp_path)
    cards = json.dumps([["cuda", "A card", GIB, 2 * GIB]])
    found, error = probe.probe({**os.environ, "PYTHONPATH": str(tmp_path / "site"), "CARDS": cards})
    assert error is None and [card["name"] for card in found] == ["A card"]
    assert not (tmp_path / "ran").exists()


def test_a_torch_that_hangs(monkeypatch):
    monkeypatch.setattr(probe, "PROBE_SECONDS", 0.01)
    devices, error = probe.probe(os.environ)
    assert devices == [] and "did not answer within 0.01 s" in str(error)


def test_nothing_is_set_for_the_user():
    """Advice is given and followed by nobody but the user."""
    for path in (ROOT / "deepgen_npu").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"environ\[[^]]+\]\s*=|environ\.setdefault|putenv|environ\.update", text), path
