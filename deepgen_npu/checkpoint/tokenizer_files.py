"""The tokenizer's files: read here and nowhere else, so that no key of theirs leads a library to another file.

It is the byte-level BPE of Qwen2. The vocabulary, the merges and the added tokens may differ; the steps before BPE
(`build`) are the model's, and a file with other ones is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks import Named, must, must_be, shown
from ..errors import CheckpointError
from .files import damaged, read_json, read_text, wrong


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_BYTES = 16 << 20
"""The published vocabulary has 3 MB; a tokenizer.json, which contains everything, 7 to 12."""

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 splits text before BPE, from tokenizer.json files of the family."""

_FLAGS = ("lstrip", "rstrip", "single_word")
_NAMES = ("pad_token", "eos_token", "bos_token", "unk_token")
_DEFAULT = "<|endoftext|>"
_ADDED = re.compile(r"<[^<>\s]+>")
"""Ordinary text must not become one of the model's control tokens."""


@dataclass(frozen=True)
class AddedToken:
    """A token that is cut out of text before BPE."""

    id: int
    content: str
    special: bool
    normalized: bool


@dataclass(frozen=True)
class TokenizerFiles:
    """The content of ``tokenizer/``, checked.

    Attributes:
        vocabulary_file: The file with the vocabulary.
        added_file: The file with the added tokens.
        vocabulary: Ids by token; all 256 bytes are there.
        merges: Pairs of tokens in the order in which they are merged.
        added: In the order of their ids.
        names: The texts of the named tokens, or None.
    """

    vocabulary_file: Path
    added_file: Path
    vocabulary: Mapping[str, int]
    merges: list[tuple[str, str]]
    added: list[AddedToken]
    names: Mapping[str, str | None]

    @classmethod
    def read(cls, folder: Path) -> TokenizerFiles:
        """Read the files of a checkpoint folder, without any library.

        Raises:
            CheckpointError: Naming the file and the value that is wrong.
        """
        name = "tokenizer/tokenizer_config.json"
        config_file, config = folder / name, read_json(folder, name)
        _check_config(config_file, config)
        single = "tokenizer/tokenizer.json"
        if os.path.lexists(folder / single):
            file = merges_file = added_file = folder / single
            content = read_json(folder, single, MAX_BYTES)
            vocabulary, merges, listed = _parts_of(file, content)
            added = {one.id: one for one in (_listed(file, entry) for entry in listed)}
            if len(added) != len(listed):
                raise wrong(file, "added_tokens", listed, "a list of tokens with different ids")
            for one in _decoder(config_file, config):
                if one.id not in added or added[one.id].content != one.content:
                    raise wrong(
                        config_file,
                        f"added_tokens_decoder.{one.id}",
                        one.content,
                        f"the token of that id in {file.name}",
                    )
        else:
            file, merges_file = folder / "tokenizer/vocab.json", folder / "tokenizer/merges.txt"
            vocabulary = read_json(folder, "tokenizer/vocab.json", MAX_BYTES)
            merges = _merges(merges_file, read_text(folder, "tokenizer/merges.txt", MAX_BYTES))
            added_file = config_file
            found = _decoder(config_file, config)
            if "added_tokens_decoder" not in config and os.path.lexists(folder / "tokenizer/added_tokens.json"):
                added_file = folder / "tokenizer/added_tokens.json"
                found = _legacy(folder, added_file, config)
            added = {one.id: one for one in found}
        in_order = [added[number] for number in sorted(added)]
        _check_vocabulary(file, vocabulary)
        _check_merges(merges_file, merges, vocabulary, file)
        _check_added(added_file, in_order, vocabulary, file)
        names = {key: _name(config_file, config, key, in_order) for key in _NAMES}
        if names["pad_token"] is None:
            raise wrong(config_file, "pad_token", None, "an added token, to pad shorter prompts")
        return cls(file, added_file, vocabulary, merges, in_order, names)

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """Ids of the special tokens by their text."""
        return {one.content: one.id for one in self.added if one.special}

    def check_ids(self, rows: int) -> None:
        """Refuse ids that have no embedding.

        Raises:
            CheckpointError: Naming the token, its id and the number of rows.
        """
        requirement = f"an id below {rows}, the number of rows of the stored embedding"
        for token, number in self.vocabulary.items():
            if number >= rows:
                raise wrong(self.vocabulary_file, shown(token), number, requirement)
        for one in self.added:
            if one.id >= rows:
                raise wrong(self.added_file, one.content, one.id, requirement)

    def build(self) -> PreTrainedTokenizerBase:
        """The tokenizer itself, made by the tokenizers library."""
        from tokenizers import AddedToken as Added
        from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
        from tokenizers.models import BPE
        from transformers import PreTrainedTokenizerFast

        tokenizer: Any = Tokenizer(BPE(vocab=dict(self.vocabulary), merges=self.merges))
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        tokenizer.add_tokens(
            [Added(one.content, special=one.special, normalized=one.normalized) for one in self.added]
        )
        made = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, split_special_tokens=False, **self.names
        )
        # The library assigns ids by itself: they must be those that were checked.
        wrong_ids = [one for one in self.added if made.convert_tokens_to_ids(one.content) != one.id]
        if wrong_ids or len(made) != len(self.vocabulary) + len(self.added):
            raise CheckpointError(f"{self.added_file}: the ids of the added tokens do not follow the vocabulary's.")
        return made


def _check_config(file: Path, config: Mapping[str, Any]) -> None:
    """Settings that would change the tokens of a text must be the model's."""
    for key in ("add_prefix_space", "add_bos_token", "add_eos_token", "split_special_tokens"):
        if config.get(key) not in (None, False) or type(config.get(key)) is int:
            raise wrong(file, key, config[key], "false")


def _parts_of(file: Path, content: Mapping[str, Any]) -> tuple[Any, list[tuple[str, str]], list[Any]]:
    """Vocabulary, merges and added tokens of a ``tokenizer.json``, whose other parts must be Qwen2's."""
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise wrong(file, "model", model, "a BPE model")
    for key in ("dropout", "unk_token", "byte_fallback", "fuse_unk", "ignore_merges"):
        if model.get(key):
            raise wrong(file, f"model.{key}", model[key], "null or false")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise wrong(file, f"model.{key}", model[key], "an empty string")
    if not isinstance(content.get("normalizer"), dict) or content["normalizer"].get("type") != "NFC":
        raise wrong(file, "normalizer", content.get("normalizer"), "an object of type NFC")
    if not _is_qwen2(content.get("pre_tokenizer")):
        raise wrong(file, "pre_tokenizer", content.get("pre_tokenizer"), "that of Qwen2")
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise wrong(file, "model.merges", merges, "a list of pairs")
    pairs = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(one, str) for one in pair):
            raise wrong(file, "a merge of model.merges", merge, "a pair of tokens")
        pairs.append((pair[0], pair[1]))
    listed = content.get("added_tokens", [])
    if not isinstance(listed, list):
        raise wrong(file, "added_tokens", listed, "a list")
    return model.get("vocab"), pairs, listed


def _is_qwen2(pre_tokenizer: Any) -> bool:
    steps = pre_tokenizer.get("pretokenizers") if isinstance(pre_tokenizer, dict) else None
    if not isinstance(steps, list) or len(steps) != 2 or not all(isinstance(step, dict) for step in steps):
        return False
    split, level = steps
    return (
        (split.get("type"), split.get("behavior"), split.get("invert", False)) == ("Split", "Isolated", False)
        and split.get("pattern") == {"Regex": PATTERN}
        and (level.get("type"), level.get("add_prefix_space"), level.get("use_regex", True))
        == ("ByteLevel", False, False)
    )


def _merges(file: Path, text: str) -> list[tuple[str, str]]:
    pairs = []
    for number, line in enumerate(text.split("\n")):
        line = line.strip("\r ")
        if not line or (number == 0 and line.startswith("#version:")):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise wrong(file, f"line {number + 1}", line, "two tokens separated by a blank")
        pairs.append((pair[0], pair[1]))
    return pairs


def _check_vocabulary(file: Path, vocabulary: Any) -> None:
    if not isinstance(vocabulary, dict):
        raise wrong(file, "the vocabulary", vocabulary, "an object of tokens and ids")
    for token, number in vocabulary.items():
        if type(number) is not int or number < 0:
            raise wrong(file, shown(token), number, "an integer from 0")
        if not token.isprintable() and not _is_utf8(token):
            raise damaged(f"{file}: {must_be('a token', 'Unicode text', token)}")
    if len(set(vocabulary.values())) != len(vocabulary):
        raise damaged(f"{file} gives one id to {_repeated(vocabulary)}.")
    if absent := [symbol for symbol in byte_symbols() if symbol not in vocabulary]:
        raise damaged(must(str(file), "have a token for each of the 256 bytes", Named(f"none for {shown(absent[0])}")))


def _repeated(vocabulary: Mapping[str, int]) -> str:
    seen: dict[int, str] = {}
    for token, number in vocabulary.items():
        if number in seen:
            return f"{shown(seen[number])} and {shown(token)}: {shown(number)}"
        seen[number] = token
    return "two tokens"


def _check_merges(file: Path, merges: list[tuple[str, str]], vocabulary: Mapping[str, int], home: Path) -> None:
    for left, right in merges:
        for token in (left, right, left + right):
            if token not in vocabulary:
                merge = shown(f"{left} {right}")
                raise damaged(f"{file}: the merge {merge} needs the token {shown(token)}, which is not in {home}.")
    # Ranks are ids in this family: the first merge makes the first token after the 256 bytes, and so on. A list that
    # was cut off or shuffled would split every text differently.
    for number, (left, right) in enumerate(merges, start=256):
        if vocabulary[left + right] != number:
            requirement = (
                f"{number}, the place of its merge {shown(f'{left} {right}')} in {file.name} after the 256 bytes"
            )
            raise wrong(home, f"the id of {shown(left + right)}", vocabulary[left + right], requirement)
    if len(vocabulary) != 256 + len(merges):
        requirement = f"have {len(vocabulary) - 256} merges, one for each token of {home} except the 256 bytes"
        raise damaged(must(str(file), requirement, len(merges)))


def _check_added(file: Path, added: list[AddedToken], vocabulary: Mapping[str, int], home: Path) -> None:
    if (last := max(vocabulary.values())) != len(vocabulary) - 1:
        raise wrong(home, "the last id", last, f"{len(vocabulary) - 1}, since ids count up from 0 without a gap")
    seen: set[str] = set()
    for number, one in enumerate(added, start=len(vocabulary)):
        if one.content in seen:
            raise damaged(f"{file} gives two ids to {shown(one.content)}.")
        seen.add(one.content)
        if not _ADDED.fullmatch(one.content) or not _is_utf8(one.content):
            raise wrong(file, f"the added token {one.id}", one.content, "a text in angle brackets without blanks")
        if one.content in vocabulary:
            raise wrong(file, f"the added token {one.id}", one.content, f"a text that is not in {home}")
        if one.id != number:
            requirement = f"{number}, since ids continue those of {home} without a gap"
            raise wrong(file, f"the id of {one.content}", one.id, requirement)


def _decoder(file: Path, config: Mapping[str, Any]) -> list[AddedToken]:
    """The added tokens of ``tokenizer_config.json``, by id."""
    decoder = config.get("added_tokens_decoder", {})
    if not isinstance(decoder, dict):
        raise wrong(file, "added_tokens_decoder", decoder, "an object of ids and tokens")
    found = []
    for number, entry in decoder.items():
        # No more digits than an id can have, and one spelling for each.
        if not re.fullmatch("0|[1-9][0-9]{0,8}", number):
            raise wrong(file, "an id of added_tokens_decoder", number, "an integer from 0")
        found.append(_added(file, f"added_tokens_decoder.{number}", int(number), entry))
    return found


def _listed(file: Path, entry: Any) -> AddedToken:
    number = entry.get("id") if isinstance(entry, dict) else None
    if type(number) is not int or not 0 <= number < 10**9:
        raise wrong(file, "a token of added_tokens", entry, "an object with an integer id")
    return _added(file, f"the added token {number}", number, entry)


def _added(file: Path, key: str, number: int, entry: Any) -> AddedToken:
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
        raise wrong(file, key, entry, "an object with a content")
    for flag in _FLAGS:
        if entry.get(flag, False) is not False:
            raise wrong(file, f"{key}.{flag}", entry[flag], "false")
    special, normalized = entry.get("special", False), entry.get("normalized", False)
    for name, value in (("special", special), ("normalized", normalized)):
        if not isinstance(value, bool):
            raise wrong(file, f"{key}.{name}", value, "true or false")
    return AddedToken(number, entry["content"], special, normalized)


def _legacy(folder: Path, file: Path, config: Mapping[str, Any]) -> list[AddedToken]:
    """The tokens of ``added_tokens.json``, where older exports store the ids; other files list which are special."""
    named = dict(config)
    if os.path.lexists(folder / "tokenizer/special_tokens_map.json"):
        named.update(read_json(folder, "tokenizer/special_tokens_map.json"))
    more = named.get("additional_special_tokens") or []
    values = [*(named.get(key) for key in _NAMES), *(more if isinstance(more, list) else [])]
    special = {_text(value) for value in values}
    found = []
    for content, number in read_json(folder, "tokenizer/added_tokens.json").items():
        if type(number) is not int or not 0 <= number < 10**9:
            raise wrong(file, shown(content), number, "an integer from 0")
        found.append(AddedToken(number, content, content in special, content not in special))
    if len({one.id for one in found}) != len(found):
        raise damaged(f"{file} gives one id to two tokens.")
    return found


def _name(file: Path, config: Mapping[str, Any], key: str, added: list[AddedToken]) -> str | None:
    """The text of a named token; the defaults are those of Qwen2's tokenizer."""
    value = config.get(key, None if key in ("bos_token", "unk_token") else _DEFAULT)
    text = _text(value)
    if value is not None and not any(one.content == text and one.special for one in added):
        raise wrong(file, key, value, "one of the added special tokens")
    return text


def _text(value: Any) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def byte_symbols() -> list[str]:
    """The 256 symbols of byte-level BPE in the order of GPT-2: printable bytes first, as themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(others)]
