"""The checkers of others, on the pack as the registry publishes it: `make outside-checks`.

Run with an environment that has dev/requirements/checks.txt. Exit status 1 if any check fails. The checks against a
ComfyUI need a checkout and its interpreter, found as the tests find them.
"""

from __future__ import annotations

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

from dev.checks.nodesafe import unexplained
from dev.comfyui.checkouts import PATH_VARIABLE, Checkout, find_checkouts
from dev.comfyui.server import PACK_NAME, ComfyServer, ServerError, ServerOptions
from dev.layered_environment import PIP, make_layer, site_packages
from dev.published_tree import published_files, write_published_tree


ROOT = Path(__file__).resolve().parents[2]


COMFY = ("comfy", "--skip-prompt", "--no-enable-telemetry")
# comfy_test.cli by name: its console script is in the environment of this script, not in that of ComfyUI.
COMFY_TEST = ("-c", "import sys; from comfy_test.cli import main; sys.exit(main())")


class CheckFailed(Exception):
    """What a check found is its message."""


def run(*command: object, cwd: Path, env: Mapping[str, str] | None = None, accept: tuple[int, ...] = (0,)) -> str:
    """Run a checker and show its output; a name without a folder is a program beside this interpreter."""
    first, *rest = map(str, command)
    program = first if os.sep in first else str(Path(sys.executable).with_name(first))
    # Without the proxies of the machine, the requests of a checker to the local server would leave it.
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
    output = run(*COMFY, "node", "validate", cwd=tree)
    if "warning" in output.lower():
        raise CheckFailed("a warning of `comfy node validate` costs the pack a listing")


def node_pack(tree: Path, work: Path) -> None:
    """The registry's own packer takes the files that the checks and the tests take for the pack."""
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
        raise CheckFailed(f"packed by one side only: {sorted(packed ^ set(published_files()))}")


def comfy_test_lint(tree: Path, work: Path) -> None:
    run("comfy-test", "lint", ".", cwd=tree, env=comfy_test_folders(work))


def nodesafe(tree: Path, work: Path) -> None:
    # Its exit status tells of any finding; ours counts those that nobody has looked at.
    output = subprocess.run(
        [str(Path(sys.executable).with_name("nodesafe")), "scan", ".", "--format", "json"],
        cwd=tree, capture_output=True, text=True, encoding="utf-8",
    ).stdout  # fmt: skip
    problems, explained = unexplained(output, tree)
    print(f"{explained} findings explained in nodesafe.json")
    if problems:
        raise CheckFailed("\n".join(problems))


def import_guard(checkout: Checkout, tree: Path, work: Path) -> None:
    """Every name of ComfyUI that the pack uses, and every call of it, fits this ComfyUI."""
    # It reads ComfyUI from a clean git clone, and a checkout need be neither: its Python files are committed anew.
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
        raise CheckFailed("it did not look at the pack")


def comfy_test_folders(work: Path) -> dict[str, str]:
    """Without these comfy-test asks at the terminal."""
    return {"COMFY_TEST_LOGS_DIR": str(work / "logs"), "COMFY_TEST_WORKSPACE_DIR": str(work / "workspace")}


def simplified(workflow: dict[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any] | None:
    """A workflow as comfy-test's level "validation" can read it; None if it has a subgraph.

    The level knows neither notes, which are the front end's alone, nor the choice that follows a seed, and takes
    V3's lists ("COMBO") for links. What is left are numbers, switches and texts, the links and the node types;
    comfy-lint looks at the lists in the API twins.
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
    """Runs in ComfyUI's interpreter, which must not get comfy-test's packages: hence the layer."""
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
            print(f"{path.name} has a subgraph, which comfy-test takes for an unknown node: not given to it")
            path.unlink()
        else:
            path.write_text(json.dumps(workflow), encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name("comfy-test.toml"), pack / "comfy-test.toml")
    levels = [str(layer), *COMFY_TEST, "run", "--level", "validation"]
    # The checkout, because comfy-test looks for ComfyUI's modules in the base folder of the server.
    environment = {**comfy_test_folders(work), "PYTHONPATH": str(checkout.path)}
    run(*levels, "--server-url", server.url, cwd=pack, env=environment)


def comfy_lint(checkout: Checkout, server: ComfyServer, work: Path) -> None:
    twins = sorted((ROOT / "tests" / "workflows").glob("*.json"))
    run(
        "comfy-lint", "--server", server.url, "--schema-cache", work / "object_info.json", "--strict",
        "--color", "never", *twins, cwd=work,
    )  # fmt: skip


def served(checkout: Checkout, work: Path) -> ComfyServer:
    # A copy, not a link: comfy-test resolves its folder and looks for custom_nodes above it.
    def lay_out(base: Path) -> None:
        write_published_tree(base / "custom_nodes" / PACK_NAME)

    return ComfyServer(checkout, ServerOptions(packs={}, prepare=lay_out))


class Results:
    def __init__(self, work: Path) -> None:
        self.work = work
        self.lines: list[str] = []
        self.failed = False

    def check(self, name: str, function: Callable[..., None], *arguments: object) -> None:
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
        self.lines.append(f"SKIPPED, NOT PROVEN: {what}")

    def with_comfyui(self, checkout: Checkout, tree: Path) -> None:
        self.check(f"comfy-import-guard on ComfyUI {checkout.id}", import_guard, checkout, tree)
        try:
            with served(checkout, self.work) as server:
                self.check(f"comfy-test attached to ComfyUI {checkout.id}", comfy_test_attached, checkout, server)
                self.check(f"comfy-lint --strict on ComfyUI {checkout.id}", comfy_lint, checkout, server)
        except ServerError as error:
            self.failed = True
            self.lines.append(f"FAILED  ComfyUI {checkout.id} with the pack: {error}")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="deepgen-checks-") as temporary:
        work = Path(temporary)
        tree = write_published_tree(work / "published" / PACK_NAME)
        results = Results(work)
        results.check("comfy node validate", node_validate, tree)
        results.check("comfy node pack", node_pack, tree)
        results.check("comfy-test lint", comfy_test_lint, tree)
        results.check("nodesafe", nodesafe, tree)
        checkouts = find_checkouts()
        if not checkouts:
            what = "comfy-import-guard, comfy-test attached, comfy-lint"
            results.skip(f"{what}; no ComfyUI checkout found, set {PATH_VARIABLE}")
        for checkout in checkouts:
            if checkout.problem:
                results.skip(f"anything on ComfyUI {checkout.id}; {checkout.problem}")
            else:
                results.with_comfyui(checkout, tree)
    print("\n===== outside checks")
    print("\n".join(results.lines))
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(main())
