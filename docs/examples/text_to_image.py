"""Draw an image from a prompt: python docs/examples/text_to_image.py "a red bicycle in the snow" bicycle.png"""

import argparse

from deepgen_npu import DeepGenPipeline


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("prompt")
parser.add_argument("output")
parser.add_argument("--model", default="deepgenteam/DeepGen-1.0-diffusers", help="a folder, or an id to download")
parser.add_argument("--steps", type=int, default=50)
arguments = parser.parse_args()

pipe = DeepGenPipeline.from_pretrained(arguments.model, device="auto")
side = pipe.sizes.trained_side
image = pipe(arguments.prompt, height=side, width=side, num_inference_steps=arguments.steps, seed=42).images[0]
image.save(arguments.output)
