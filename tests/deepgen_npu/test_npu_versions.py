"""Which CANN, torch and torch_npu belong together, by Ascend's table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deepgen_npu import npu_versions
from deepgen_npu.npu_versions import how_to_install, mismatch, not_a_pair, pairing


ROOT = Path(__file__).parents[2]
CURRENT = "pip install -r requirements-npu-cann9.1.txt torchvision==0.27.0 torchaudio==2.11.0"
REPORT = "pip install -r requirements-npu.txt torchvision==0.24.0 torchaudio==2.9.0"
BY_ITS_NOTES = "# or the build that its release notes name for CANN 9.3.0"
TOO_OLD = "Install CANN 9.1.0 or 8.5.0: there is no torch_npu for CANN"

pytestmark = pytest.mark.usefixtures("python_of_all_stacks")


@pytest.mark.parametrize(
    ("torch", "cann", "command"),
    [
        # Each torch has another build for each CANN.
        ("2.9.0+cpu", "8.5.0", "pip install torch_npu==2.9.0"),
        ("2.9.0", "8.5.1", "pip install torch_npu==2.9.0"),
        ("2.9.0", "9.0.0", "pip install torch_npu==2.9.0.post2"),
        ("2.9.0", "9.1.0", "pip install torch_npu==2.9.0.post6"),
        ("2.9.0", "9.1.1", "pip install torch_npu==2.9.0.post8"),
        ("2.9.0", "9.2.0", "pip install torch_npu==2.9.0.post9"),
        ("2.12.0", "9.1.0-beta.3", "pip install torch_npu==2.12.0"),
        ("2.8.0", "8.3.RC2", "pip install torch_npu==2.8.0"),
        # No torch, or one for which this CANN has no build.
        (None, "8.5.1", REPORT),
        (None, "9.1.0", CURRENT),
        (None, "9.0.0", "pip install torch==2.10.0 torch_npu==2.10.0"),
        ("2.13.0", "8.5.0", f"{REPORT}  # CANN 8.5.0 has no torch_npu for torch 2.13.0"),
        ("2.8.0", "9.1.0", f"{CURRENT}  # CANN 9.1.0 has no torch_npu for torch 2.8.0"),
        ("2.12", "9.0.1", "pip install torch==2.10.0 torch_npu==2.10.0  # CANN 9.0.1 has no torch_npu for torch 2.12"),
        # No CANN yet: the one that is recommended, 9.1.0, is going to be installed.
        (None, None, CURRENT),
        ("2.9.0", None, "pip install torch_npu==2.9.0.post6"),
        # Outside of the table.
        ("2.15.0", "9.3.0", f'pip install "torch_npu==2.15.0.*"  {BY_ITS_NOTES}'),
        (None, "9.3.0", f"pip install torch_npu  {BY_ITS_NOTES}"),
        ("2.9.0", "8.3.RC1", f"{TOO_OLD} 8.3.RC1 and torch 2.9 or later"),
        ("2.9.0", "8.0.0", f"{TOO_OLD} 8.0.0 and torch 2.9 or later"),
    ],
)  # fmt: skip
def test_the_exact_build(torch, cann, command):
    assert how_to_install(torch, cann) == command


def test_a_wheel_has_no_files_of_requirements(monkeypatch, tmp_path):
    monkeypatch.setattr(npu_versions, "REQUIREMENTS", tmp_path / "requirements.txt")
    assert how_to_install(None, "9.1.0") == "pip install torch==2.12.0 torch_npu==2.12.0"


@pytest.mark.parametrize(
    ("python", "torch", "cann", "told"),
    [
        ((3, 14), "2.14.0", "9.2.0", "pip install torch_npu==2.14.0"),
        ((3, 14), "2.12.0", "9.1.0", "with Python 3.13: PyPI has no torch_npu 2.12.0 for Python 3.14"),
        (
            (3, 13),
            None,
            "8.5.1",
            "Make a virtual environment with Python 3.12: PyPI has no torch_npu 2.9.0 for Python 3.13",
        ),
    ],
)
def test_a_python_without_a_package(monkeypatch, python, torch, cann, told):
    monkeypatch.setattr(npu_versions, "PYTHON", python)
    assert told in how_to_install(torch, cann)


@pytest.mark.parametrize(
    ("torch_npu", "cann", "kind"),
    [
        ("2.9.0", "8.5.1", "pair"), ("2.12.0", "9.1.0", "pair"), ("2.12.0.post2", "9.1.0", "pair"),
        ("2.12.0", "9.1.1", "pair"), ("2.13.0", "9.2.0", "pair"), ("2.9.0+local", "8.5.0", "pair"),
        ("2.9.0.post2", "8.5.1", "compatible"), ("2.9.0", "9.2.0", "compatible"), ("2.14.0", "8.5.0", "compatible"),
        ("2.8.0", "8.5.0", "apart"), ("2.9.0", "8.3.RC1", "apart"), ("2.9.0", "8.0.0", "apart"),
        ("2.9.1", "9.1.0", "unknown"), ("2.9.0.post1", "8.5.1", "unknown"), ("2.15.0", "9.2.0", "unknown"),
        ("2.14.0", "9.3.0", "unknown"), ("2.9.0", "8.4.0", "unknown"), ("2.9.0", "nonsense", "unknown"),
    ],
)  # fmt: skip
def test_which_belong_together(torch_npu, cann, kind):
    assert pairing(torch_npu, cann) == kind
    told = [not_a_pair(torch_npu, torch_npu, cann, which) for which in ("compatible", "apart")]
    assert [problem is not None for problem in told] == [kind == "compatible", kind == "apart"]
    words = {"pair": "yes", "compatible": "no, but compatible", "apart": "no:", "unknown": "unknown: "}[kind]
    assert str(npu_versions.described(torch_npu, cann)).startswith(words)


def test_nothing_is_said_about_what_is_not_there():
    assert npu_versions.described(None, "8.5.1") is npu_versions.described("2.9.0", None) is None
    assert not_a_pair("2.9.0", "2.9.0", None, "apart") is None
    assert mismatch("2.9.0", None, None) is mismatch(None, "2.9.0", None) is None


def test_the_cann_to_install_is_that_of_the_torch_npu_that_is_there():
    assert [npu_versions.cann_to_install(build) for build in ("2.9.0", "2.9.0.post2", "2.9.1", None)] == [
        "8.5.0", "9.0.0", "9.1.0", "9.1.0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("torch", "torch_npu"),
    [("2.9.0+cpu", "2.9.0.post2"), ("2.9.0", "2.9.0"), ("2.7.1", "2.7.1.post4.dev20260101")],
)
def test_releases_that_belong_together(torch, torch_npu):
    assert mismatch(torch, torch_npu, "9.0.0") is None


@pytest.mark.parametrize(
    ("torch", "torch_npu"), [("2.13.0+cpu", "2.9.0.post2"), ("2.7.0", "2.7.1"), ("2.9.0", "3.9.0"), ("2.9", "2.9.1")]
)
def test_releases_that_do_not(torch, torch_npu):
    problem = mismatch(torch, torch_npu, None)
    assert problem is not None and torch in problem.what and torch_npu in problem.what


def test_a_build_is_for_one_cann():
    builds = [build for known in npu_versions.RELEASES for build in known.builds]
    assert len(set(builds)) == len(builds) and all(npu_versions.release(build) for build in builds)


@pytest.mark.parametrize(("line", "stack"), npu_versions.STACKS.items())
def test_the_files_of_the_pack_have_the_pair_of_their_cann(line, stack):
    """And the README has the doctor's command."""
    text = (ROOT / stack.file).read_text(encoding="utf-8")
    pins = dict(re.findall(r"^(torch|torch_npu)==(\S+)$", text, re.MULTILINE))
    cann = ".".join(map(str, line)) + ".0"
    assert pins["torch_npu"] == npu_versions.builds_for(cann)[0] == npu_versions.build_for(pins["torch"], cann)
    for page in ("README.md", "README_ZH.md"):
        assert f"\n   {how_to_install(None, cann)}\n" in (ROOT / page).read_text(encoding="utf-8"), page


def test_the_page_has_the_table():
    page = (ROOT / "docs" / "ascend.md").read_text(encoding="utf-8")
    told = {}
    for cells in (line.split("|") for line in page.splitlines()):
        if len(cells) == 5 and (cann := cells[1].strip("* "))[:1].isdigit():
            told[cann] = tuple(re.findall(r"\d[\w.]+\d", re.sub(r"\(.*?\)|:.*", "", cells[2])))
    known = {known.cann: known.builds for known in npu_versions.RELEASES}
    assert told == {cann: builds for cann, builds in known.items() if cann not in ("8.2.RC1", "8.1.RC1")}
