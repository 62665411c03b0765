"""What the doctor asks of other packages: from requirements.txt, or beside an installed wheel from its metadata."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from deepgen_npu.requirements import DISTRIBUTION, REQUIREMENTS, fits, how_to_install, requirements
from deepgen_npu.tools import doctor


ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["packaging", "no packaging"])
def with_and_without_packaging(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "no packaging":
        for module in ("requirements", "specifiers", "version"):
            monkeypatch.setitem(sys.modules, f"packaging.{module}", None)


def install(folder: Path, *requires: str) -> None:
    """A distribution as pip leaves it: its metadata alone."""
    info = folder / f"{DISTRIBUTION}-9.9.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.4", f"Name: {DISTRIBUTION}", "Version: 9.9"]
    text = "\n".join([*lines, *(f"Requires-Dist: {one}" for one in requires)])
    (info / "METADATA").write_text(f"{text}\n", encoding="utf-8")


@pytest.mark.usefixtures("with_and_without_packaging")
def test_the_packs_own_file_is_read():
    assert REQUIREMENTS == ROOT / "requirements.txt"
    found = requirements()
    assert {"requests", "diffusers", "transformers", "huggingface_hub"} == set(found)
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    assert all(versions.startswith(">=") and f"{name}{versions}" in lines for name, versions in found.items())


@pytest.mark.usefixtures("with_and_without_packaging")
def test_beside_a_wheel_its_metadata_is_read(tmp_path, monkeypatch):
    install(tmp_path, "requests>=2.28", "tqdm", 'torch>=2.9; extra == "run"', "numpy ; (extra == 'run')")
    monkeypatch.syspath_prepend(tmp_path)
    assert requirements(tmp_path / "nothing.txt") == {"requests": ">=2.28", "tqdm": ""}


def test_where_neither_is_there_nothing_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("deepgen_npu.requirements.DISTRIBUTION", "a-distribution-that-nobody-has")
    assert requirements(tmp_path / "nothing.txt") == {}


def test_the_command_for_what_is_missing_fits_the_installation(tmp_path, monkeypatch):
    """A file of the pack, or extras of a wheel. Without either the file again: the name may be somebody else's."""
    assert how_to_install() == "pip install -r requirements.txt"
    assert how_to_install("requirements-npu.txt", "run,npu") == "pip install -r requirements-npu.txt"
    monkeypatch.setattr("deepgen_npu.requirements.REQUIREMENTS", tmp_path / "requirements.txt")
    with monkeypatch.context() as patch:
        patch.setattr("deepgen_npu.requirements.DISTRIBUTION", "a-distribution-that-nobody-has")
        assert how_to_install() == "pip install -r requirements.txt"
    install(tmp_path, "requests>=2.28")
    monkeypatch.syspath_prepend(tmp_path)
    assert how_to_install() == 'pip install "deepgen[run]"'
    assert how_to_install("requirements-npu.txt", "run,npu") == 'pip install "deepgen[run,npu]"'


def test_all_forms_of_a_requirement_are_understood(tmp_path):
    path = tmp_path / "requirements.txt"
    lines = [
        "# a comment",
        "-r other.txt",
        "diffusers >= 0.33, != 0.34.0  # why",
        "scikit-image~=0.26",
        "tqdm",
        'only-elsewhere>=1; sys_platform == "nowhere"',
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    found = requirements(path)
    assert set(found) == {"diffusers", "scikit-image", "tqdm"} and found["tqdm"] == ""
    assert not fits("0.34.0", found["diffusers"]) and fits("0.35.1", found["diffusers"])
    assert not fits("1.0", found["scikit-image"]) and fits("0.27", found["scikit-image"])


@pytest.mark.usefixtures("with_and_without_packaging")
@pytest.mark.parametrize(
    ("installed", "versions", "expected"),
    [
        ("0.33.0", ">=0.33.0", True),
        ("0.32.2", ">=0.33.0", False),
        ("0.33.0.dev0", ">=0.33.0", True),
        ("0.32.0.dev0", ">=0.33.0", False),
        ("2.13.0+cpu", ">=2.9", True),
        ("2.10", ">=2.9", True),
        ("0.33", ">=0.33.0", True),
        ("1.0", "", True),
    ],
)
def test_versions_are_compared_as_numbers(installed, versions, expected):
    assert fits(installed, versions) is expected


def test_a_version_of_no_known_form_is_somebodys_own():
    assert fits("built-on-monday", ">=2.9")


def test_the_doctor_misses_what_the_wheel_needs(tmp_path, monkeypatch):
    """Not what its extras would bring."""
    install(tmp_path, "requests>=999", "no-such-package>=1.5", 'no-such-extra; extra == "run"')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "requirements", lambda: requirements(tmp_path / "nothing.txt"))
    monkeypatch.setattr(doctor, "probe", lambda environment: ([], None))
    found = {finding.what: finding.fix for finding in doctor.inspect_host().findings if finding.level == "problem"}
    assert found.pop("no-such-package is not installed in this Python") == 'pip install "no-such-package>=1.5"'
    (other,) = found.items()
    assert other[0].startswith("requests must be >=999, got 2.") and other[1] == 'pip install "requests>=999"'
