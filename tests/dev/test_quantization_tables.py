"""What `dev.quantization_tables` counts, on layers and models of which the answer is known."""

from __future__ import annotations

import torch
from quantized_folders import write_quantized

from deepgen_npu.checkpoint.folder import PARTS, Checkpoint
from deepgen_npu.quantization.formats import FORMATS, INT8, LayerFormat
from deepgen_npu.tools.random_checkpoint import write
from deepgen_npu.tools.random_model import RandomModel
from dev import quantization_tables
from dev.quantization_errors import ERRORS, errors_by_outliers, inputs_rounded, quantized_linear
from dev.quantization_tables import Drawn, changed, demo_table, evaluation, file_bytes, memory_table


def test_rotation_is_for_outliers():
    plain, tails, columns, inputs, both = (
        dict(zip(ERRORS, errors, strict=True)) for _, _, errors in errors_by_outliers((32, 1024))
    )
    for errors in (tails, columns, both):
        assert errors["weight, int8"] > 2 * errors["weight, int8_convrot"]
        assert errors["result, int8"] > 2 * errors["result, int8_convrot"]
    assert plain["weight, int8"] < 0.01 < plain["weight, fp8"] < 0.03
    # What is rounded besides costs more; with outliers in the inputs, much more without a rotation.
    assert all(one["result, int8_convrot, inputs rounded"] > one["result, int8_convrot"] for one in (plain, both))
    assert inputs["result, int8, inputs rounded"] > 3 * inputs["result, int8_convrot, inputs rounded"]
    assert inputs["result, int8"] < 0.01


def test_layers_compute_as_before_when_inputs_are_no_longer_rounded():
    torch.manual_seed(0)
    linear, x = quantized_linear(LayerFormat(INT8, 64), torch.randn(8, 64)), torch.randn(4, 64)
    before = linear(x)
    with inputs_rounded():
        assert not torch.equal(linear(x), before)
    assert torch.equal(linear(x), before)


def test_files_are_as_large_as_written_ones(tmp_path):
    source = write(tmp_path / "tiny", "tiny")
    written = Checkpoint.open(write_quantized(tmp_path / "quantized", "int8_convrot", source=source))
    model = RandomModel.of_size("tiny", title="int8_convrot")
    assert [file_bytes(model, part) for part in PARTS] == [written.nbytes(part) for part in PARTS]


def test_what_is_too_large_is_reported(monkeypatch):
    monkeypatch.setattr(quantization_tables, "VLM_LIMIT", 0)
    _, faults = memory_table("tiny")  # far below the limit of all parts
    assert [fault.split(":")[0] for fault in faults] == [f"The VLM in {title}" for title in FORMATS]


def test_the_judge_counts_what_is_lost(monkeypatch, tmp_path):
    """One of 4 edits is lost where inputs are rounded, another won."""
    wanted = {kind: some for kind, some in evaluation(4).items() if kind in ("core", "recolour", "keep")}

    def drawn(folder, wanted, steps, title):
        made = Drawn({kind: [] for kind in wanted}, {kind: [True] * len(some) for kind, some in wanted.items()})
        made.right["recolour"][0] = title != "int8_convrot, inputs rounded"
        made.right["keep"][0] = title != "unquantised"
        made.images["core"] = [torch.full((2, 2, 3), 10 if title == "unquantised" else 11).numpy()]
        return made

    monkeypatch.setattr(quantization_tables, "draw", drawn)
    lines, faults = demo_table(tmp_path, wanted, steps=1)
    assert "| recolour | 4 | 100.0 | 100.0 | 75.0 | 100.0 | 100.0 |" in lines
    assert "| **all** | 12 | 91.7 | 100.0 | 91.7 | 100.0 | 100.0 |" in lines
    assert "| right unquantised, wrong here |  |  | 0 | 1 | 0 | 0 |" in lines
    assert "| wrong unquantised, right here |  |  | 1 | 1 | 1 | 1 |" in lines
    assert "| PSNR to unquantised, median [dB] |  |  | 48.1 | 48.1 | 48.1 | 48.1 |" in lines
    assert faults == [
        "What the demo in int8_convrot, inputs rounded loses of recolour: 25.000 points, above the limit of 2.0."
    ]
    assert changed(Drawn({}, {"core": [True, False]}), Drawn({}, {"core": [False, True]})) == 1
