"""Weights as views of their files, on Linux: the same bits, and nothing that is done to them reaches the files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from lora_files import Example, equal, state
from platforms import linux_only
from safetensors.torch import save_file
from torch import Tensor

from deepgen_npu import Checkpoint, CheckpointError, DeepGenPipeline
from deepgen_npu.checkpoint import mapping
from deepgen_npu.checkpoint.reading import Means, read_tensor
from deepgen_npu.checkpoint.safetensors_header import read_safetensors_header
from deepgen_npu.checkpoint.weights import load_part


pytestmark = linux_only("elsewhere nothing is mapped")


def mapped_from(tensor: Tensor) -> Path | None:
    """The file whose private pages a tensor lies in."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        addresses, permissions, _, _, _, *path = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in addresses.split("-"))
        if path and path[0].endswith(".safetensors") and start <= tensor.data_ptr() < end:
            assert permissions == "rw-p"
            return Path(path[0])
    return None


def connector(folder: Path, dtype: torch.dtype = torch.float32, **options) -> dict[str, Tensor]:
    return load_part(Checkpoint.open(folder), "connector", dtype, **options).state_dict()


@pytest.fixture
def on_a_mount(monkeypatch, tmp_path):
    """What the system says about mounts, with another type of file system."""

    def pretend(kind: str) -> None:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
        halves = [line.split(" - ") for line in lines]
        changed = [f"{left} - {' '.join([kind, *right.split(' ')[1:]])}\n" for left, right in halves]
        (tmp_path / "mountinfo").write_text("".join(changed), encoding="utf-8")
        monkeypatch.setattr(mapping, "_MOUNTS", tmp_path / "mountinfo")

    return pretend


def test_weights_are_views_of_the_file(tiny):
    read: list[int] = []
    ours = connector(tiny, on_bytes_read=read.append)
    expected = connector(tiny, disable_mmap=True)
    assert {mapped_from(tensor) for tensor in ours.values()} == {tiny / "connector" / "model.safetensors"}
    assert {mapped_from(tensor) for tensor in expected.values()} == {None}
    assert equal(ours, expected)
    assert sum(read) == Checkpoint.open(tiny).nbytes("connector")


def test_all_parts_of_a_pipeline_and_the_way_to_turn_it_off(tiny):
    """As published: the connector is in float32, and its weights are cast."""
    for disable_mmap in (False, True):
        pipe = DeepGenPipeline.from_pretrained(tiny, torch_dtype="bfloat16", device="cpu", disable_mmap=disable_mmap)
        for part in ("vlm", "connector", "transformer", "vae"):
            files = {mapped_from(tensor) for tensor in pipe.components[part].state_dict().values()}
            is_mapped = not disable_mmap and part != "connector"
            assert files == (set((tiny / part).glob("*.safetensors")) if is_mapped else {None}), part


def test_a_lora_in_place_does_not_reach_the_file(tiny, tmp_path):
    file = tiny / "transformer" / "diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    pipe = DeepGenPipeline.from_pretrained(tiny, torch_dtype="bfloat16", device="cpu")
    before = state(pipe.transformer)
    pipe.load_lora_weights(Example.of(pipe.transformer, seed=1).save(tmp_path / "style.safetensors"))
    weight = pipe.transformer.transformer_blocks[0].attn.to_q.weight
    assert mapped_from(weight) == file and not equal(state(pipe.transformer), before)
    assert file.read_bytes() == content
    pipe.unload_lora_weights()
    assert equal(state(pipe.transformer), before)


def test_a_file_may_be_replaced_while_the_model_lives(tiny):
    ours, expected = connector(tiny), connector(tiny, disable_mmap=True)
    file = tiny / "connector" / "model.safetensors"
    other = file.with_suffix(".new")
    other.write_bytes(bytes(file.stat().st_size))
    os.replace(other, file)
    assert equal(ours, expected)


def test_what_is_cast_is_never_mapped(tiny):
    """Its pages would stay in memory beside the result."""
    ours = connector(tiny, torch.bfloat16)
    assert {mapped_from(tensor) for tensor in ours.values()} == {None}
    assert str(tiny) not in Path("/proc/self/maps").read_text(encoding="utf-8")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int8])
def test_any_dtype_and_any_place_in_the_file(tmp_path, dtype):
    """Some writers do not pad their headers: what is not aligned then is copied."""
    file = tmp_path / "a.safetensors"
    tensors = {"a": torch.arange(35).reshape(5, 7).to(dtype), "b": torch.ones((), dtype=dtype)}
    save_file({**tensors, "none": torch.empty(0, 3, dtype=dtype)}, file)
    padded = file.read_bytes()
    for padding in range(2):
        length = int.from_bytes(padded[:8], "little")
        header = padded[8 : 8 + length] + b" " * padding
        file.write_bytes(len(header).to_bytes(8, "little") + header + padded[8 + length :])
        with Means() as means:
            got = {name: read_tensor(stored, means=means) for name, stored in read_safetensors_header(file).items()}
        assert got["none"].shape == (0, 3)
        for name, expected in tensors.items():
            assert torch.equal(got[name], expected) and got[name].dtype == dtype
            aligned = padding == 0 or dtype.itemsize == 1
            assert (mapped_from(got[name]) == file) == aligned
            assert got[name].data_ptr() % dtype.itemsize == 0


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs", "drvfs", "lustre"])
def test_files_of_a_network_are_read(tiny, on_a_mount, kind):
    on_a_mount("ext4")
    assert None not in {mapped_from(tensor) for tensor in connector(tiny).values()}
    on_a_mount(kind)
    assert {mapped_from(tensor) for tensor in connector(tiny).values()} == {None}


def test_where_the_system_does_not_say(tiny, monkeypatch):
    monkeypatch.setattr(mapping, "_MOUNTS", tiny / "nothing")
    assert {mapped_from(tensor) for tensor in connector(tiny).values()} == {None}


def test_what_the_system_does_not_lend_is_read(tiny, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mapping.mmap, "mmap", refuse)
    assert {mapped_from(tensor) for tensor in connector(tiny).values()} == {None}


def test_a_file_that_becomes_shorter_while_it_is_loaded(tiny):
    checkpoint = Checkpoint.open(tiny)
    file = tiny / "connector" / "model.safetensors"

    def cut(count: int) -> None:
        os.truncate(file, file.stat().st_size // 2)

    with pytest.raises(CheckpointError, match=r"is shorter than its header says\. Was it modified while loading\?"):
        load_part(checkpoint, "connector", torch.float32, on_bytes_read=cut)
