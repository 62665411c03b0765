"""Whether weights are where a graph reads them."""

from __future__ import annotations

import torch
from torch import nn

from deepgen_npu import graphs
from deepgen_npu.graphs import Graphs, StepOfRun, _Weights
from deepgen_npu.model.transformer import Prepared


def test_weights_that_moved_are_noticed():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    known = _Weights(model)
    assert known.are_those_of(model)
    model[0].weight.data.mul_(2)  # a LoRA is merged in place: the graph reads it
    assert known.are_those_of(model)
    model[1].running_mean = model[1].running_mean.clone()
    assert not known.are_those_of(model)

    known = _Weights(model)
    model[0].weight.data = model[0].weight.data.clone()  # how Module.to moves a parameter
    assert not known.are_those_of(model)

    known = _Weights(model)
    model.append(nn.Linear(3, 3))
    assert not known.are_those_of(model)


def test_layers_that_compute_something_else_are_noticed():
    """ComfyUI's LoRAs in bypass mode replace the forward of a layer, and nodes may replace layers: weights stay."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    known, first = _Weights(model), model[0]
    first.forward = lambda x: x
    assert not known.are_those_of(model)
    del first.forward
    hook = first.register_forward_hook(lambda *arguments: None)
    assert not known.are_those_of(model)
    hook.remove()
    assert known.are_those_of(model)
    model[0] = nn.Linear(3, 3)
    model[0].weight, model[0].bias = first.weight, first.bias
    assert not known.are_those_of(model)


def test_of_a_tensor_made_of_others_the_others_count():
    class Quantised:
        def __init__(self):
            self.values, self.scale = torch.ones(3), torch.ones(1)

        def __tensor_flatten__(self):
            return ["values", "scale"], None

        def data_ptr(self):
            return 0

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tensor = Quantised()

        def parameters(self):
            return [self.tensor]

    model = Model()
    known = _Weights(model)
    assert known.are_those_of(model)
    model.tensor.scale = torch.ones(1)
    assert not known.are_those_of(model)


def test_a_graph_of_inference_mode_is_left_to_it(monkeypatch):
    """Its tensors cannot be written outside."""
    captures = []

    def captured(step, latents, modulation):
        captures.append(step)
        return lambda *arguments: step(*arguments)

    monkeypatch.setattr(graphs, "capture", captured)
    monkeypatch.setattr(graphs, "_GRAPHS", {"cpu": "a graph"})
    kept, model = Graphs(), nn.Linear(3, 3)
    for mode in (True, False, True):
        with torch.inference_mode(mode), torch.no_grad():
            prepared = Prepared(torch.ones(1, 2, 3), [], torch.ones(1, 2, 3), 2, 2)
            step = StepOfRun(kept, True, lambda latents, modulation: latents + modulation, prepared, model)
            step(torch.ones(3), torch.ones(3))
            step.end()
    assert len(captures) == len(kept) == 2
