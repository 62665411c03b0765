"""Property-based: any argument is accepted before a model is loaded, or is one error that names it, with status 2."""

from __future__ import annotations

import math
import os

import pytest
from golden import TINY
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from platforms import not_on_windows
from property_settings import cases, drawn

from deepgen_npu import cli
from deepgen_npu.cli import image_run
from deepgen_npu.tools import specs


class Accepted(BaseException):
    """The model would be loaded now."""


NUMBERS = {
    "--height": (16, 384),
    "--width": (16, 384),
    "--seed": (0, 2**64 - 1),
    "--num_inference_steps": (1, 1000),
    "--guidance_scale": (0, 100),
    "--guidance_every": (1, 1000),
}
COMMANDS = {
    "generate": {**NUMBERS, "--num_images": (1, 1000)},
    "edit": {**NUMBERS, "--num_images": (1, 1000)},
    "bench": {**NUMBERS, "--runs": (1, 1000), "--references": (0, 16)},
    "verify": {**NUMBERS, "--references": (0, 16), "--max_difference": (0, 255), "--min_psnr": (0, 1000)},
}
WHOLE = {"--height", "--width", "--seed", "--num_inference_steps", "--guidance_every", "--num_images", "--runs"}
WHOLE |= {"--references"}

# What argv can hold: any bytes but NUL.
words = st.text(st.characters(codec=None, exclude_characters="\0"), max_size=12) | st.binary(max_size=12).map(
    lambda word: word.replace(b"\0", b"").decode("utf-8", "surrogateescape")
)
numbers = (
    st.integers().map(str)
    | st.integers(0, 400).map(str)
    | st.floats().map(repr)
    | st.floats(0, 1000).map(lambda value: f"{value:.3g}")
    | st.sampled_from(
        ["nan", "-nan", "inf", "-inf", "Infinity", "1e999", "1e5", "0x10", "1_000", " 64", "64 ", "+64", ""]
    )
    | st.sampled_from(["\u0666\u0664", "64\n", "\u00b2", "9" * 5000, "-" + "9" * 5000, "1" * 21, "0" * 90 + "64"])
    | words
)
devices = (
    st.sampled_from(["npu:\u00b2", "cuda:-1", "cpu:", "NPU", "npu:99999999999999999999", "", "auto ", "npu:1:2"])
    | words
)
names = words | st.sampled_from(
    ["", ".", "/", "~nobody-of-that-name/x", "n" * 300, "n/" * 3000, "/proc/self/mem", "/dev/full"]
)


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch):
    def accepted(*arguments, **options):
        raise Accepted

    monkeypatch.setattr(image_run, "_load", accepted)
    monkeypatch.setattr(specs.ModelSpec, "load", accepted)
    monkeypatch.setattr(specs.ModelSpec, "fingerprint", accepted)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with an image in it."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 48), "blue").save("a.png")
    return tmp_path


def run(command: str, arguments: list[str], folder, capsys) -> str | None:
    """The error; None where the model would have been loaded. Nothing is written either way."""
    before = sorted(path.name for path in folder.iterdir())
    base = {"edit": ["--prompt", "x", "--input_image", "a.png"]}.get(command, [])
    place = [] if "--device" in arguments else ["--device", "cpu"]
    model = [] if "--model_path" in arguments else ["--model_path", str(TINY)]
    sizes = [] if {"--height", "--width", "--follow_input"} & set(arguments) else ["--height", "64", "--width", "64"]
    capsys.readouterr()
    try:
        status = cli.main([command, *model, *place, *base, *sizes, *arguments])
    except SystemExit as left:
        status = left.code
    except Accepted:
        status = None
    assert sorted(path.name for path in folder.iterdir()) == before
    printed = capsys.readouterr().err
    if status is None:
        return None
    assert status == 2
    return the_error(printed)


def the_error(printed: str) -> str:
    """The only error in what was printed: a line of text, which commands on lines of their own may follow."""
    lines = printed.splitlines()
    (start,) = [index for index, line in enumerate(lines) if "error: " in line]
    error = lines[start:]
    assert len(error) == 1 or any(line.startswith("    ") for line in error), lines
    assert all(line.isprintable() for line in error) and sum(map(len, error)) < 5000, lines
    return " ".join(error)


def means(text: str, whole: bool) -> float | None:
    """The number that a text means in plain decimals; None where it means none."""
    if not text.isascii() or "_" in text or text != text.strip() or len(text) > 100 or text.lstrip("+-")[:1].isalpha():
        return None
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


@cases(60)
@given(data=st.data())
def test_numbers(folder, capsys, data):
    command = data.draw(st.sampled_from(list(COMMANDS)))
    option = data.draw(st.sampled_from(list(COMMANDS[command])))
    text = data.draw(numbers)
    drawn["arguments: numbers"] += 1
    error = run(command, [f"{option}={text}"], folder, capsys)
    low, high = COMMANDS[command][option]
    value = means(text, option in WHOLE)
    if value is None or not low <= value <= high:
        assert error is not None and f"{option.lstrip('-')} must be " in error
    elif option not in ("--height", "--width"):  # which have to be multiples, too
        assert error is None or "free" in error, (text, error)
    else:
        assert (error is None) == (value % (32 if command == "edit" else 16) == 0)


@cases(20)
@given(option=st.sampled_from(["--device", "--text_encoder_device", "--dtype", "--noise"]), text=devices)
def test_devices_and_choices(folder, capsys, option, text):
    drawn["arguments: devices and choices"] += 1
    error = run("generate", [option, text] if not text.startswith("-") else [f"{option}={text}"], folder, capsys)
    allowed = {"cpu": 1, "auto": 1, "float32": 1, "bfloat16": 1, "float16": 1, "device": 1}
    assert (error is None and text in allowed) or (error is not None and option.lstrip("-") in error)


@pytest.mark.slow
@not_on_windows("it takes other names for the same file")
@cases(40)
@given(
    command=st.sampled_from(["generate", "edit", "verify", "bench", "check"]),
    option=st.sampled_from(
        ["--output_image", "--input_image", "--mask", "--model_path", "--save", "--compare", "--pictures"]
    ),
    text=names | names.map(lambda name: f"{name}.png"),
)
def test_names(folder, capsys, command, option, text):
    drawn["arguments: names of files"] += 1
    of = {"--output_image": "generate", "--input_image": "edit", "--mask": "edit", "--model_path": command}
    command = of.get(option, "verify")
    if command == "check":
        try:
            status = cli.main(["check", "--", text])
        except SystemExit as left:
            status = left.code
        assert status == 2 and the_error(capsys.readouterr().err).startswith("error: ")
        return
    value = [f"{option}={text}"] if option != "--pictures" else [option, "a.png", f"./{text}"]
    if option == "--compare":
        # The sizes are those of the saved run.
        assert cli.main(["verify", *value]) == 2
        assert the_error(capsys.readouterr().err).startswith("error: ")
        return
    error = run(command, value, folder, capsys)
    if error is None:
        assert option in ("--output_image", "--save") and os.path.basename(text)


@cases(10)
@given(count=st.integers(1, 40))
def test_lists_of_inputs(folder, capsys, count):
    drawn["arguments: lists of inputs"] += 1
    halves = ["--input_image", *["a.png"] * count, "--input_image", "a.png"]
    error = run("edit", halves, folder, capsys)
    # `run` adds one.
    assert (error is None) == (count + 2 <= 16)
    assert error is None or all(words in error for words in ("--input_image", "at most 16", f" {count + 2} files"))
