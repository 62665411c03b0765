"""The pack as the registry publishes it: complete, small, and at work in a ComfyUI."""

from __future__ import annotations

import json

import pytest

from dev import ROOT
from dev.comfyui.client import Client
from dev.comfyui.graphs import generation, loader, save
from dev.comfyui.server import PACK_NAME
from dev.published_tree import published_files
from nodes.names import DEMO


LARGEST_MIB = 20
# Folders and files that a user needs; those that are not in the repository are not asked for.
AT_RUN_TIME = (
    "__init__.py", "inference.py", "requirements.txt", "requirements-npu.txt", "requirements-npu-cann9.1.txt",
    "requirements-scale.txt", "pyproject.toml",
    "README.md", "LICENSE", "CHANGELOG.md", "demo_checkpoint/", "workflows/", "web/", "locales/", "subgraphs/",
    "nodes/", "deepgen_npu/",
)  # fmt: skip
FOR_DEVELOPERS = (
    "tests/", "training/", "dev/", "assets/", ".ci/", ".github/", ".pre-commit-config.yaml",
    ".editorconfig", "Makefile", "CONTRIBUTING.md", "SECURITY.md",
)  # fmt: skip


def test_everything_for_run_time_is_published():
    published = set(published_files())
    for entry in AT_RUN_TIME:
        here = [p for p in (ROOT / entry).rglob("*") if p.is_file()] if entry.endswith("/") else [ROOT / entry]
        names = {p.relative_to(ROOT).as_posix() for p in here if "__pycache__" not in p.parts}
        assert names <= published, sorted(names - published)


def test_nothing_for_developers_is_published():
    assert [name for name in published_files() if name.startswith(FOR_DEVELOPERS)] == []


def test_the_archive_is_small():
    assert sum((ROOT / name).stat().st_size for name in published_files()) < LARGEST_MIB * 2**20


class TestInComfyUI:
    def test_all_nodes_are_there(self, published):
        interface = json.loads((ROOT / "tests" / "nodes" / "interface.json").read_text(encoding="utf-8"))
        definitions = published.get("/object_info").json()
        ours = {name for name, node in definitions.items() if node["python_module"] == f"custom_nodes.{PACK_NAME}"}
        assert ours and ours == set(interface), published.log_tail()

    def test_no_pack_failed_to_import(self, published):
        assert "IMPORT FAILED" not in published.log_text()
        assert "NeighbourSteps" in published.get("/object_info/NeighbourSteps").json()

    def test_its_workflows_are_offered(self, published):
        offered = published.get("/workflow_templates").json()[PACK_NAME]
        assert sorted(offered) == sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))

    @pytest.mark.parametrize("model", ["somebody/reference", DEMO])
    def test_an_image_goes_through_the_neighbour(self, published, model):
        graph = {
            "loader": loader(model),
            "make": generation(),
            "look": {"class_type": "NeighbourSteps", "inputs": {"image": ["make", 0], "steps": 3}},
            "saved": save("look"),
        }
        with Client(published) as client:
            result = client.run(graph)
        assert result.ok, result.error_text
        assert len(result.images) == 1
