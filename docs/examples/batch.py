"""Draw an image for each line of a text file: python docs/examples/batch.py prompts.txt FOLDER"""

import argparse
from pathlib import Path

from deepgen_npu import DeepGenPipeline


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("prompts", type=Path)
parser.add_argument("folder", type=Path)
parser.add_argument("--model", default="deepgenteam/DeepGen-1.0-diffusers", help="a folder, or an id to download")
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--at_once", type=int, default=4, help="more are faster, and take more memory")
arguments = parser.parse_args()

pipe = DeepGenPipeline.from_pretrained(arguments.model, device="auto")
side = pipe.sizes.trained_side
prompts = [line for line in arguments.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
arguments.folder.mkdir(parents=True, exist_ok=True)
for first in range(0, len(prompts), arguments.at_once):
    some = prompts[first : first + arguments.at_once]
    images = pipe(some, height=side, width=side, num_inference_steps=arguments.steps, seed=first).images
    for number, image in enumerate(images, start=first + 1):
        image.save(arguments.folder / f"{number:03}.png")
