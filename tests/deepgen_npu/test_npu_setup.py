"""What an Ascend host lacks: found out from versions, files, variables and the errors of an import."""

from __future__ import annotations

from pathlib import Path

import pytest
from platforms import not_on_windows

from deepgen_npu import npu_setup


# As torch 2.13 with torch_npu 2.13 and no CANN says it, cause first.
NO_LIBRARY = (
    "ImportError: libhccl.so: cannot open shared object file: No such file or directory\n"
    "RuntimeError: Failed to load the backend extension: torch_npu. You can disable extension auto-loading with "
    "TORCH_DEVICE_BACKEND_AUTOLOAD=0."
)
OLD = "usr/local/Ascend/ascend-toolkit"
NEW = "usr/local/Ascend/cann"
pytestmark = pytest.mark.usefixtures("python_of_all_stacks")
INSTALLED = "package_name=Ascend-cann-toolkit\ninnerversion=V100R001C25\nversion=8.5.1\narch=aarch64\n"


def put(root: Path, name: str, text: str = "") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_versions_of_cann_and_driver(tmp_path):
    assert npu_setup.cann_version({}, tmp_path) is None and npu_setup.driver_version(tmp_path) is None
    put(tmp_path, "usr/local/Ascend/driver/version.info", "Version=24.1.rc1\nascendhal_version=7.35.19\n")
    assert npu_setup.driver_version(tmp_path) == "24.1.rc1"
    put(tmp_path, "etc/ascend_install.info", "UserName=HwHiAiUser\nDriver_Install_Path_Param=/opt/ascend\n")
    assert npu_setup.driver_version(tmp_path) is None
    put(tmp_path, "opt/ascend/driver/lib64/libascend_hal.so")  # a container to which only the libraries are passed
    assert npu_setup.driver_version(tmp_path) == "unknown"
    put(
        tmp_path,
        f"{OLD}/latest/version.cfg",
        "# version: 1.0\nruntime_running_version=[7.0.0.5.242:8.0.RC1]\n",
    )
    assert npu_setup.cann_version({}, tmp_path) == "8.0.RC1"
    put(tmp_path, f"{OLD}/latest/aarch64-linux/ascend_toolkit_install.info", INSTALLED.replace("8.5.1", "8.3.RC1"))
    assert npu_setup.cann_version({}, tmp_path) == "8.3.RC1"
    put(tmp_path, f"{NEW}/x86_64-linux/ascend_toolkit_install.info", INSTALLED)
    assert npu_setup.cann_version({}, tmp_path) == "8.5.1"
    # What is sourced comes first, then what this user installed.
    mine = put(tmp_path, "home/Ascend/cann/x86_64-linux/ascend_toolkit_install.info", INSTALLED.replace("8.5", "9.0"))
    assert npu_setup.cann_version({"ASCEND_HOME_PATH": str(mine.parents[1])}, tmp_path) == "9.0.1"
    assert npu_setup.cann_version({"HOME": str(tmp_path / "home")}, tmp_path / "nothing") == "9.0.1"
    named = put(tmp_path, "image/cann-9.1.0/set_env.sh").parent
    assert npu_setup.cann_version({"ASCEND_HOME_PATH": str(named)}, tmp_path) == "9.1.0"


def test_the_script_to_source_is_the_one_that_is_there(tmp_path):
    assert npu_setup.set_env_script({}, tmp_path) is None
    old = put(tmp_path, f"{OLD}/set_env.sh")
    assert npu_setup.set_env_script({}, tmp_path) == old
    new = put(tmp_path, f"{NEW}/set_env.sh")
    assert npu_setup.set_env_script({}, tmp_path) == new
    # ASCEND_HOME_PATH is .../latest, next to which the script lies.
    elsewhere = put(tmp_path, "opt/Ascend/ascend-toolkit/set_env.sh")
    (elsewhere.parent / "latest").mkdir()
    assert npu_setup.set_env_script({"ASCEND_HOME_PATH": str(elsewhere.parent / "latest")}, tmp_path) == elsewhere


@not_on_windows("its paths have \\, and no Ascend host runs it")
def test_cards_are_in_order(tmp_path):
    for name in ("davinci10", "davinci2", "davinci0", "davinci_manager"):
        put(tmp_path, f"dev/{name}")
    assert npu_setup.cards(tmp_path) == ["/dev/davinci0", "/dev/davinci2", "/dev/davinci10"]


def test_not_sourced_is_distinguished_from_not_installed(tmp_path):
    missing = npu_setup.why_not_loaded(NO_LIBRARY, {}, tmp_path, "2.13.0+cpu", "2.13.0")
    assert missing.what == f"{npu_setup.NO_CANN} (libhccl.so)" and missing.fix.startswith("Install CANN 9.2.0 (")
    script = put(tmp_path, f"{NEW}/set_env.sh")
    closed = npu_setup.why_not_loaded(NO_LIBRARY, {}, tmp_path, "2.13.0+cpu", "2.13.0")
    assert closed == (f"{npu_setup.NOT_SOURCED} (libhccl.so)", f"source {script}")


@pytest.mark.parametrize(
    ("error", "environment", "versions", "what", "fix"),
    [
        # Releases that do not belong together explain any error.
        (NO_LIBRARY, {}, ("2.13.0+cpu", "2.9.0"),
         "torch_npu 2.9.0 does not belong to torch 2.13.0+cpu", "requirements-npu-cann9.1.txt"),
        ("SystemExit: 1", {"PYTORCH_NPU_ALLOC_CONF": "", "PYTORCH_ALLOC_CONF": ""}, ("2.10.0", "2.10.0"),
         "are both set", "unset PYTORCH_ALLOC_CONF"),
        ("ModuleNotFoundError: No module named 'yaml'", {}, ("2.9.0", "2.9.0"),
         "needs the package yaml", "pip install pyyaml decorator"),
        ("RuntimeError: Two accelerators cannot be used at the same time in PyTorch: npu and cuda.", {},
         ("2.9.0", "2.9.0"), "accelerator of another kind", "CPU build"),
        ("ImportError: torch_npu/_C.so: undefined symbol: aclrtFoo\nRuntimeError: Failed to load", {},
         ("2.9.0", "2.9.0"), "another torch or another CANN (ImportError: torch_npu/_C.so: und", "npu==2.9.0.post6"),
        ("ValueError: surprise", {}, ("2.9.0", "2.9.0"), "does not load (ValueError: surprise)", "pip install"),
        ("", {}, ("2.9.0", "2.9.0"), "no message", "pip install"),
    ],
)  # fmt: skip
def test_why_torch_npu_does_not_load(tmp_path, error, environment, versions, what, fix):
    problem = npu_setup.why_not_loaded(error, environment, tmp_path, *versions)
    assert what in problem.what and fix in problem.fix
    assert "{" not in "".join(problem)


def test_a_symbol_is_missing_because_of_another_cann(tmp_path):
    put(tmp_path, f"{NEW}/x86_64-linux/ascend_toolkit_install.info", INSTALLED)
    error = "ImportError: torch_npu/_C.so: undefined symbol: aclrtFoo"
    problem = npu_setup.why_not_loaded(error, {}, tmp_path, "2.6.0", "2.6.0")
    assert problem.what.startswith("torch_npu 2.6.0 is built for CANN 8.2.RC1, this machine has CANN 8.5.1: ")
    assert problem.fix == "pip install torch_npu==2.6.0.post5"
    assert npu_setup.why_not_loaded(error, {}, tmp_path, "2.9.0", "2.9.0").fix == "pip install torch_npu==2.9.0"


def test_torch_npu_is_not_installed():
    """Where it were without CANN, not even torch would load."""
    assert npu_setup.not_installed("2.9.0", "9.0.0") == (npu_setup.NOT_INSTALLED, "pip install torch_npu==2.9.0.post2")
    problem = npu_setup.not_installed("2.9.0", None)
    assert "torch_npu is not installed" in problem.what and "CANN is not found" in problem.what
    assert problem.fix.startswith("python -m deepgen_npu doctor --device npu")


def test_an_error_may_have_braces(tmp_path):
    """It is put into the rows of a table of symptoms, and is itself no format."""
    problem = npu_setup.why_not_loaded("ValueError: {script} {0} }{", {}, tmp_path, "2.9.0", "2.9.0")
    assert problem.what == "torch_npu is installed but does not load (ValueError: {script} {0} }{)"


def test_the_variables_of_a_measurement():
    assert set(npu_setup.MEASURED) - set(npu_setup.VARIABLES) == {"OMP_NUM_THREADS"}
    assert {"TASK_QUEUE_ENABLE", "PYTORCH_NPU_ALLOC_CONF"} < set(npu_setup.MEASURED)


@pytest.mark.parametrize(
    ("environment", "cards", "driver", "what", "fix"),
    [
        (
            {},
            ["/dev/davinci0"],
            None,
            "/dev/davinci0, but no driver in /usr/local/Ascend/driver",
            "Start the container",
        ),
        ({"ASCEND_RT_VISIBLE_DEVICES": ""}, ["/dev/davinci0"], "25.0", "VISIBLE_DEVICES is ''", "unset ASCEND_RT"),
        ({}, ["/dev/davinci0", "/dev/davinci1"], "25.0", "/dev/davinci0, /dev/davinci1", "HwHiAiUser"),
        ({"ASCEND_RT_VISIBLE_DEVICES": "0"}, [], "25.0", "the driver is installed", "--device /dev/davinci0"),
        ({}, [], None, "no Ascend card", "Install driver and firmware"),
    ],
)
def test_why_there_is_no_card(environment, cards, driver, what, fix):
    problem = npu_setup.no_card(environment, cards, driver)
    assert what in problem.what and fix in problem.fix


def test_two_settings_of_the_allocator_are_a_problem_from_2_10():
    both = {"PYTORCH_NPU_ALLOC_CONF": "x", "PYTORCH_ALLOC_CONF": "y"}
    assert npu_setup.conflict(both, "2.10.0") is not None
    assert npu_setup.conflict(both, "2.9.0.post2") is None
    assert npu_setup.conflict({"PYTORCH_NPU_ALLOC_CONF": "x"}, "2.10.0") is None


def test_advice_is_about_what_is_not_set():
    def fixes(environment):
        return [problem.fix for problem in npu_setup.advice(environment)]

    assert fixes({}) == [
        "export TASK_QUEUE_ENABLE=2",
        "export CPU_AFFINITY_CONF=1",
        "export PYTORCH_NPU_ALLOC_CONF=expandable_segments:True",
    ]
    best = {"TASK_QUEUE_ENABLE": "2", "CPU_AFFINITY_CONF": "0", "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert fixes(best) == []
    assert fixes({**best, "ASCEND_LAUNCH_BLOCKING": "1"}) == ["unset ASCEND_LAUNCH_BLOCKING"]
    assert fixes({**best, "TASK_QUEUE_ENABLE": "1"}) == ["export TASK_QUEUE_ENABLE=2"]


def test_only_errors_of_imports_are_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(npu_setup, "package_version", {"torch": "2.13.0", "torch_npu": "2.13.0"}.get)
    wrapped = RuntimeError("Failed to load the backend extension: torch_npu. You can disable ...")
    wrapped.__cause__ = ImportError("libhccl.so: cannot open shared object file: No such file or directory")
    line = npu_setup.explain_import(wrapped, {})
    assert line is not None and "(libhccl.so). " in line
    assert line.endswith("\n".join(["To run without an NPU:", "    pip uninstall torch_npu\n"]))
    for other in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("x"), ImportError("y")):
        assert npu_setup.explain_import(other, {}) is None
    monkeypatch.setattr(npu_setup, "package_version", {"torch": "2.13.0"}.get)
    assert npu_setup.explain_import(wrapped, {}) is None
    lacking = npu_setup.explain_import(ModuleNotFoundError("No module named 'diffusers'", name="diffusers"), {})
    assert lacking == "The package diffusers is not installed. To fix it:\n    pip install -r requirements.txt\n"
    # A mistake of this package is not the user's to fix.
    assert npu_setup.explain_import(ModuleNotFoundError("x", name="deepgen_npu.nothing"), {}) is None
    monkeypatch.setattr(npu_setup, "package_version", lambda name: None)
    assert "torch is not installed" in str(npu_setup.explain_import(ModuleNotFoundError("x", name="torch"), {}))


def test_errors_raised_inside_of_torch_npu_are_its_own(monkeypatch, tmp_path):
    """diffusers' wrapper around such an error does not name torch_npu."""
    monkeypatch.setattr(npu_setup, "package_version", {"torch": "2.13.0", "torch_npu": "2.9.0"}.get)
    file = put(tmp_path, "torch_npu/__init__.py", "raise ImportError('boom')\n")
    for where, explained in ((file, True), (put(tmp_path, "other/__init__.py", file.read_text()), False)):
        with pytest.raises(RuntimeError) as caught:
            try:
                exec(compile(where.read_text(), str(where), "exec"), {})
            except ImportError as error:
                raise RuntimeError("Failed to import diffusers.models because of: boom") from error
        line = npu_setup.explain_import(caught.value, {})
        assert (line is not None) == explained
        assert line is None or "torch_npu 2.9.0 does not belong to torch 2.13.0" in line
