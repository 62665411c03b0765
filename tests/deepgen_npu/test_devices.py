"""Choices of device, dtype and noise."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from platforms import not_on_windows

from deepgen_npu import devices, npu, npu_setup
from deepgen_npu.devices import random_noise, resolve_device, resolve_dtype
from deepgen_npu.errors import DeviceError


def test_devices_of_this_machine():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")
    assert resolve_device("auto").type in ("npu", "cuda", "cpu")


@pytest.mark.parametrize("name", ["gpu", "npu:x", "cuda:-1", "", "cpu;"])
def test_unknown_names(name):
    with pytest.raises(ValueError) as raised:
        resolve_device(name)
    assert str(raised.value) == f"device must be auto, npu, npu:N, cuda, cuda:N or cpu, got {name!r}."


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_missing_cuda_device():
    with pytest.raises(devices.DeviceError, match=r"^cuda:1 does not exist: this PyTorch finds no CUDA device.*auto"):
        resolve_device("cuda:1")


@pytest.mark.parametrize(("count", "cards"), [(1, "cuda:0"), (2, "cuda:0 to cuda:1")])
def test_a_card_beyond_the_last(monkeypatch, count, cards):
    found = SimpleNamespace(is_available=lambda: True, device_count=lambda: count)
    monkeypatch.setattr(torch, "cuda", found)
    with pytest.raises(devices.DeviceError, match=rf"^cuda:2 does not exist: this machine has {cards}\. CUDA_VISIBLE"):
        resolve_device("cuda:2")


def refused(name: str) -> list[str]:
    """The lines of the error for a device: problem, command, alternative, and its command if there is one."""
    with pytest.raises(devices.DeviceError) as raised:
        resolve_device(name)
    return str(raised.value).splitlines()


def test_a_missing_npu(monkeypatch, python_of_all_stacks):
    monkeypatch.setattr(npu_setup, "cann_version", lambda *_: "8.5.1")
    monkeypatch.setattr(torch, "__version__", "2.9.0+cpu")
    assert refused("npu") == [
        "The NPU cannot be used: torch_npu is not installed in this Python. To fix it:",
        "    pip install torch_npu==2.9.0",
        npu_setup.WITHOUT_NPU,
    ]


UNINSTALL = ["To run without an NPU:", "    pip uninstall torch_npu"]


class TestATorchNpuThatCannotBeUsed:
    """The message has the reason and the command that fixes it."""

    @pytest.fixture(autouse=True)
    def _fresh(self, monkeypatch):
        npu.import_torch_npu.cache_clear()
        monkeypatch.setattr(npu_setup, "package_version", lambda name: torch.__version__.split("+")[0] + ".post1")
        monkeypatch.setattr(npu_setup, "set_env_script", lambda *_: Path("/opt/cann/set_env.sh"))
        yield
        npu.import_torch_npu.cache_clear()

    @pytest.fixture
    def install(self, monkeypatch, tmp_path):
        """Puts a torch_npu on the path whose source is given."""

        def install(source: str) -> None:
            (tmp_path / "torch_npu.py").write_text(source, encoding="utf-8")
            monkeypatch.syspath_prepend(tmp_path)
            monkeypatch.delitem(sys.modules, "torch_npu", raising=False)

        return install

    def test_nobody_imports_it_who_does_not_want_an_npu(self, install):
        install("raise AssertionError('imported')")
        assert resolve_device("cpu") == torch.device("cpu")
        assert "torch_npu" not in sys.modules

    def test_it_belongs_to_another_torch(self, monkeypatch, install, python_of_all_stacks):
        install("raise AssertionError('imported in spite of its version')")
        monkeypatch.setattr(npu_setup, "package_version", lambda name: "2.1.0.post3")
        problem, command, *alternative = refused("npu")
        assert "torch_npu 2.1.0.post3 does not belong to torch" in problem
        assert command.startswith("    pip install -r requirements-npu-cann9.1.txt ") and alternative == UNINSTALL

    @not_on_windows("its paths have \\, and no Ascend host runs it")
    def test_cann_is_not_sourced(self, install):
        missing = "libhccl.so: cannot open shared object file: No such file or directory"
        install(f"raise ImportError({missing!r})")
        problem, command, *alternative = refused("npu:1")
        assert problem == f"The NPU cannot be used: {npu_setup.NOT_SOURCED} (libhccl.so). To fix it:"
        assert command == "    source /opt/cann/set_env.sh" and alternative == UNINSTALL

    def test_a_package_that_it_needs_is_missing(self, install):
        install("import a_package_that_is_nowhere")
        problem, command, *alternative = refused("npu")
        assert "needs the package a_package_that_is_nowhere, which is not installed. To fix it:" in problem
        assert command == f"    {npu_setup.WHAT_TORCH_NPU_NEEDS}" and alternative == UNINSTALL

    def test_a_fix_that_is_no_command_is_a_sentence(self, install):
        install("raise RuntimeError('Two accelerators cannot be used at the same time in PyTorch: npu and cuda.')")
        problem, *alternative = refused("npu")
        assert problem.endswith("of another kind. Install the CPU build of PyTorch for torch_npu. " + UNINSTALL[0])
        assert alternative == UNINSTALL[1:]

    def test_auto_goes_on_without_it_and_says_so(self, install, caplog):
        install("raise ImportError('libhccl.so: cannot open shared object file')")
        assert resolve_device("auto").type in ("cuda", "cpu")
        (record,) = caplog.records
        assert record.getMessage().startswith("The NPU cannot be used: ") and record.levelname == "WARNING"
        assert "\n    source /opt/cann/set_env.sh\n" in record.getMessage()

    @pytest.mark.parametrize(
        ("visible", "cards", "driver", "what", "fix"),
        [
            ("7", ["/dev/davinci0"], None, "/dev/davinci0: ASCEND_RT_VISIBLE_DEVICES is '7'.", "unset ASCEND_RT_VIS"),
            (None, ["/dev/davinci0"], "25.0", "although there is /dev/davinci0.", "npu-smi info"),
            (None, [], "25.0", "the driver is installed, but there is no card at /dev/davinci*.", "npu-smi info"),
        ],
    )
    def test_there_is_no_card(self, monkeypatch, install, visible, cards, driver, what, fix):
        """Nothing follows the command on its line, and no sentence ends twice."""
        install("")
        nothing = SimpleNamespace(is_available=lambda: False, device_count=lambda: 0)
        monkeypatch.setattr(torch, "npu", nothing, raising=False)
        monkeypatch.setattr(npu_setup, "cards", lambda: cards)
        monkeypatch.setattr(npu_setup, "driver_version", lambda: driver)
        monkeypatch.delenv("ASCEND_RT_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", visible)
        problem, command, *alternative = refused("npu")
        assert problem.endswith(f"{what} To fix it:") and not re.search(r"[.?!][.?!]", problem)
        assert command.startswith(f"    {fix}") and alternative == [npu_setup.WITHOUT_NPU]


@pytest.mark.parametrize("fast", [True, False])
def test_auto_dtype(monkeypatch, fast):
    monkeypatch.setattr(devices, "cpu_has_fast_bfloat16", lambda: fast)
    assert resolve_dtype("auto", torch.device("cpu")) == (torch.bfloat16 if fast else torch.float32)


# torch knows the name npu only once torch_npu is imported.
NPU = SimpleNamespace(type="npu", index=0)


@pytest.mark.parametrize(
    ("soc", "answer", "dtype"),
    [
        ("Ascend910B3", True, torch.bfloat16),
        ("Ascend310P3", False, torch.float16),
        ("Ascend310B4", True, torch.float32),
    ],
)
def test_auto_dtype_of_an_npu(monkeypatch, caplog, soc, answer, dtype):
    card = SimpleNamespace(get_device_name=lambda device: soc, is_bf16_supported=lambda: answer)
    monkeypatch.setattr(torch, "npu", card, raising=False)
    with caplog.at_level("INFO"):
        assert resolve_dtype("auto", NPU) == resolve_dtype(None, NPU) == dtype
    said = f"dtype auto is {str(dtype)[6:]} on {NPU}: {devices.best_dtype(NPU).why}."
    assert [said] * 2 == caplog.messages or dtype == torch.bfloat16
    assert resolve_dtype("float16", NPU) == torch.float16
    if dtype == torch.bfloat16:
        assert resolve_dtype("bfloat16", NPU) == dtype and caplog.messages == []
    else:
        with pytest.raises(DeviceError, match=rf"bfloat16 cannot be used .* {soc} .*Choose auto, which is float"):
            resolve_dtype("bfloat16", NPU)


def test_a_torch_npu_that_does_not_say(monkeypatch):
    def fail():
        raise RuntimeError("no")

    card = SimpleNamespace(get_device_name=lambda device: "Ascend310P3", is_bf16_supported=fail)
    monkeypatch.setattr(torch, "npu", card, raising=False)
    assert resolve_dtype("auto", NPU) == torch.float16
    del card.is_bf16_supported
    assert resolve_dtype("auto", NPU) == torch.float16


@pytest.mark.parametrize(
    ("capability", "dtype"), [((9, 0), torch.bfloat16), ((7, 5), torch.float16), ((6, 1), torch.float32)]
)
def test_auto_dtype_of_a_gpu(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_dtype("auto", torch.device("cuda")) == dtype
    assert resolve_dtype("bfloat16", torch.device("cuda")) == torch.bfloat16  # emulated where it must be


def test_fast_bfloat16_is_what_the_cpu_says():
    assert isinstance(devices.cpu_has_fast_bfloat16(), bool)


def test_named_dtypes():
    cpu = torch.device("cpu")
    for name in ("float32", "bfloat16", "float16"):
        assert resolve_dtype(name, cpu) == resolve_dtype(getattr(torch, name), cpu) == getattr(torch, name)
    for wrong in ("fp8", torch.float64, torch.int8):
        with pytest.raises(ValueError) as raised:
            resolve_dtype(wrong, cpu)
        assert str(raised.value) == f"dtype must be one of auto, bfloat16, float16, float32, got {wrong!r}."


def test_noise_of_a_seed_is_float32_whatever_the_model():
    def generator():
        return torch.Generator().manual_seed(42)

    expected = torch.randn(2, 16, 4, 4, generator=generator())
    for dtype in (torch.float32, torch.bfloat16):
        noise = random_noise((2, 16, 4, 4), generator(), dtype)
        assert noise.dtype == torch.float32 and torch.equal(noise, expected)


def test_noise_of_a_devices_generator_is_drawn_there_in_the_models_dtype(monkeypatch):
    """As the original draws it. The device is a stand-in: only the request is checked."""
    generator = SimpleNamespace(device=torch.device("meta"))
    requests = []
    monkeypatch.setattr(torch, "randn", lambda *shape, **options: requests.append((shape, options)) or "noise")
    assert random_noise((1, 16, 4, 4), generator, torch.bfloat16) == "noise"
    wanted = {"generator": generator, "device": torch.device("meta"), "dtype": torch.bfloat16}
    assert requests == [(((1, 16, 4, 4),), wanted)]


def test_the_noise_of_an_image_does_not_depend_on_how_many_follow():
    one = random_noise((1, 16, 4, 4), torch.Generator().manual_seed(1), torch.float32)
    three = random_noise((3, 16, 4, 4), torch.Generator().manual_seed(1), torch.float32)
    assert torch.equal(one[0], three[0])


HOST_IS_FULL = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "40000000000 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("NPU out of memory. Tried to allocate 2.00 GiB (NPU 0; 60.96 GiB total capacity)"), True),
        (RuntimeError(HOST_IS_FULL), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 64 bytes."), True),
        (MemoryError(), True),
        (RuntimeError("aclnnMatmul failed"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_recognised(error, expected):
    assert devices.is_out_of_memory(error) is expected


def test_the_hosts_allocator_is_understood():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert devices.is_out_of_memory(raised.value) and devices.is_out_of_host_memory(raised.value)
    assert not devices.is_out_of_host_memory(torch.OutOfMemoryError("CUDA out of memory."))


def test_the_host_reports_its_memory():
    found = devices.free_memory(torch.device("cpu"))
    assert found is None or 2**20 < found[0] <= found[1] < 2**50
