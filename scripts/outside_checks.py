"""What others' tools say of the pack as it would be published: the registry's, comfy-test, nodesafe and more.

Run it with the interpreter that has requirements-checks.txt (`make outside-checks`). Those checks that need a ComfyUI
run on every checkout that is found (see COMFYUI_PATH in the README). The exit status is 1 if one fails.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from comfyui_bench.checkouts import Checkout, find_checkouts  # noqa: E402
from comfyui_bench.server import ComfyServer, ServerOptions  # noqa: E402


# As the registry's client names the folder: the project's name.
PACK = "deepgen"
TOOLS = Path(sys.executable).parent
COMFY = [str(TOOLS / "comfy"), "--skip-prompt", "--no-enable-telemetry"]
EXPLAINED = ROOT / "scripts" / "nodesafe_explained.json"
TWINS = sorted((ROOT / "tests" / "workflows").glob("*.json"))

failed: list[str] = []


def report(name: str, ok: bool, output: str) -> None:
    print(f"\n=== {name}\n{output.strip()}\n--- {name}: {'ok' if ok else 'FAILED'}", flush=True)
    if not ok:
        failed.append(name)


def run(command: Sequence[str | Path], folder: Path, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Exit status and output; no colours, and no questions that would wait for an answer."""
    environment = {**os.environ, "NO_COLOR": "1", "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}", **(env or {})}
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def publish_into(folder: Path) -> None:
    """Lay the pack out as the registry's client would pack it, by .comfyignore."""
    # It packs what git knows; a clone leaves nothing behind in the working tree.
    with tempfile.TemporaryDirectory() as temporary:
        clone = Path(temporary) / PACK
        files = (
            subprocess.run(
                ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                cwd=ROOT,
                capture_output=True,
                check=True,
            )
            .stdout.decode()
            .split("\0")
        )
        for name in filter(None, files):
            if (ROOT / name).is_file():
                (clone / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, clone / name)
        subprocess.run(["git", "init", "-q"], cwd=clone, check=True)
        subprocess.run(["git", "add", "-A"], cwd=clone, check=True)
        status, output = run([*COMFY, "node", "pack"], clone)
        if status or not (clone / "node.zip").is_file():
            raise RuntimeError(f"comfy node pack: {output}")
        with zipfile.ZipFile(clone / "node.zip") as archive:
            archive.extractall(folder)


def node_validate(pack: Path) -> None:
    status, output = run([*COMFY, "node", "validate"], pack)
    report("comfy node validate", status == 0 and "passed" in output, output)


def comfy_test_lint(pack: Path) -> None:
    status, output = run([TOOLS / "comfy-test", "lint", "."], pack)
    report("comfy-test lint", status == 0, output)


def is_plain_words(file: Path, line: int) -> bool:
    """Whether the long strings on a line are text to read: a payload has no words."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) >= 40
        if node.lineno <= line <= (node.end_lineno or node.lineno)
    ]
    # No word of 60 characters, and a space for every 20: base64 and the like have neither.
    return bool(texts) and all(
        max(map(len, text.split())) < 60 and len(text.split()) > len(text) / 20 for text in texts
    )


def explanation(finding: dict[str, Any], known: list[dict[str, str]], pack: Path) -> str | None:
    if finding["category"] == "code_obfuscation_high_entropy" and is_plain_words(
        pack / finding["file"], finding["line"]
    ):
        return "A docstring or a message: words to read."
    for entry in known:
        same_file = entry.get("file") in (None, finding["file"])
        if same_file and entry["category"] == finding["category"] and entry["snippet"] in finding["snippet"]:
            return entry["reason"]
    return None


def nodesafe(pack: Path) -> None:
    """Every finding has an explanation, and every explanation a finding."""
    _, output = run([TOOLS / "nodesafe", "scan", pack, "--format", "json"], pack.parent)
    findings = json.loads(output[output.index("{") :])["findings"]
    known = json.loads(EXPLAINED.read_text(encoding="utf-8"))
    lines, new, used = [], 0, set()
    for finding in findings:
        reason = explanation(finding, known, pack)
        new += reason is None
        used.add(reason)
        lines.append(f"{finding['file']}:{finding['line']} {finding['category']}: {reason or 'NOT EXPLAINED'}")
    idle = [entry["reason"] for entry in known if entry["reason"] not in used]
    lines += [f"{EXPLAINED.name} explains what is no longer found: {reason}" for reason in idle]
    report(f"nodesafe ({len(findings)} findings, {new} not explained)", not new and not idle, "\n".join(lines))
    for workflow in sorted((pack / "workflows").glob("*.json")):
        status, output = run([TOOLS / "nodesafe", "scan-workflow", workflow], pack)
        if status:
            report(f"nodesafe scan-workflow {workflow.name}", False, output)


def import_guard(checkout: Checkout, comfyui: Path, cache: Path) -> None:
    """Whether what we import from ComfyUI, and call, exists in a version."""
    name = f"comfy-import-guard, ComfyUI {checkout.version}"
    target = cache / str(checkout.version) / "ComfyUI"
    target.parent.mkdir(parents=True)
    clone = ["git", "clone", "-q", "--shared", "--no-checkout", checkout.path, target]
    status, output = run(clone, cache)
    if status == 0:
        guard = [TOOLS / "comfy-import-guard", "--offline", "--cache-dir", target.parent, "check", "--strict"]
        status, output = run([*guard, "--comfy-dir", comfyui, "--target", "origin/HEAD", "--pack", PACK], cache)
    report(name, status == 0, output)


def comfy_test_attach(checkout: Checkout, pack: Path, url: str, logs: Path) -> None:
    # Its instantiation level imports the pack, so it runs in ComfyUI's interpreter, which does not have it.
    site = next(TOOLS.parent.glob("lib/python*/site-packages"), TOOLS.parent / "Lib" / "site-packages")
    code = (
        "import sys; sys.path.append(sys.argv.pop(1)); sys.argv[0] = 'comfy-test'; "
        "from comfy_test.cli import main; sys.exit(main())"
    )
    env = {"COMFY_TEST_LOGS_DIR": str(logs), "COMFY_TEST_WORKSPACE_DIR": str(logs)}
    command = [checkout.python or "", "-c", code, site, "run", "--level", "instantiation", "--server-url", url]
    status, output = run(command, pack, env)
    report(f"comfy-test attached to ComfyUI {checkout.version}", status == 0, output)


def comfy_lint(checkout: Checkout, url: str, cache: Path) -> None:
    schema = cache / f"object-info-{checkout.version}.json"
    lint = [TOOLS / "comfy-lint", "--schema-cache", schema]
    run([*lint, "--server", url, TWINS[0]], ROOT)
    status, output = run([*lint, "--strict", *TWINS], ROOT)
    report(f"comfy-lint on {len(TWINS)} workflows, ComfyUI {checkout.version}", status == 0, output)


def main() -> int:
    checkouts = find_checkouts()
    with tempfile.TemporaryDirectory(prefix="deepgen-outside-") as temporary:
        folder = Path(temporary)
        # The pack in a ComfyUI tree: everything else are links to a checkout.
        comfyui = folder / "ComfyUI"
        pack = comfyui / "custom_nodes" / PACK
        publish_into(pack)
        node_validate(ROOT)
        comfy_test_lint(pack)
        nodesafe(pack)
        shutil.copy(ROOT / "comfy-test.toml", pack)  # not published
        for checkout in checkouts:
            if checkout.problem:
                continue
            for entry in comfyui.iterdir():
                if entry.is_symlink():
                    entry.unlink()
            for entry in checkout.path.iterdir():
                if entry.name not in ("custom_nodes", ".git"):
                    (comfyui / entry.name).symlink_to(entry)
            import_guard(checkout, comfyui, folder / "import-guard")
            with ComfyServer(checkout, ServerOptions(packs={PACK: pack})) as server:
                comfy_test_attach(checkout, pack, server.url, folder / "logs")
                comfy_lint(checkout, server.url, folder)
    usable = [checkout for checkout in checkouts if not checkout.problem]
    for checkout in checkouts:
        if checkout.problem:
            failed.append(f"{checkout.path}: {checkout.problem}")
    if not usable:
        print("\nWARNING: NOT PROVEN: comfy-test attached, comfy-lint and comfy-import-guard need a ComfyUI checkout.")
    print(f"\n{'FAILED: ' + '; '.join(failed) if failed else 'All outside checks passed.'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
