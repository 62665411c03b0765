"""What is not a prompt is refused before weights are read; a prompt is encoded in the memory that attention takes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from golden import TINY
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from property_settings import cases, drawn
from torch.utils._python_dispatch import TorchDispatchMode

from deepgen_npu import cli, devices, memory, prompts
from deepgen_npu.checkpoint import weights
from deepgen_npu.checkpoint.folder import Checkpoint
from deepgen_npu.checkpoint.prompt_check import check_prompts_for
from deepgen_npu.errors import CheckpointError
from deepgen_npu.memory import OutOfDeviceMemory
from deepgen_npu.model import ops
from deepgen_npu.model.vision_language import attention_mask, stacked_hidden_states
from deepgen_npu.prompts import MAX_TOKENS, check_prompts, tokenize


ROOT = Path(__file__).parents[2]
MARKERS = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
CONTROL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|video_pad|>", "<|object_ref_start|>", "{input}")
CATEGORIES = (
    "Lu",
    "Ll",
    "Lo",
    "Lm",
    "Mn",
    "Me",
    "Nd",
    "Nl",
    "Pd",
    "Sc",
    "Sk",
    "So",
    "Zs",
    "Zl",
    "Cc",
    "Cf",
    "Co",
    "Cn",
)
WIDE = ("\u0301", "\u0958", "\U0001d160", "\u1100\u1161\u11a8", "\U0001f468\u200d\U0001f33e", "\u05d0", "\u4e00")

mixed = st.text(st.characters(codec=None, exclude_categories=()), max_size=60)
KINDS = {
    "text of one category": st.sampled_from(CATEGORIES).flatmap(
        lambda category: st.text(st.characters(categories=[category]), max_size=40)
    ),
    "text of all categories": mixed,
    "lone surrogate": st.tuples(mixed, st.characters(categories=["Cs"]), mixed).map("".join),
    "placeholder": st.tuples(mixed, st.sampled_from(MARKERS), mixed).map("".join),
    "control token": st.tuples(mixed, st.sampled_from(CONTROL), mixed).map("".join),
    "right to left": st.text(st.characters(min_codepoint=0x590, max_codepoint=0x7BF), max_size=60),
    "run": st.tuples(
        st.one_of(st.sampled_from(["a", " ", "\n", "word ", *CONTROL, *WIDE]), st.text(min_size=1, max_size=4)),
        st.one_of(st.integers(1, 60), st.integers(300, 5000), st.integers(10**5, 10**6)),
    ).map(lambda drawn: (drawn[0] * drawn[1])[: 10**6]),
}


@pytest.mark.parametrize("kind", KINDS)
@cases(10)
@given(data=st.data())
def test_a_text_is_refused_with_its_name_or_encoded(pipe, kind, data):
    text, editing = data.draw(KINDS[kind]), data.draw(st.booleans())
    name = data.draw(st.sampled_from(["prompt", "negative_prompt"]))
    drawn[f"prompt, {kind}"] += 1
    texts = {"prompt": "a cat", "negative_prompt": "", name: text}

    surrogate = re.search("[\ud800-\udfff]", text)
    marker = next((marker for marker in MARKERS if marker in text), None)
    template = pipe.prompt_template
    tokens = len(text)  # of the longest runs, whose own count takes seconds: far too many in any case
    if not surrogate and len(text) < 10**5:
        full = template.for_editing(text, [0]) if editing else template.for_generation(text)
        tokens = len(pipe.tokenizer(full)["input_ids"])
    try:
        check_prompts(template, lambda: pipe.tokenizer, **texts, editing=editing)
    except ValueError as error:
        message = str(error)
        assert message.startswith(f"{name} ") and len(message) < 300
        message.encode()
        if surrogate:
            assert message.startswith(f"{name} must be Unicode text, got a lone surrogate ")
            assert f"U+{ord(surrogate[0]):04X}" in message and f"as character {surrogate.start() + 1}." in message
        elif marker:
            assert message.startswith(f"{name} must not contain {marker}, ")
        else:
            limit, found = (int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", message))
            assert limit == MAX_TOKENS < tokens
            assert found == tokens or len(text) >= 10**5
        return
    assert not surrogate and not marker and tokens <= MAX_TOKENS
    if tokens <= 200:
        image = Image.new("RGB", (32, 32)) if editing else None
        embeds = pipe.encode_prompt(texts["prompt"], image, texts["negative_prompt"], 32, 32)
        assert all(tensor.isfinite().all() for tensor in embeds)


@pytest.mark.parametrize("editing", [False, True])
@pytest.mark.parametrize("letter", ["a", "\u0416"])
def test_the_limit_is_met_to_the_token(pipe, editing, letter):
    def check(text, **changes):
        texts = {"prompt": "a", "negative_prompt": "", **changes, "editing": editing}
        return check_prompts(pipe.prompt_template, lambda: pipe.tokenizer, **{**texts, "prompt": text})

    template = pipe.prompt_template
    around = template.for_editing("", [0]) if editing else template.for_generation("")
    room = MAX_TOKENS - len(pipe.tokenizer(around)["input_ids"])
    longest = "a" * (room % len(letter.encode())) + letter * (room // len(letter.encode()))
    assert check(longest) == ([longest], "")
    with pytest.raises(
        ValueError, match=r"^prompt must have at most 4,096 tokens with the template around it, got 4,097\. Shorten it"
    ):
        check(longest + "a")
    with pytest.raises(ValueError, match=r"^prompt 2 of 3 must have at most 4,096 tokens .*, got 4,097\."):
        check(["a", longest + "a", "b"])
    with pytest.raises(ValueError, match=r"^negative_prompt must have at most 4,096 tokens .*, got 4,097\."):
        check("a", negative_prompt=longest + "a")


def test_texts_of_the_usual_length_need_no_tokenizer(pipe):
    def too_slow():
        raise AssertionError("the tokenizer was loaded")

    for text in ("a cat " * 200, "\u732b" * 300):
        check_prompts(pipe.prompt_template, too_slow, text, None, editing=True)
    with pytest.raises(ValueError, match=r"^prompt must have at most 4,096 tokens .*, got at least 156,250\."):
        check_prompts(pipe.prompt_template, too_slow, "a" * 20_000_000, None, editing=False)


def test_a_template_that_leaves_no_room_is_the_checkpoints_fault(pipe):
    # Each is three bytes, and so three tokens of the tiny vocabulary.
    template = prompts.PromptTemplate("\u6c34" * 4000 + "{input}", "{input}", *MARKERS)
    with pytest.raises(
        CheckpointError,
        match=r"^prompt_template\.json must have at most 4,096 tokens with the prompt, got 12,000 without one\.$",
    ):
        check_prompts(template, lambda: pipe.tokenizer, "a cat", None, editing=False)


REFUSED = {
    "a" * (MAX_TOKENS + 1): r"must have at most 4,096 tokens with the template around it, got 4,\d{3}\. Shorten it",
    "caf\udce9": r"must be Unicode text, got a lone surrogate \(U\+DCE9, from the byte 0xe9, which is not UTF-8\)",
    "\ud83d": r"must be Unicode text, got a lone surrogate \(U\+D83D\) as character 1\. Remove it",
    "a <|vision_start|>": r"must not contain <\|vision_start\|>, the model's placeholder for images\. Remove it",
}


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
@pytest.mark.parametrize("text", REFUSED, ids=["too long", "byte", "surrogate", "placeholder"])
def test_the_library_refuses_before_anything_else(pipe, name, text):
    texts = {"prompt": "a", name: text}
    calls = (
        lambda: pipe(**texts, height=1),
        lambda: pipe.encode(**texts, height=1),
        lambda: pipe.encode_each(**texts, images=[["not an image"]]),
        lambda: pipe.encode_prompt(**texts, num_images_per_prompt=0),
    )
    for call in calls:
        with pytest.raises(ValueError, match=f"^{name} .*?{REFUSED[text]}"):
            call()


@pytest.mark.parametrize(
    ("prompt", "negative", "words"),
    [
        ([], "", "prompt must be a string or a list of strings, got []."),
        (None, "", "prompt must be a string or a list of strings, got None."),
        (b"a cat", "", "prompt must be a string or a list of strings, got b'a cat'."),
        (["a", 5], "", "prompt must be a string or a list of strings, got ['a', 5]."),
        (["a"] * 1001, "", "prompt must have at most 1,000 texts, got 1,001."),
        ("a", b"", "negative_prompt must be a string (one for the whole batch), got bytes."),
        ("a", ["b"], "negative_prompt must be a string (one for the whole batch), got list."),
    ],
)
def test_what_is_not_a_text_is_not_a_prompt(pipe, prompt, negative, words):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(words)}"):
        pipe(prompt, negative_prompt=negative, height=1)


@pytest.fixture
def no_weights(monkeypatch):
    def too_late(*arguments, **options):
        raise AssertionError("weights were read")

    monkeypatch.setattr(weights, "read_tensor", too_late)


@pytest.mark.parametrize("text", REFUSED, ids=["too long", "byte", "surrogate", "placeholder"])
@pytest.mark.parametrize(
    "command",
    [
        ["generate", "--output_image", "x.png", "--prompt"],
        ["generate", "--output_image", "x.png", "--negative_prompt"],
        ["bench", "--prompt"],
        ["verify", "--prompt"],
    ],
    ids=lambda command: f"{command[0]} {command[-1]}",
)
def test_commands_refuse_before_they_load(no_weights, capsys, monkeypatch, tmp_path, command, text):
    monkeypatch.chdir(tmp_path)
    small = ["--model_path", str(TINY), "--device", "cpu", "--height", "64", "--width", "64"]
    assert cli.main([command[0], *small, *command[1:], text]) == 2
    captured = capsys.readouterr()
    assert "Loading" not in captured.out and len(captured.err.splitlines()) == 1
    assert re.search(f"^error: {command[-1].strip('-')} .*?{REFUSED[text]}", captured.err)


@pytest.mark.skipif(os.name == "nt", reason="a command line there is Unicode")
def test_bytes_of_the_command_line_that_are_not_utf8_are_named(tmp_path):
    command = [sys.executable, "-m", "deepgen_npu", "generate", "--model_path", str(TINY), "--device", "cpu"]
    options = ["--height", "64", "--width", "64", "--output_image", str(tmp_path / "x.png"), "--prompt", b"caf\xe9"]
    environment = {**os.environ, "PYTHONUTF8": "1"}
    run = subprocess.run([*command, *options], capture_output=True, cwd=ROOT, env=environment)
    assert run.returncode == 2 and b"Loading" not in run.stdout
    (line,) = run.stderr.decode().splitlines()
    assert line.startswith(
        "error: prompt must be Unicode text, got a lone surrogate (U+DCE9, from the byte 0xe9, which is not UTF-8)"
    )


def test_a_folder_is_asked_without_its_weights(no_weights, tiny):
    checkpoint = Checkpoint.open(tiny)
    check_prompts_for(checkpoint, "a" * 2000, "", editing=True)
    with pytest.raises(ValueError, match=r"^prompt must have at most 4,096 tokens .*, got 5,\d\d\d\."):
        check_prompts_for(checkpoint, "a" * 5000, "", editing=True)


class LargeTensors(TorchDispatchMode):
    """The most bytes that tensors of at least ``elements`` elements held at once."""

    def __init__(self, elements):
        super().__init__()
        self.elements, self.peak, self._alive = elements, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() >= self.elements:
                storage = tensor.untyped_storage()
                self._alive.setdefault(storage.data_ptr(), [storage.nbytes(), []])[1].append(weakref.ref(tensor))
        self._alive = {key: kept for key, kept in self._alive.items() if any(one() is not None for one in kept[1])}
        self.peak = max(self.peak, sum(nbytes for nbytes, _ in self._alive.values()))
        return result


@pytest.mark.parametrize("padding", [0, 5, 200])
@pytest.mark.parametrize(("implementation", "itemsize"), [("sdpa", 1), ("eager", 1 + 4), ("flash_attention_2", 0)])
def test_a_mask_is_made_without_a_second_one(padding, implementation, itemsize):
    length = 300
    valid = torch.ones(2, length, dtype=torch.bool)
    valid[1, :padding] = False
    with LargeTensors(length * length) as large:
        mask = attention_mask(valid, implementation, torch.float32)
    assert large.peak == itemsize * 2 * length**2
    if implementation == "sdpa":
        assert ops.attention_mask(mask) is mask
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        expected = (causal & valid[:, None, :]) | torch.eye(length, dtype=torch.bool)
        assert torch.equal(mask, expected[:, None])


def test_a_long_prompt_takes_what_attention_takes(pipe):
    """Besides the one mask no tensor of length x length, except those that PyTorch makes in its own attention."""
    length = 1024
    ids, valid = tokenize(pipe.tokenizer, ["a" * (length - pipe.connector.num_queries), ""])
    config = pipe.vlm.config.get_text_config()
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    q = torch.zeros(2, length, heads, width)
    mask = torch.ones(2, 1, length, length, dtype=torch.bool)
    with LargeTensors(length * length) as own:
        ops.attention(q, q, q, mask.clone())
    with LargeTensors(length * length) as total, torch.no_grad():
        stacked_hidden_states(pipe.vlm, ids, valid, pipe.connector.meta_queries)
    assert own.peak > mask.nbytes
    assert total.peak <= own.peak


def test_main_memory_that_is_used_up_is_explained(pipe, monkeypatch):
    """With PyTorch's own error, and where the system does not report its memory."""

    def ask_for_too_much(*arguments):
        torch.empty(2**60, dtype=torch.uint8)

    hook = pipe.vlm.model.language_model.layers[0].self_attn.q_proj.register_forward_hook(ask_for_too_much)
    try:
        with pytest.raises(OutOfDeviceMemory) as reported:
            pipe.encode_prompt("a" * 1000, height=64, width=64)
        monkeypatch.setattr(memory, "free_memory", lambda device: None)
        with pytest.raises(OutOfDeviceMemory) as silent:
            pipe.encode_prompt(["a cat", "a dog"], Image.new("RGB", (64, 64)), height=64, width=64)
    finally:
        hook.remove()
    message = str(reported.value)
    assert re.search(r"^Out of memory on cpu in the vlm \(2 rows at once, 1\d\d\d tokens of text\)\.", message)
    assert "shorten the prompt" in message and "you tried to allocate 1152921504606846976 bytes" in message
    assert ("GiB are free" in message) == (devices.free_memory(torch.device("cpu")) is not None)
    message = str(silent.value)
    assert "(64 x 64 pixels, 4 rows at once, 1 reference(s)). What can help: make fewer" in message
    assert "GiB are free" not in message and "shorten" not in message
