"""The pack together with packs by other authors, and as ComfyUI-Manager sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from comfyui_fixtures import unavailable
from published.packs import VARIABLE, scanner

from dev import ROOT
from dev.comfyui.client import Client
from dev.comfyui.graphs import generation, loader, save
from dev.comfyui.server import PACK_NAME
from dev.published_tree import write_published_tree


# Modules of ComfyUI-Manager's scanner that only ask GitHub for the stars of a pack, which is not done here.
_STAND_INS = "import sys, unittest.mock as m; [sys.modules.setdefault(n, m.MagicMock()) for n in ('git', 'github')]; "
_SCAN = (
    "import json, pathlib; sys.argv = ['scanner']; sys.path.insert(0, {folder!r}); import scanner; "
    "nodes, _ = scanner.extract_nodes_from_repo(pathlib.Path({pack!r}), force_rescan=True); "
    "print('\\n' + json.dumps(sorted(nodes)))"
)


def test_the_managers_scanner_finds_exactly_our_nodes(tmp_path):
    """It reads the source without running it, so the ids must stand there as they are."""
    path = scanner()
    if path is None:
        unavailable(f"that ComfyUI-Manager's scanner finds the nodes; clone it, or set {VARIABLE}")
    pack = write_published_tree(tmp_path / PACK_NAME)
    code = _STAND_INS + _SCAN.format(folder=str(path.parent), pack=str(pack))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    interface = json.loads((ROOT / "tests" / "nodes" / "interface.json").read_text(encoding="utf-8"))
    assert json.loads(done.stdout.splitlines()[-1]) == sorted(interface)


class TestWithOtherPacks:
    def test_every_pack_is_imported(self, crowded, other_packs: list[Path], report):
        log = crowded.log_text()
        assert "IMPORT FAILED" not in log, log[-4000:]
        definitions = crowded.get("/object_info").json()
        modules = {node["python_module"] for node in definitions.values()}
        with_nodes = [path.name for path in other_packs if path.name != "ComfyUI-Manager"]
        assert {f"custom_nodes.{name}" for name in [PACK_NAME, *with_nodes]} <= modules
        report(f"packs imported together in ComfyUI {crowded.version}", [PACK_NAME, *(p.name for p in other_packs)])

    def test_the_manager_answers(self, crowded, other_packs: list[Path]):
        if not any(path.name == "ComfyUI-Manager" for path in other_packs):
            pytest.skip(f"{VARIABLE} names no ComfyUI-Manager")
        assert crowded.request("/manager/version").status == 200

    def test_an_image_is_made(self, crowded):
        with Client(crowded) as client:
            result = client.run({"loader": loader(), "make": generation(), "saved": save("make")})
        assert result.ok, result.error_text
        assert len(result.images) == 1
