"""The published folder: complete, broken in every way, found under every name."""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from golden import TINY
from safetensors.torch import save_file
from tensors import load_file

from deepgen_npu import Checkpoint, CheckpointError, DeepGenPipeline
from deepgen_npu.checkpoint.reading import read_tensor
from deepgen_npu.checkpoint.weights import load_part, load_tokenizer


def edit_json(path, **changes):
    content = json.loads(path.read_text(encoding="utf-8"))
    content.update(changes)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_the_reference_checkpoint_is_complete():
    checkpoint = Checkpoint.open(TINY)
    counts = {part: (len(tensors), checkpoint.elements(part)) for part, tensors in checkpoint.tensors.items()}
    assert counts == {
        "vlm": (488, 446_304),
        "connector": (39, 43_612),
        "transformer": (159, 191_232),
        "vae": (244, 90_791),
    }


def test_no_code_of_the_folder_runs(tiny):
    marker = tiny / "executed"
    (tiny / "deepgen_pipeline.py").write_text(f"open({str(marker)!r}, 'w')\n", encoding="utf-8")
    for part in ("vlm", "tokenizer", "transformer", "vae", "scheduler"):
        (tiny / part / "modeling.py").write_text(f"open({str(marker)!r}, 'w')\n", encoding="utf-8")
        for config in (tiny / part).glob("*config.json"):
            auto_map = dict.fromkeys(("AutoModel", "AutoConfig"), "modeling.Model")
            edit_json(config, auto_map={**auto_map, "AutoTokenizer": ["modeling.Model", None]})
    DeepGenPipeline.from_pretrained(tiny, torch_dtype=torch.float32, device="cpu")
    assert not marker.exists()


def test_pickles_are_not_read(tiny):
    weights = tiny / "vae" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"vae/diffusion_pytorch_model\.safetensors is missing"):
        DeepGenPipeline.from_pretrained(tiny)


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "prompt_template.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "connector/config.json",
        "connector/model.safetensors",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "vlm/config.json",
        "vlm/model.safetensors.index.json",
        "vlm/model-00001-of-00002.safetensors",
        "vlm/model-00002-of-00002.safetensors",
    ],
)
def test_a_missing_file_is_named(tiny, name):
    (tiny / name).unlink()
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(tiny)
    first, command, last = str(caught.value).splitlines()
    note = r"( \(\S.*\))?"
    assert re.fullmatch(rf"{tiny / name.replace('.index.json', '')}{note} is missing\. Run the download again:", first)
    assert command == "    python -m deepgen_npu download"
    assert "--to FOLDER" in last and "--source modelscope" in last


def test_the_check_needs_neither_torch_nor_weights(tiny):
    """It is over before anything slow starts."""
    import subprocess
    import sys

    (tiny / "vae" / "config.json").unlink()
    script = (
        "import sys\n"
        "from deepgen_npu import Checkpoint, CheckpointError\n"
        "try:\n    Checkpoint.open(sys.argv[1])\n"
        "except CheckpointError as error:\n    print(error)\n"
        "print([name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules])\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", script, str(tiny)], capture_output=True, text=True, check=True, cwd=TINY.parents[3]
    ).stdout
    assert "vae/config.json is missing" in output and output.endswith("[]\n")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("vlm/model-00002-of-00002.safetensors", "the download is not complete"),
        ("connector/model.safetensors", "the download is not complete"),
    ],
)
def test_a_cut_off_file_is_noticed(tiny, file, words):
    path = tiny / file
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=words):
        Checkpoint.open(tiny)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            r"Git LFS pointer of \d+ bytes, .*\. Run the download again:\n.*\n.* instead:\n    git lfs pull$",
        ),
        (b"", "cut off or is not a safetensors file"),
        (b"\xff" * 200, "cut off or is not a safetensors file"),
        (b'\x08\0\0\0\0\0\0\0{"a": 1}', "damaged safetensors header"),
        (b"\x02\0\0\0\0\0\0\0[]", "damaged safetensors header"),
    ],
)
def test_a_file_that_is_no_weights_is_noticed(tiny, content, words):
    (tiny / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        Checkpoint.open(tiny)


def test_damaged_json_is_named(tiny):
    (tiny / "vae" / "config.json").write_text('{"a": ', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"vae.config\.json is not valid JSON"):
        Checkpoint.open(tiny)


def test_a_tensor_that_the_index_promises_is_missed(tiny):
    shard = tiny / "vlm" / "model-00002-of-00002.safetensors"
    tensors = load_file(shard)
    tensors.pop("model.norm.weight")
    save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError,
        match=r"vlm/model-00002\S+ lacks the tensor model\.norm\.weight, which vlm/model\S+index\.json lists there",
    ):
        Checkpoint.open(tiny)


def test_an_index_cannot_point_out_of_the_folder(tiny):
    index = tiny / "vlm" / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    edit_json(index, weight_map={**weight_map, "model.norm.weight": "../vae/diffusion_pytorch_model.safetensors"})
    words = (
        r"\['model\.norm\.weight'\] must be the name of a \.safetensors file in the folder of the index, got '\.\./"
    )
    with pytest.raises(CheckpointError, match=words):
        Checkpoint.open(tiny)


@pytest.mark.parametrize(
    ("file", "changes", "numbers"),
    [
        ("connector/config.json", {"projector_1_in": 160}, ("160", "192")),
        ("connector/config.json", {"projector_2_out": 41}, ("41", "40")),
        ("connector/config.json", {"projector_3_out": 65}, ("65", "64")),
        ("connector/config.json", {"llm_hidden_size": 33}, ("33", "32")),
        ("connector/config.json", {"projector_1_out": 49}, ("49", "48")),
        ("transformer/config.json", {"joint_attention_dim": 128}, ("128", "64")),
        ("transformer/config.json", {"pooled_projection_dim": 39}, ("39", "40")),
        ("transformer/config.json", {"in_channels": 4}, ("4", "16")),
        ("vae/config.json", {"latent_channels": "16"}, ("'16'", "an integer from 1 to 1073741824")),
    ],
)
def test_dimensions_that_do_not_fit_are_named_with_both_numbers(tiny, file, changes, numbers):
    edit_json(tiny / file, **changes)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(tiny)
    (key,) = changes
    found, expected = numbers
    pattern = rf"{tiny / file}: {key} must be {expected}(, the .+|, given .+)?, got {found}\."
    assert re.match(pattern, str(caught.value)), str(caught.value)


def test_names_and_shapes_must_match_the_config(tiny):
    path = tiny / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    intact = dict(tensors)
    tensors["decoder.extra.weight"] = torch.zeros(1)
    save_file(tensors, path)
    with pytest.raises(
        CheckpointError, match=r"has decoder\.extra\.weight, which \S+vae.config\.json does not describe"
    ):
        load_part(Checkpoint.open(tiny), "vae", torch.float32)
    tensors = dict(intact)
    tensors.pop("decoder.conv_in.bias")
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"lacks decoder\.conv_in\.bias"):
        load_part(Checkpoint.open(tiny), "vae", torch.float32)
    tensors = dict(intact)
    tensors["decoder.conv_in.bias"] = torch.zeros(3)
    save_file(tensors, path)
    with pytest.raises(
        CheckpointError,
        match=r"decoder\.conv_in\.bias must have the shape \[16\], given \S+config\.json, got \[3\]\. Run the",
    ):
        load_part(Checkpoint.open(tiny), "vae", torch.float32)


def test_a_tokenizer_of_another_model_is_noticed(tiny):
    edit_json(tiny / "prompt_template.json", IMG_CONTEXT_TOKEN="<|video_pad|>")
    with pytest.raises(CheckpointError, match=r"image_token_id must be 269, the id in .*video_pad.*, got 268\."):
        DeepGenPipeline.from_pretrained(tiny)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float16])
def test_tensors_are_read_as_safetensors_reads_them(dtype, monkeypatch):
    monkeypatch.setattr(
        "deepgen_npu.checkpoint.reading._CHUNK_BYTES", 1000
    )  # so that reading in pieces is what is tested
    for part in ("connector", "vae"):
        stored = Checkpoint.open(TINY).tensors[part]
        expected = load_file(next(iter(stored.values())).file)
        read = []
        for name, tensor in stored.items():
            got = read_tensor(tensor, dtype, on_bytes_read=read.append)
            assert torch.equal(got, expected[name].to(dtype or expected[name].dtype)), name
        assert sum(read) == sum(tensor.nbytes for tensor in stored.values())


def test_the_vlm_may_be_saved_by_newer_transformers(tiny, pipe):
    folder = tiny / "vlm"
    tensors = {}
    for shard in folder.glob("*.safetensors"):
        tensors.update(load_file(shard))
        shard.unlink()
    (folder / "model.safetensors.index.json").unlink()
    renamed = {
        f"model.{name}" if name.startswith("visual.") else f"model.language_model.{name.removeprefix('model.')}": value
        for name, value in tensors.items()
    }
    save_file(renamed, folder / "model.safetensors")
    model = load_part(Checkpoint.open(tiny), "vlm", torch.float32)
    for (name, ours), (other, expected) in zip(model.state_dict().items(), pipe.vlm.state_dict().items(), strict=True):
        assert name == other and torch.equal(ours, expected), name


def test_the_text_config_may_be_flat(tiny, pipe):
    """As in the configs that transformers wrote before it nested them."""
    path = tiny / "vlm" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    text = config.pop("text_config")
    text.pop("model_type")
    path.write_text(json.dumps({**text, **config}), encoding="utf-8")
    flat = DeepGenPipeline.from_pretrained(tiny, torch_dtype=torch.float32, device="cpu")
    for ours, expected in zip(
        flat.encode_prompt("a cat", height=64, width=64), pipe.encode_prompt("a cat", height=64, width=64), strict=True
    ):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_weights_loaded_in_inference_mode_can_be_moved_outside():
    with torch.inference_mode():
        model = load_part(Checkpoint.open(TINY), "vlm", torch.float32)
    assert not any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers()))


def test_loading_in_two_threads(pipe):
    """Other threads' modules must not end up without memory, nor these."""
    made = []

    def load(_):
        return DeepGenPipeline.from_pretrained(TINY, torch_dtype=torch.float32, device="cpu")

    with ThreadPoolExecutor(3) as threads:
        loads = [threads.submit(load, None) for _ in range(4)]
        while not all(one.done() for one in loads):
            made.append(torch.nn.Linear(2, 2).weight.device.type)
    assert set(made) == {"cpu"}
    expected = pipe.encode_prompt("a cat", height=64, width=64)[0]
    assert all(torch.equal(one.result().encode_prompt("a cat", height=64, width=64)[0], expected) for one in loads)
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"


def test_the_embedding_is_there_once(pipe):
    """ComfyUI would count a tied lm_head as a second one of 0.6 GB."""
    assert not any("lm_head" in name for name in pipe.vlm.state_dict())


def test_settings_of_the_machine_that_saved_it_do_not_count(tiny):
    edit_json(tiny / "vlm" / "config.json", _attn_implementation="flash_attention_2")
    pipe = DeepGenPipeline.from_pretrained(tiny, torch_dtype=torch.float32, device="cpu")
    assert pipe.vlm.model.language_model.config._attn_implementation == "sdpa"


def test_a_vae_without_shift(tiny):
    edit_json(tiny / "vae" / "config.json", shift_factor=None)
    pipe = DeepGenPipeline.from_pretrained(tiny, torch_dtype=torch.float32, device="cpu")
    pixels = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(pipe.encode_image(pixels), pipe.vae.encode(pixels).latent_dist.mode() * 1.5305)


def test_a_byte_order_mark_is_no_damage(tiny):
    path = tiny / "vae" / "config.json"
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    Checkpoint.open(tiny)


@pytest.mark.parametrize("key", ["num_queries", "connector"])
def test_a_connector_config_without_its_numbers(tiny, key):
    path = tiny / "connector" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if key == "connector":
        del config["connector"]["num_hidden_layers"]
    else:
        del config[key]
    path.write_text(json.dumps(config), encoding="utf-8")
    words = r"must be an integer from 1 to \d+, got nothing \(the key is missing\)\."
    with pytest.raises(CheckpointError, match=rf"config\.json: (connector\.)?num_\w+ {words}"):
        Checkpoint.open(tiny)


class TestGoing:
    """What happens to a checkpoint after it was opened, or is none of its business."""

    @pytest.mark.parametrize("part", ["connector", "vae"])
    def test_a_folder_that_is_gone(self, tiny, part):
        checkpoint = Checkpoint.open(tiny)
        shutil.rmtree(tiny)
        file = next(iter(checkpoint.tensors[part].values())).file
        with pytest.raises(
            CheckpointError,
            match=rf"{file.name} can no longer be read \(No such file.*Was it moved, replaced or removed while",
        ):
            load_part(checkpoint, part, torch.float32)
        with pytest.raises(CheckpointError, match=r"tokenizer_config\.json is missing"):
            load_tokenizer(checkpoint)

    def test_a_file_that_became_shorter(self, tiny):
        checkpoint = Checkpoint.open(tiny)
        file = tiny / "vae" / "diffusion_pytorch_model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
        with pytest.raises(
            CheckpointError, match=r"is shorter than its header says\. Was it modified while loading\?"
        ):
            load_part(checkpoint, "vae", torch.float32)

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, ValueError, MemoryError, OSError])
    def test_what_ends_the_reading_from_outside_comes_through(self, error):
        raised = error("stop")

        def cancel(count):
            raise raised

        with pytest.raises(error) as caught:
            load_part(Checkpoint.open(TINY), "vae", torch.float32, on_bytes_read=cancel)
        assert caught.value is raised

    def test_what_a_library_makes_of_it_names_the_part(self, tiny, monkeypatch):
        import diffusers

        def fail(config):
            raise RuntimeError("odd")

        monkeypatch.setattr(diffusers.AutoencoderKL, "from_config", fail)
        with pytest.raises(CheckpointError, match=r"vae.config\.json: the vae cannot be built from it .*odd"):
            load_part(Checkpoint.open(tiny), "vae", torch.float32)
