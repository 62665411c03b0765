"""The workflows: nobody else's change of a tag runs in them, no copy publishes, and what they run is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml


ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))


def jobs_of(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]


def steps_of(path: Path) -> list[dict[str, Any]]:
    return [step for job in jobs_of(path).values() for step in job["steps"]]


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


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_no_job_has_more_rights_or_keeps_the_token(path: Path) -> None:
    assert path.read_text(encoding="utf-8").count("permissions:") == 1
    checkouts = [step for step in steps_of(path) if step.get("uses", "").startswith("actions/checkout@")]
    assert checkouts and all(step["with"]["persist-credentials"] is False for step in checkouts)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_others_write_is_never_run(path: Path) -> None:
    """A title or a branch of a pull request, put into a script, would be a part of it."""
    assert "pull_request_target" not in path.read_text(encoding="utf-8")
    assert [step["run"] for step in steps_of(path) if "${{" in step.get("run", "")] == []


def test_there_is_a_workflow() -> None:
    assert {"ci.yml", "publish.yml"} <= {path.name for path in WORKFLOWS}


def test_the_oldest_python_is_tested() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (oldest,) = re.findall(r'^requires-python = ">=([\d.]+)"$', project, re.MULTILINE)
    (ours,) = [path for path in WORKFLOWS if path.name == "ci.yml"]
    assert oldest in jobs_of(ours)["library"]["strategy"]["matrix"]["python"]


def test_files_that_a_workflow_names_are_there() -> None:
    words = {word for path in WORKFLOWS for step in steps_of(path) for word in step.get("run", "").split()}
    named = {word for word in words if re.match(r"(tests|dev)/|\.ci/|[\w-]+\.txt$", word)}
    assert len(named) >= 4
    assert [word for word in sorted(named) if not (ROOT / word).exists()] == []


def test_every_ruff_is_the_same() -> None:
    """Another one formats differently."""
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    pinned = [*ROOT.glob("constraints*.txt"), *ROOT.glob("dev/requirements/constraints*.txt")]
    assert pinned
    versions = {re.findall(r"\bruff==([\d.]+)", text)[0] for text in [hooks, *(p.read_text() for p in pinned)]}
    assert len(versions) == 1 and len(set(re.findall(r"\bruff==([\d.]+)", hooks))) == 1
