"""The workflow that holds the registry's token: nobody else's change of a tag runs in it, and no copy publishes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


WORKFLOWS = sorted((Path(__file__).resolve().parents[2] / ".github" / "workflows").glob("*.y*ml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_named_by_commit(path: Path) -> None:
    used = re.findall(r"^\s*(?:- )?uses:\s*(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert used
    for action in used:
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # (v[\d.]+|main on [\d-]+)", action), action


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_jobs_with_secrets_run_in_one_repository_only(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "permissions:\n  contents: read\n" in text
    jobs = re.split(r"^  [\w-]+:\n", text.split("\njobs:\n")[1], flags=re.MULTILINE)[1:]
    assert jobs
    for job in jobs:
        assert "secrets." not in job or job.startswith("    if: vars.PUBLISH_FROM == github.repository\n")


def test_there_is_a_workflow() -> None:
    assert "publish.yml" in [path.name for path in WORKFLOWS]
