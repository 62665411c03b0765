"""``python -m deepgen_npu verify``: the adaptation report's accuracy section as a command.

Two runs of this machine, two of its devices, two pictures, or a reference that another machine saved: how far apart
pictures and latents are.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Difference:
    """How far apart two pictures, or two tensors of latents, are.

    Attributes:
        mse: Mean squared error; of pictures on the scale of 0 to 255.
        largest: Largest absolute difference.
        mean: Mean absolute difference.
        identical: To the bit.
        psnr: Peak signal-to-noise ratio [dB] of pictures; infinite where they are identical. None for latents.
        ssim: Structural similarity of pictures (Wang et al. 2004, by scikit-image). None for latents.
    """

    mse: float
    largest: float
    mean: float
    identical: bool
    psnr: float | None = None
    ssim: float | None = None


def compare_pictures(first: Image.Image, second: Image.Image) -> Difference:
    """Compare two pictures as 8-bit RGB.

    Raises:
        ValueError: When their sizes differ.
    """
    if first.size != second.size:
        raise ValueError(
            f"The pictures are {first.width} x {first.height} and {second.width} x {second.height} pixels; "
            "pictures of one size are wanted."
        )
    from skimage.metrics import structural_similarity

    one, other = (np.asarray(picture.convert("RGB")).astype(np.float64) for picture in (first, second))
    error = np.abs(one - other)
    mse = float((error**2).mean())
    side = min(7, *first.size)
    return Difference(
        mse=mse,
        largest=float(error.max()),
        mean=float(error.mean()),
        identical=mse == 0,
        psnr=math.inf if mse == 0 else 10 * math.log10(255**2 / mse),
        ssim=float(
            structural_similarity(one, other, channel_axis=2, data_range=255, win_size=side - (side + 1) % 2)
        ),
    )


def compare_latents(first: Tensor, second: Tensor) -> Difference:
    """Compare final latents in float32.

    Raises:
        ValueError: When their shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"The latents have the shapes {list(first.shape)} and {list(second.shape)}.")
    error = (first.float().cpu() - second.float().cpu()).abs()
    return Difference(
        mse=float(error.square().mean()),
        largest=float(error.max()),
        mean=float(error.mean()),
        identical=torch.equal(first.cpu(), second.cpu()),
    )


def save_reference(folder: Path, latents: Tensor, picture: Image.Image, facts: dict[str, Any]) -> None:
    """Write what another machine needs to compare with: latents, picture, and how they were made."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({"latents": latents.detach().cpu().contiguous()}, folder / "latents.safetensors")
    picture.save(folder / "picture.png")
    (folder / "reference.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_reference(folder: Path) -> tuple[Tensor, Image.Image, dict[str, Any]]:
    """What `save_reference` wrote.

    Raises:
        ValueError: Naming the file that is missing.
    """
    from safetensors.torch import load_file

    for name in ("reference.json", "latents.safetensors", "picture.png"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}; a folder that `verify --save` wrote is wanted.")
    facts = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
    with Image.open(folder / "picture.png") as picture:
        picture.load()
        return load_file(folder / "latents.safetensors")["latents"], picture, facts


def as_markdown(rows: dict[str, tuple[Difference, Difference | None]], facts: dict[str, Any]) -> str:
    """A table ready for an issue: for each comparison the pictures, and the latents where there are any."""
    lines = [*(f"- {name}: {value}" for name, value in facts.items()), ""]
    lines += ["| comparison | MSE | largest | mean | identical | PSNR | SSIM |", "|---|---|---|---|---|---|---|"]
    for name, (pictures, latents) in rows.items():
        lines.append(_row(f"{name}: picture", pictures))
        if latents is not None:
            lines.append(_row(f"{name}: latents", latents))
    return "\n".join(lines)


def _row(name: str, difference: Difference) -> str:
    values = asdict(difference)
    psnr = "" if values["psnr"] is None else f"{values['psnr']:.2f} dB" if values["psnr"] < math.inf else "infinite"
    ssim = "" if values["ssim"] is None else f"{values['ssim']:.6f}"
    identical = "yes" if difference.identical else "no"
    return (
        f"| {name} | {difference.mse:.6g} | {difference.largest:.6g} | {difference.mean:.6g} | {identical} | "
        f"{psnr} | {ssim} |"
    )
