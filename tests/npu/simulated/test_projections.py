"""Queries, keys and values as one product: while their weights lie together, and only then. The result is the same."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import pytest
import torch
from golden import denoised
from lora_files import Example, equal
from lora_files import state as tensors_of
from torch import nn

from deepgen_npu.checkpoint.weights import copy_to
from deepgen_npu.model.projections import lay_together, project
from deepgen_npu.quantization.formats import format_for
from deepgen_npu.quantization.linear import replace_layers
from dev.npu_simulator.simulated import Tensor, reset, state


NPU = torch.device("npu:0")
CASE = "edit"
JOINED = "aten::as_strided"
"""An operator that nothing but a joined product runs: once for its weight and once for its bias."""


@pytest.fixture
def layers() -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(8, 16).requires_grad_(False).to(NPU) for _ in range(3)]


def together(layers) -> list[nn.Linear]:
    """Laid together as those of an attention."""
    block = nn.Module()
    block.attn = nn.Module()
    names = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")
    for name, layer in zip(names, [*layers, *(nn.Linear(8, 8).to(NPU) for _ in range(3))], strict=True):
        setattr(block.attn, name, layer)
    model = nn.Module()
    model.transformer_blocks = nn.ModuleList([block])
    lay_together(model)
    return layers


def joined(run: Callable[[], object]) -> int:
    """How many products were joined while something runs."""
    reset()
    run()
    return state.counts.operators[JOINED] // 2


def projected(layers, x) -> tuple[int, torch.Tensor]:
    """How many products were joined, and what each layer made of x."""
    found = []
    count = joined(lambda: found.extend(project(layers, x)))
    return count, torch.stack([one.cpu() for one in found])


def inputs(device=NPU) -> torch.Tensor:
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)).to(device)


def test_one_product_for_all_and_for_neighbours(layers):
    x = inputs()
    apart, expected = projected(layers, x)
    weights = [layer.weight.cpu() for layer in layers]
    once, found = projected(together(layers), x)
    assert (apart, once) == (0, 1)
    torch.testing.assert_close(found, expected)
    assert all(torch.equal(layer.weight.cpu(), weight) for layer, weight in zip(layers, weights, strict=True))
    for some in (layers[1:], layers[:2]):
        assert projected(some, x)[0] == 1
    assert projected(layers[::2], x)[0] == projected(layers[::-1], x)[0] == 0


def changed_by_a_hook(layers):
    layers[1].register_forward_hook(lambda module, given, found: found * 2)


def changed_by_a_hook_before(layers):
    layers[1].register_forward_pre_hook(lambda module, given: (given[0] * 2,))


def changed_by_another_order_in_memory(layers):
    weight = layers[1].weight.data
    layers[1].weight = nn.Parameter(weight.as_strided(weight.shape, (1, len(weight))), requires_grad=False)


def changed_by_another_forward(layers):
    plain = layers[1].forward
    layers[1].forward = lambda x: plain(x) * 2


def changed_by_another_weight(layers):
    layers[1].weight = nn.Parameter(layers[1].weight.data * 2, requires_grad=False)
    layers[1].bias = nn.Parameter(layers[1].bias.data * 2, requires_grad=False)


def changed_by_another_bias(layers):
    layers[1].bias = nn.Parameter(layers[1].bias.data * 2, requires_grad=False)


def changed_by_another_class(layers):
    class Twice(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    layers[1].__class__ = Twice


@pytest.mark.parametrize(
    "change",
    [
        changed_by_a_hook,
        changed_by_a_hook_before,
        changed_by_another_order_in_memory,
        changed_by_another_forward,
        changed_by_another_weight,
        changed_by_another_bias,
        changed_by_another_class,
    ],
)
def test_whatever_changes_a_layer_ends_it(layers, change):
    change(together(layers))
    count, found = projected(layers, inputs())
    assert count == 0
    assert torch.equal(found, torch.stack([layer(inputs()).cpu() for layer in layers]))


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("trained", range(3))
def test_a_layer_that_is_trained_runs_on_its_own(layers, trained, name):
    together(layers)
    getattr(layers[trained], name).requires_grad_()
    assert projected(layers, inputs())[0] == 0
    with torch.no_grad():
        assert projected(layers, inputs())[0] == 1


def test_parameters_stay_what_they_were(layers):
    """Trained or not, and such as can be changed outside of inference mode, in which ComfyUI loads."""
    layers[1].weight.requires_grad_()
    with torch.inference_mode():
        together(layers)
    assert [layer.weight.requires_grad for layer in layers] == [False, True, False]
    assert not any(layer.weight.is_inference() for layer in layers)


def test_neighbours_by_chance_are_not_one(layers):
    """Equal addresses are not enough: memory of others may begin where a weight ends."""
    memory = np.arange(3 * 16 * 8, dtype=np.float32).reshape(3, 16, 8)
    for layer, values in zip(together(layers), memory, strict=True):
        layer.weight = nn.Parameter(Tensor(torch.from_numpy(values), 0), requires_grad=False)
    assert np.diff([layer.weight.data_ptr() for layer in layers]).tolist() == [memory[0].nbytes] * 2
    assert projected(layers, inputs())[0] == 0


def test_without_biases(layers):
    for layer in layers:
        layer.bias = None
    together(layers)
    reset()
    found = project(layers, inputs())
    assert state.counts.operators[JOINED] == 1
    torch.testing.assert_close(found[1].cpu(), layers[1](inputs()).cpu())
    layers[0].bias = nn.Parameter(torch.zeros(16, device=NPU), requires_grad=False)
    assert projected(layers, inputs())[0] == 0


def groups(pipe) -> int:
    """Of the joined products of a step: image, context and second attention. With references the last block's image
    has its keys and values joined."""
    blocks = pipe.transformer.transformer_blocks
    return 2 * len(blocks) + sum(block.use_dual_attention for block in blocks)


def test_in_the_pipeline_it_lasts_while_weights_stay(load, counts_table):
    """No second copy of the weights, the names and bits of all, and the original's latents in either form."""
    pipe = load("cpu")
    before, steps = tensors_of(pipe.transformer), 4
    gc.collect()
    others = state.memory[0].now
    pipe.to(NPU)
    size = sum(part.nbytes for part in pipe.memory().values())
    assert state.memory[0].now - others <= size + 4096
    assert equal(tensors_of(pipe.transformer), before)
    results = {}

    def run(name: str) -> int:
        count = joined(lambda: results.update({name: denoised(pipe, CASE)}))
        ours, golden = results[name]
        assert (ours - golden).abs().max() <= 1e-4, name
        return count

    assert run("joined") == steps * groups(pipe)
    pipe.enable_model_cpu_offload(NPU)
    assert run("offloaded") == 0
    pipe.to(NPU)
    assert run("joined again") == steps * groups(pipe)
    assert torch.equal(results["joined"][0], results["joined again"][0])
    apart = (results["joined"][0] - results["offloaded"][0]).abs().max().item()
    counts_table.append(("joined projections against separate ones", f"{apart:.1e}"))
    assert equal(tensors_of(pipe.transformer), before)


def test_no_second_copy_on_the_way(on_cpu):
    """Of a part that is read to a device, or copied to one: weights of one attention at a time lie there twice."""
    model, memory = on_cpu.transformer, state.memory[1]
    before = memory.peak = memory.now
    copy = copy_to(model, torch.device("npu:1"))
    size = memory.now - before
    attention = sum(parameter.nbytes for parameter in copy.transformer_blocks[0].attn.parameters())
    assert attention < size / 10
    assert memory.peak - before <= size + attention


def test_weights_are_read_to_where_they_stay(load):
    """From a file to a card nothing is moved once more, which would leave holes in the card's memory."""
    reset()
    pipe = load()
    assert not state.counts.operators["aten::cat"]
    assert joined(lambda: denoised(pipe, CASE)) == 4 * groups(pipe)
    assert equal(tensors_of(pipe.transformer), tensors_of(load("cpu").transformer))


def test_with_a_lora(load, tmp_path):
    """Merged, the weights lie where they lay, and are taken back to the bit."""
    pipe = load()
    before, plain = tensors_of(pipe.transformer), denoised(pipe, CASE)[0]
    pipe.load_lora_weights(Example.of(pipe.transformer).save(tmp_path / "style.safetensors"))
    assert joined(lambda: denoised(pipe, CASE)) == 4 * groups(pipe)
    pipe.unload_lora_weights()
    assert equal(tensors_of(pipe.transformer), before) and torch.equal(denoised(pipe, CASE)[0], plain)


def test_quantised_layers_run_on_their_own(on_npu):
    model = type(on_npu.transformer).from_config(on_npu.transformer.config).requires_grad_(False)
    names = [f"transformer_blocks.0.attn.to_{one}" for one in "qkv"]
    replace_layers(model, {name: format_for("int8", model.get_submodule(name).in_features) for name in names})
    lay_together(model.to_empty(device=NPU))
    starts = {name: model.get_submodule(name).weight.storage_offset() for name in names}
    assert starts == dict.fromkeys(names, 0)
    assert model.transformer_blocks[1].attn.to_k.weight.storage_offset() > 0
