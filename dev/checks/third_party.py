"""Third-party checkers, on the pack as the registry publishes it.

    python -m dev.checks.third_party [--release]

Every run validates and packs the pack with comfy-cli, lints it with comfy-test, and checks it against each ComfyUI
with comfy-import-guard and comfy-lint; hadolint reads the Dockerfile. ``--release`` adds nodesafe, which looks for
suspicious code, and comfy-test in a running ComfyUI.

Run it in an environment with dev/requirements/checks.txt. The exit status is 1 if any check fails. ComfyUI checkouts
and their interpreters are found as the tests find them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from dev import ROOT
from dev.checks.nodesafe import unexplained
from dev.comfyui.checkouts import PATH_VARIABLE, Checkout, find_checkouts
from dev.comfyui.server import PACK_NAME, ComfyServer, ServerError, ServerOptions
from dev.layered_environment import PIP, make_layer, site_packages
from dev.published_tree import published_files, write_published_tree


COMFY = ("comfy", "--skip-prompt", "--no-enable-telemetry")
# As a module: the console script is in the environment of this process, not in that of ComfyUI.
COMFY_TEST = ("-c", "import sys; from comfy_test.cli import main; sys.exit(main())")


class CheckFailed(Exception):
    """A check failed; the message says why."""


def run(*command: object, cwd: Path, env: Mapping[str, str] | None = None, accept: tuple[int, ...] = (0,)) -> str:
    """Run a checker, show its output and return it. A name without a folder is a program beside this interpreter."""
    first, *rest = map(str, command)
    program = first if os.sep in first else str(Path(sys.executable).with_name(first))
    # Requests of a checker to the local server must not go to the proxies of the machine.
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "PYTHONUTF8": "1", **(env or {})}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    done = subprocess.run(
        [program, *rest], cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL,
    )  # fmt: skip
    print(done.stdout.rstrip(), flush=True)
    if done.returncode not in accept:
        raise CheckFailed(f"exit status {done.returncode}")
    return done.stdout


def node_validate(tree: Path, work: Path) -> None:
    """``comfy node validate``, without warnings."""
    output = run(*COMFY, "node", "validate", cwd=tree)
    if "warning" in output.lower():
        raise CheckFailed("a warning of `comfy node validate` costs the pack a listing")


def node_pack(tree: Path, work: Path) -> None:
    """The packer of the registry publishes the same files as `dev.published_tree`."""
    clone = work / "clone"
    files = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], check=True, capture_output=True, text=True)
    for name in filter(None, files.stdout.split("\0")):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, clone / name)
    subprocess.run(["git", "init", "-q", "."], cwd=clone, check=True)
    subprocess.run(["git", "add", "-A"], cwd=clone, check=True)
    run(*COMFY, "node", "pack", cwd=clone)
    with ZipFile(clone / "node.zip") as archive:
        packed = {name for name in archive.namelist() if not name.endswith("/")}
    size = (clone / "node.zip").stat().st_size
    print(f"{len(packed)} files, {size / 2**20:.1f} MiB")
    if packed != set(published_files()):
        raise CheckFailed(f"packed or published, but not both: {sorted(packed ^ set(published_files()))}")


def comfy_test_lint(tree: Path, work: Path) -> None:
    """The static rules of comfy-test."""
    run("comfy-test", "lint", ".", cwd=tree, env=comfy_test_folders(work))


def hadolint(tree: Path, work: Path) -> None:
    """The rules of hadolint, all of them. The Dockerfile is not published."""
    run("hadolint", "--no-color", ROOT / "Dockerfile", cwd=work)


def nodesafe(tree: Path, work: Path) -> None:
    """nodesafe, without findings that nodesafe.json does not explain."""
    # Its exit status counts explained findings, too.
    output = subprocess.run(
        [str(Path(sys.executable).with_name("nodesafe")), "scan", ".", "--format", "json"],
        cwd=tree, capture_output=True, text=True, encoding="utf-8",
    ).stdout  # fmt: skip
    problems, explained = unexplained(output, tree)
    print(f"{explained} findings explained in nodesafe.json")
    if problems:
        raise CheckFailed("\n".join(problems))


def import_guard(checkout: Checkout, tree: Path, work: Path) -> None:
    """Every name and call of ComfyUI that the pack uses exists in this ComfyUI."""
    # It reads ComfyUI from a clean git clone, so the Python files of the checkout are committed to a new one.
    sources = work / "cache" / "ComfyUI"
    for source in checkout.path.rglob("*.py"):
        relative = source.relative_to(checkout.path)
        if relative.parts[0] not in {"custom_nodes", "venv", ".venv"}:
            (sources / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, sources / relative)
    git = ["git", "-c", "user.name=check", "-c", "user.email=check@localhost"]
    for command in (["init", "-q", "."], ["add", "-A", "-f"], ["commit", "-q", "-m", checkout.id]):
        subprocess.run([*git, *command], cwd=sources, check=True)
    install = work / "install"
    shutil.copytree(tree, install / "custom_nodes" / PACK_NAME)
    guard = ["comfy-import-guard", "--offline", "--cache-dir", work / "cache", "check", "--comfy-dir", install]
    output = run(*guard, "--target", "HEAD", "--no-update", "--strict", cwd=tree)
    if re.search(r"\b1 safe\b", output) is None:
        raise CheckFailed("it did not check the pack")


def comfy_test_folders(work: Path) -> dict[str, str]:
    """Variables without which comfy-test asks at the terminal."""
    return {"COMFY_TEST_LOGS_DIR": str(work / "logs"), "COMFY_TEST_WORKSPACE_DIR": str(work / "workspace")}


def simplified(workflow: dict[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any] | None:
    """A workflow that the level "validation" of comfy-test can read; None if it has a subgraph.

    The level does not support notes, which only the front end has, nor the control after a seed, and takes the
    lists of V3 ("COMBO") for links. What is left are numbers, switches, texts, links and node types; comfy-lint
    checks the lists in the workflows of API format.
    """
    if workflow.get("definitions", {}).get("subgraphs"):
        return None
    workflow["nodes"] = [node for node in workflow["nodes"] if node["type"] not in {"MarkdownNote", "Note"}]
    for node in workflow["nodes"]:
        declared = definitions.get(node["type"], {}).get("input", {})
        inputs = {**declared.get("required", {}), **declared.get("optional", {})}
        given = iter(node.get("widgets_values") or [])
        values = {}
        for name in [entry["name"] for entry in node.get("inputs", []) if "widget" in entry]:
            values[name] = next(given, None)
            if len(spec := inputs.get(name, [])) > 1 and spec[1].get("control_after_generate"):
                next(given, None)
        node["widgets_values"] = [values[name] for name in inputs if name in values and inputs[name][0] != "COMBO"]
    return workflow


def comfy_test_attached(checkout: Checkout, server: ComfyServer, work: Path) -> None:
    """comfy-test in the interpreter of ComfyUI. Its packages go to a layer, to leave that environment alone."""
    assert checkout.python is not None
    layer = make_layer(work / "layer", checkout.python, site_packages(checkout.python))
    requirements = (ROOT / "dev" / "requirements" / "checks.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in requirements if "comfy-test" in line]
    subprocess.run([str(layer), *PIP, "install", "--quiet", *wanted], check=True)
    pack = server.base / "custom_nodes" / PACK_NAME
    definitions = server.get("/object_info").json()
    for path in sorted((pack / "workflows").glob("*.json")):
        workflow = simplified(json.loads(path.read_text(encoding="utf-8")), definitions)
        if workflow is None:
            print(f"{path.name} is left out: comfy-test takes its subgraph for an unknown node")
            path.unlink()
        else:
            path.write_text(json.dumps(workflow), encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name("comfy-test.toml"), pack / "comfy-test.toml")
    levels = [str(layer), *COMFY_TEST, "run", "--level", "validation"]
    # comfy-test looks for ComfyUI's modules in the base folder of the server; they are in the checkout.
    environment = {**comfy_test_folders(work), "PYTHONPATH": str(checkout.path)}
    run(*levels, "--server-url", server.url, cwd=pack, env=environment)


def comfy_lint(checkout: Checkout, server: ComfyServer, work: Path) -> None:
    """comfy-lint on the workflows in API format."""
    workflows = sorted((ROOT / "tests" / "workflows").glob("*.json"))
    run(
        "comfy-lint", "--server", server.url, "--schema-cache", work / "object_info.json", "--strict",
        "--color", "never", *workflows, cwd=work,
    )  # fmt: skip


def served(checkout: Checkout) -> ComfyServer:
    """A ComfyUI with the published pack."""

    # A copy, not a link: comfy-test resolves its folder and looks for custom_nodes above it.
    def lay_out(base: Path) -> None:
        write_published_tree(base / "custom_nodes" / PACK_NAME)

    return ComfyServer(checkout, ServerOptions(packs={}, prepare=lay_out))


class Results:
    """Runs checks and collects their results.

    Args:
        work: A folder for temporary files.
        release: Whether to run the checks for a release, too.

    Attributes:
        lines: One for each check.
        failed: Whether any check failed.
    """

    def __init__(self, work: Path, release: bool) -> None:
        self.work, self.release = work, release
        self.lines: list[str] = []
        self.failed = False

    def check(self, name: str, function: Callable[..., None], *arguments: object) -> None:
        """Run a check."""
        print(f"\n===== {name}", flush=True)
        work = self.work / f"{len(self.lines)}"
        work.mkdir()
        began = time.monotonic()
        try:
            function(*arguments, work)
            verdict = "ok"
        except (CheckFailed, ServerError, OSError, subprocess.CalledProcessError) as error:
            print(error)
            verdict, self.failed = "FAILED", True
        self.lines.append(f"{verdict:7} {name} ({time.monotonic() - began:.0f} s)")
        print(self.lines[-1], flush=True)

    def skip(self, what: str) -> None:
        """Report that something was not checked."""
        self.lines.append(f"SKIPPED {what}")

    def with_comfyui(self, checkout: Checkout, tree: Path) -> None:
        """Run the checks against one ComfyUI."""
        self.check(f"comfy-import-guard on ComfyUI {checkout.id}", import_guard, checkout, tree)
        try:
            with served(checkout) as server:
                self.check(f"comfy-lint --strict on ComfyUI {checkout.id}", comfy_lint, checkout, server)
                if self.release:
                    self.check(f"comfy-test attached to ComfyUI {checkout.id}", comfy_test_attached, checkout, server)
        except ServerError as error:
            self.failed = True
            self.lines.append(f"FAILED  ComfyUI {checkout.id} with the pack: {error}")


def main() -> int:
    """Run the checks and print a summary; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", action="store_true", help="also run nodesafe and comfy-test in a running ComfyUI")
    release = parser.parse_args().release
    with tempfile.TemporaryDirectory(prefix="deepgen-checks-") as temporary:
        work = Path(temporary)
        tree = write_published_tree(work / "published" / PACK_NAME)
        results = Results(work, release)
        results.check("comfy node validate", node_validate, tree)
        results.check("comfy node pack", node_pack, tree)
        results.check("comfy-test lint", comfy_test_lint, tree)
        results.check("hadolint", hadolint, tree)
        if release:
            results.check("nodesafe", nodesafe, tree)
        checkouts = find_checkouts()
        if not checkouts:
            results.skip(f"comfy-import-guard, comfy-lint, comfy-test attached: no ComfyUI found, set {PATH_VARIABLE}")
        for checkout in checkouts:
            if checkout.problem:
                results.skip(f"ComfyUI {checkout.id}: {checkout.problem}")
            else:
                results.with_comfyui(checkout, tree)
    print("\n===== third-party checks")
    print("\n".join(results.lines))
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(main())
