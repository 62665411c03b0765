"""The Dockerfile, as far as that can be seen without Docker: its arguments, pins, files and shell.

hadolint lints it in `make third-party-checks`.
"""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
from pathlib import Path

import pytest
from platforms import not_on_windows

from deepgen_npu import npu_versions
from dev import ROOT
from dev.comfyui.checkouts import DEFAULT_PATHS
from dev.published_tree import published_files


TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LINES = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE)).splitlines()
INSTRUCTIONS = [(line.partition(" ")[0], line.partition(" ")[2]) for line in LINES if line]
DEFAULTS = dict(rest.split("=", 1) for name, rest in INSTRUCTIONS if name == "ARG" and "=" in rest)


def of(name: str) -> list[str]:
    return [rest for instruction, rest in INSTRUCTIONS if instruction == name]


def filled(text: str) -> str:
    """With the defaults of all arguments."""
    while "${" in text:
        text = re.sub(r"\$\{(\w+)\}", lambda match: DEFAULTS[match[1]], text)
    return text


def test_it_is_built_on_the_image_of_a_pair():
    assert filled(of("FROM")[0]) == "quay.io/ascend/torch-npu:2.12.0-cann9.1.0-910b-ubuntu22.04-py3.12"
    assert npu_versions.pairing(DEFAULTS["TORCH_NPU"], DEFAULTS["CANN"]) == "pair"
    for_comfyui = f"torchvision=={DEFAULTS['TORCHVISION']} torchaudio=={DEFAULTS['TORCHAUDIO']}"
    assert npu_versions.STACKS[(9, 1)] == (DEFAULTS["STACK"], for_comfyui)
    assert f"torch_npu=={DEFAULTS['TORCH_NPU']}\n" in (ROOT / DEFAULTS["STACK"]).read_text(encoding="utf-8")


def test_its_comfyui_is_the_newest_that_is_tested():
    tested = [re.findall(r"\d+", path) for path in DEFAULT_PATHS]
    assert DEFAULTS["COMFYUI"] == "v" + ".".join(max(tested, key=lambda numbers: [int(one) for one in numbers]))


def test_each_argument_is_used_and_each_name_is_an_argument():
    """Within the image, those before FROM have to be named again."""
    used = re.findall(r"\$\{([A-Z_]+)\b", "\n".join(rest for _, rest in INSTRUCTIONS))
    assert set(used) | {"PIP_EXTRA_INDEX_URL"} == set(DEFAULTS)  # which pip reads itself
    inside = INSTRUCTIONS[[name for name, _ in INSTRUCTIONS].index("FROM") + 1 :]
    declared: set[str] = set()
    for name, rest in inside:
        declared |= {rest.partition("=")[0]} if name == "ARG" else set()
        assert set(re.findall(r"\$\{([A-Z_]+)\b", rest)) <= declared, rest


def test_every_package_that_it_names_is_pinned():
    (install,) = [rest for rest in of("RUN") if "pip install" in rest]
    named = re.findall(r'"([^"]+)"', install.split("pip install")[1])
    assert len(named) == 3 and all(re.fullmatch(r"[\w-]+==\$\{\w+\}", one) for one in named)


def test_it_copies_what_the_registry_publishes():
    for source in (rest.split()[0] for rest in of("COPY")):
        assert (ROOT / filled(source)).exists(), source
    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    patterns = [pattern for pattern in patterns if pattern and pattern[0] != "#"]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    top = {Path(name).parts[0] for name in tracked.splitlines()}
    copied = {name for name in top if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)}
    assert copied == {Path(name).parts[0] for name in published_files()} - {".comfyignore"}


def test_it_does_not_run_as_root():
    assert of("USER") == ["${USER_ID}:${GROUP_ID}"] and int(DEFAULTS["USER_ID"]) > 0


@not_on_windows("it has no bash")
class TestItsShell:
    @pytest.mark.parametrize("command", of("RUN"))
    def test_commands_are_well_formed(self, command):
        assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0

    def test_the_stack_takes_the_torch_of_the_torch_npu(self, tmp_path):
        (edit,) = [rest.partition("&&")[0] for rest in of("RUN") if rest.startswith("sed ")]
        (tmp_path / "stack.txt").write_text("torch==1\ntorch_npu==1\ntorchvision==1\n", encoding="utf-8")
        environment = {"TORCH_NPU": "2.9.0.post6", "PATH": "/usr/bin:/bin"}
        subprocess.run(["bash", "-c", edit], check=True, env=environment, cwd=tmp_path)
        lines = (tmp_path / "stack.txt").read_text(encoding="utf-8").splitlines()
        assert lines == ["torch==2.9.0", "torch_npu==2.9.0.post6", "torchvision==1"]

    @pytest.mark.parametrize(
        ("arguments", "runs"),
        [
            ([], "python3 main.py --listen 0.0.0.0 npu"),
            (["--port", "80"], "python3 main.py --listen 0.0.0.0 --port 80 npu"),
            (["echo", "a command"], "a command"),
        ],
    )
    def test_it_runs_comfyui_or_a_command(self, tmp_path, arguments, runs):
        """In the environment of CANN."""
        (tmp_path / "set_env.sh").write_text("export CARD=npu\n", encoding="utf-8")
        (tmp_path / "python3").write_text('#!/bin/sh\necho python3 "$@" "$CARD"\n', encoding="utf-8")
        (tmp_path / "python3").chmod(0o755)
        shell, option, script, *rest = json.loads(of("ENTRYPOINT")[0])
        script = script.replace("/usr/local/Ascend/ascend-toolkit/set_env.sh", str(tmp_path / "set_env.sh"))
        done = subprocess.run(
            [shell, option, script, *rest, *arguments],
            check=True, capture_output=True, text=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        )  # fmt: skip
        assert done.stdout == f"{runs}\n"
