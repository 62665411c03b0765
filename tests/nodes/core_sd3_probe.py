"""Run in ComfyUI's interpreter by `test_core_sd3`: ComfyUI's own SD3 and our DiT evaluate the same random weights.

Prints one JSON line: how ComfyUI read the weights, how far the velocities are apart, and how far when something is
wrong on purpose. A difference is the largest of a velocity, relative to its largest value.

Arguments: the pack, the checkout, the difference above which a wrong weight counts as noticed, and a folder with a
checkpoint of such dimensions, ``checkpoint``, and its DiT in files of their own, by format.
"""

import importlib
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from load_module import launch, load_pack
from log_records import Records


pack, checkout, limit, made = sys.argv[1:]
launch().enter(checkout, ["--cpu"])

import comfy.model_base  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402


load_pack(pack)
ours = importlib.import_module("pack.deepgen_npu.model.transformer")
sizes = importlib.import_module("pack.deepgen_npu.tools.model_sizes").SIZES
random_tensor = importlib.import_module("pack.deepgen_npu.tools.random_values").random_tensor
weights = importlib.import_module("pack.deepgen_npu.checkpoint.weights")

# The published DiT, smaller. ComfyUI's class wants heads of 64, and as many layers as heads.
CONFIG = sizes["published"].configs["transformer"] | {
    "num_layers": 3,
    "num_attention_heads": 3,
    "caption_projection_dim": 192,
    "dual_attention_layers": [0, 1],
    "pos_embed_max_size": 64,
}
SIGMA = 0.7
ROWS = 2


@dataclass(frozen=True)
class Inputs:
    """What a DiT is evaluated with.

    Attributes:
        latents: [b, C, h, w].
        timestep: [b] in 0..1000.
        embeds: [b, L, joint_attention_dim].
        pooled: [b, pooled_projection_dim].
        references: Each [b, C, h_k, w_k].
    """

    latents: Tensor
    timestep: Tensor
    embeds: Tensor
    pooled: Tensor
    references: tuple[Tensor, ...]

    @classmethod
    def random(cls, generator: torch.Generator, config: dict[str, Any] = CONFIG) -> "Inputs":
        """Two references of different sizes. Sides are even and odd in patches, so that some crops are off centre."""

        def noise(*shape: int) -> Tensor:
            return torch.randn((ROWS, *shape), generator=generator)

        return cls(
            latents=noise(16, 6, 10),
            timestep=torch.full((ROWS,), 1000 * SIGMA),
            embeds=noise(5, config["joint_attention_dim"]),
            pooled=noise(config["pooled_projection_dim"]),
            references=(noise(16, 4, 6), noise(16, 10, 4)),
        )

    def with_references(self, count: int) -> "Inputs":
        """The same with the first ``count`` references."""
        return replace(self, references=self.references[:count])


def random_transformer(generator: torch.Generator):
    """Our DiT, in float32."""
    empty = weights.empty_model("transformer", CONFIG)
    state = {
        name: random_tensor(name, tuple(tensor.shape), CONFIG, generator, torch.float32)
        for name, tensor in empty.state_dict().items()
    }
    return weights.filled(empty, state, torch.device("cpu"))


def predict_velocity(transformer, given: Inputs) -> Tensor:
    """The velocity by the stock blocks: [b, C, h, w]."""
    return ours.predict_velocity(
        transformer, given.latents, given.timestep, given.embeds, given.pooled, given.references
    )


def prepared_velocity(transformer, given: Inputs) -> Tensor:
    """The velocity as the denoising loop computes it, here in the second of two steps: [b, C, h, w]."""
    timesteps = torch.stack([given.timestep[0] + 100, given.timestep[0]])
    height, width = given.latents.shape[-2:]
    run = ours.PreparedTransformer(transformer, timesteps, given.embeds, given.pooled, given.references, height, width)
    return run(given.latents, run.modulation(1))


def native_velocity(transformer, given: Inputs) -> Tensor:
    """The velocity of ComfyUI's diffusion_model in this pack, which takes over the layers of a DiT like this one."""
    denoiser = importlib.import_module("pack.nodes.native.denoiser")
    native = denoiser.DeepGenDenoiser(random_transformer(torch.Generator().manual_seed(0)))
    return native(given.latents, given.timestep, given.embeds, given.pooled, given.references)


FORMS: dict[str, Callable[..., Tensor]] = {
    "predict_velocity": predict_velocity,
    "prepared": prepared_velocity,
    "native": native_velocity,
}


def read_by_comfyui(state: dict[str, Tensor]) -> comfy.model_base.BaseModel:
    """ComfyUI's model of these weights, which it takes out of the dictionary and partly changes in place."""
    patcher = comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": torch.float32})
    expected = getattr(comfy.model_base, "SD3", None)
    if expected is None or patcher is None or type(patcher.model) is not expected:
        kind = "nothing that it knows" if patcher is None else f"its class {type(patcher.model).__name__}"
        sys.exit(f"The DiT must be read as ComfyUI's class SD3, but this ComfyUI reads it as {kind}.")
    return patcher.model


def own_forward(model: comfy.model_base.BaseModel, given: Inputs) -> Tensor:
    """The velocity by the forward of ComfyUI's DiT, which has no references: [b, C, h, w]."""
    return model.diffusion_model(given.latents, given.timestep, context=given.embeds, y=given.pooled)


def own_sampling(model: comfy.model_base.BaseModel, given: Inputs) -> Tensor:
    """The velocity that ComfyUI's samplers go by: from sigma, and back from the denoised latents: [b, C, h, w]."""
    sigma = torch.full((ROWS,), SIGMA)
    denoised = model.apply_model(given.latents, sigma, c_crossattn=given.embeds, y=given.pooled)
    return (given.latents - denoised) / SIGMA


def own_layers(model: comfy.model_base.BaseModel, given: Inputs) -> Tensor:
    """The velocity by the layers of ComfyUI's DiT, with tokens of references after those of the target."""
    dit = model.diffusion_model
    images = (given.latents, *given.references)
    tokens = [dit.x_embedder(image) + dit.cropped_pos_embed(image.shape[-2:]) for image in images]
    time_and_text = dit.t_embedder(given.timestep, dtype=given.latents.dtype) + dit.y_embedder(given.pooled)
    context = dit.context_embedder(given.embeds)  # [b, L, width]
    output = dit.forward_core_with_concat(torch.cat(tokens, dim=1), time_and_text, context)
    return dit.unpatchify(output[:, : tokens[0].shape[1]], hw=given.latents.shape[-2:])


def difference(one: Tensor, other: Tensor) -> float:
    return ((one - other).abs().max() / other.abs().max()).item()


def unnoticed(transformer, given: Inputs, expected: Tensor, generator: torch.Generator) -> list[str]:
    """The weights whose change leaves the velocity within the limit of what is expected."""
    names = []
    for name, tensor in transformer.state_dict().items():
        right = tensor.clone()
        tensor += 0.01 * torch.randn(tensor.shape, generator=generator)
        if difference(predict_velocity(transformer, given), expected) <= float(limit):
            names.append(name)
        tensor.copy_(right)
    return names


def one_number_wrong(transformer, given: Inputs) -> Tensor:
    """The velocity when one number of all weights is wrong by a tenth."""
    number = transformer.state_dict()["transformer_blocks.1.attn2.to_k.weight"][5, 7]
    number += 0.1
    velocity = predict_velocity(transformer, given)
    number -= 0.1
    return velocity


def single_files() -> dict[str, float]:
    """How far ComfyUI's velocity with quantised weights is from that of the weights before."""
    if "mixed_precision_ops" not in vars(comfy.ops):
        return {}
    folder = importlib.import_module("pack.deepgen_npu.checkpoint.folder")
    checkpoint = folder.Checkpoint.open(Path(made) / "checkpoint")
    transformer = weights.load_part(checkpoint, "transformer", torch.float32)
    apart = {}
    for path in sorted(Path(made).glob("*.safetensors")):
        # Of versions that do not know a format.
        if "int8" in path.stem and "int8_tensorwise" not in vars(comfy.ops).get("QUANT_ALGOS", {}):
            continue
        model = comfy.sd.load_diffusion_model(str(path), model_options={"dtype": torch.float32}).model
        if type(model) is not comfy.model_base.SD3:
            sys.exit(f"{path.name} is read as {type(model).__name__}.")
        generator = torch.Generator().manual_seed(0)
        given = Inputs.random(generator, checkpoint.configs["transformer"]).with_references(0)
        apart[path.stem] = difference(own_forward(model, given), predict_velocity(transformer, given))
    return apart


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    transformer = random_transformer(generator)
    # Of weights that ComfyUI's class has and the file has not, or the other way round.
    warnings = Records(logging.WARNING)
    logging.getLogger().addHandler(warnings)
    state = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    model = read_by_comfyui(state)

    given = Inputs.random(generator)
    alone = given.with_references(0)
    without, expected = own_forward(model, alone), own_layers(model, given)
    apart = {
        "ComfyUI's layers one by one": difference(own_layers(model, alone), without),
        "ComfyUI's sampling": difference(own_sampling(model, alone), without),
    }
    for name, form in FORMS.items():
        apart[f"{name}, no reference"] = difference(form(transformer, alone), without)
        apart[f"{name}, two references"] = difference(form(transformer, given), expected)
    velocity = predict_velocity(transformer, given)
    wrong = {
        "both references left out": difference(velocity, without),
        "one reference left out": difference(velocity, own_layers(model, given.with_references(1))),
        "one number of one weight": difference(one_number_wrong(transformer, given), expected),
    }
    found = {
        "read": {"warnings": warnings.messages, "left over": sorted(state)},
        "shift": model.model_sampling.shift,
        "apart": apart,
        "wrong": wrong,
        "quantised": single_files(),
        "unnoticed": unnoticed(transformer, given, expected, generator),
    }
    print(json.dumps(found))


with torch.inference_mode():
    main()
