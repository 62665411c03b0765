"""The tokenizer that is built from checked files is the library's own, bit for bit; no key leads to another file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from golden import TINY
from hypothesis import given
from hypothesis import strategies as st
from property_settings import cases, drawn
from transformers import Qwen2TokenizerFast

from deepgen_npu import Checkpoint, CheckpointError
from deepgen_npu.checkpoint.tokenizer_files import TokenizerFiles
from deepgen_npu.checkpoint.weights import load_tokenizer
from deepgen_npu.locations import DEMO_FOLDER


STOCK = {source: Qwen2TokenizerFast.from_pretrained(source / "tokenizer") for source in (TINY, DEMO_FOLDER)}
OURS = {source: load_tokenizer(Checkpoint.open(source)) for source in (TINY, DEMO_FOLDER)}
PIECES = [
    "<|im_start|>",
    "<|im_end|>",
    "<|image_pad|>",
    "<|vision_start|>",
    "<tool_call>",
    "e\u0301",
    "'s",
    "\r\n",
    "  ",
]

texts = st.lists(st.one_of(st.text(max_size=12), st.sampled_from(PIECES), st.from_regex(r"[a-z ]{1,12}"))).map("".join)


@cases(150)
@given(batch=st.lists(texts, min_size=1, max_size=3))
def test_ids_are_those_of_the_library(batch):
    drawn["texts for the tokenizer"] += 1
    for source, stock in STOCK.items():
        expected, found = (tokenizer(batch, padding=True, padding_side="left") for tokenizer in (stock, OURS[source]))
        assert found["input_ids"] == expected["input_ids"]
        assert found["attention_mask"] == expected["attention_mask"]


@pytest.mark.parametrize("source", [TINY, DEMO_FOLDER])
def test_tokens_are_those_of_the_library(source):
    stock, ours = STOCK[source], OURS[source]
    assert ours.get_vocab() == stock.get_vocab() and len(ours) == len(stock)
    assert set(ours.all_special_ids) <= set(stock.added_tokens_decoder)
    for name in ("pad_token_id", "eos_token_id", "bos_token_id", "unk_token_id"):
        assert getattr(ours, name) == getattr(stock, name), name
    assert {key: str(token) for key, token in ours.added_tokens_decoder.items()} == {
        key: str(token) for key, token in stock.added_tokens_decoder.items()
    }


@pytest.mark.parametrize("saved_by", [STOCK, OURS], ids=["the library", "ours"])
@pytest.mark.parametrize("source", [TINY, DEMO_FOLDER])
def test_what_save_pretrained_writes_is_read(tiny, source, saved_by):
    """In one file, with other settings next to it than in the published form."""
    shutil.rmtree(tiny / "tokenizer")
    saved_by[source].save_pretrained(tiny / "tokenizer")
    assert (tiny / "tokenizer" / "tokenizer.json").is_file()
    again = TokenizerFiles.read(tiny)
    before = TokenizerFiles.read(source)
    assert (again.vocabulary, again.merges, again.names) == (before.vocabulary, before.merges, before.names)
    assert [(one.id, one.content) for one in again.added] == [(one.id, one.content) for one in before.added]
    text = "a red circle\n<|image_pad|> e\u0301"
    assert again.build()(text)["input_ids"] == STOCK[source](text)["input_ids"]


def test_added_tokens_may_be_in_a_file_of_their_own(tiny):
    """As in exports from before tokenizer_config.json held them."""
    config = json.loads((tiny / "tokenizer/tokenizer_config.json").read_text(encoding="utf-8"))
    decoder = config.pop("added_tokens_decoder")
    ids = {entry["content"]: int(number) for number, entry in decoder.items()}
    special = {"additional_special_tokens": list(ids), "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    for name, content in (
        ("tokenizer_config", config),
        ("added_tokens", ids),
        ("special_tokens_map", special),
    ):
        (tiny / f"tokenizer/{name}.json").write_text(json.dumps(content), encoding="utf-8")
    assert TokenizerFiles.read(tiny).special_ids == TokenizerFiles.read(TINY).special_ids
    Checkpoint.open(tiny)


@pytest.mark.parametrize("key", ["vocab_file", "merges_file", "tokenizer_file", "added_tokens_file", "chat_template"])
def test_no_key_leads_to_another_file(tiny, tmp_path, key):
    """transformers 4.57 follows the first."""
    foreign = tmp_path / "foreign.json"
    foreign.write_text(json.dumps({f"x{number}": number for number in range(300)}), encoding="utf-8")
    config = json.loads((tiny / "tokenizer/tokenizer_config.json").read_text(encoding="utf-8"))
    config[key] = str(foreign)
    (tiny / "tokenizer/tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert load_tokenizer(Checkpoint.open(tiny)).get_vocab() == STOCK[TINY].get_vocab()


def edited(folder: Path, name: str, edit) -> None:
    path = folder / "tokenizer" / name
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def added(number: int, **changes: object):
    return lambda config: config["added_tokens_decoder"].setdefault(str(number), {}).update(changes)


@pytest.mark.parametrize(
    ("name", "edit", "words"),
    [
        (
            "tokenizer_config.json",
            added(270, content="cat", special=True),
            r"added token 270 must be a text in angle brackets without blanks, got 'cat'",
        ),
        (
            "tokenizer_config.json",
            added(268, special=False),
            r"IMG_CONTEXT_TOKEN must be a special token of .*, got '<\|image_pad\|>'",
        ),
        ("tokenizer_config.json", added(268, lstrip=True), r"268\.lstrip must be false, got True"),
        (
            "tokenizer_config.json",
            added(300, content="<|x|>"),
            r"id of <\|x\|> must be 270, since .* without a gap, got 300",
        ),
        (
            "tokenizer_config.json",
            lambda config: config.update(pad_token=None),
            r"pad_token must be an added token, .*, got None",
        ),
        (
            "tokenizer_config.json",
            lambda config: config.update(pad_token="<|pad|>"),
            r"pad_token must be one of the added special tokens, got '<\|pad\|>'",
        ),
        (
            "tokenizer_config.json",
            lambda config: config.update(add_prefix_space=True),
            r"add_prefix_space must be false, got True",
        ),
        (
            "vocab.json",
            lambda vocabulary: vocabulary.update(A=999),
            r"vocab\.json: the last id must be \d+, since ids .*, got 999\.",
        ),
        ("vocab.json", lambda vocabulary: vocabulary.update(A=33), r"gives one id to 'A' and 'B': 33"),
        (
            "vocab.json",
            lambda vocabulary: vocabulary.pop("A"),
            r"vocab\.json must have a token for each of the 256 bytes, got none for 'A'\.",
        ),
        ("vocab.json", lambda vocabulary: vocabulary.update(A="32"), r"'A' must be an integer from 0, got '32'"),
    ],
)
def test_what_would_change_or_break_ids_is_named(tiny, name, edit, words):
    edited(tiny, name, edit)
    with pytest.raises(CheckpointError, match=words):
        Checkpoint.open(tiny)


def test_ids_fit_the_embedding(tiny):
    files = TokenizerFiles.read(tiny)
    files.check_ids(270)
    with pytest.raises(
        CheckpointError, match=r"<\|video_pad\|> must be an id below 269, the number of rows of .*, got 269"
    ):
        files.check_ids(269)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a b c", "line 2 must be two tokens separated by a blank, got 'a b c'"),
        ("a b", r"the merge 'a b' needs the token 'ab'"),
    ],
)
def test_merges_are_pairs_of_tokens(tiny, line, words):
    (tiny / "tokenizer/merges.txt").write_text(f"#version: 0.2\n{line}\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"merges\.txt: {words}"):
        Checkpoint.open(tiny)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda lines: lines[: len(lines) // 2], r"merges\.txt must have 767 merges, .*, got 383"),
        (lambda lines: [], r"merges\.txt must have 767 merges, .*, got 0"),
        (lambda lines: lines[::-1], r"vocab\.json: the id of .* must be 256, the place of its merge .*, got 1022"),
    ],
    ids=["cut off", "none", "shuffled"],
)
def test_merges_are_those_of_the_vocabulary(damage, words, tmp_path):
    folder = Path(shutil.copytree(DEMO_FOLDER, tmp_path / "demo"))
    path = folder / "tokenizer/merges.txt"
    version, *lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([version, *damage(lines)]) + "\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=words):
        Checkpoint.open(folder)
