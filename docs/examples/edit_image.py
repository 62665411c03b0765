"""Edit an image: python docs/examples/edit_image.py guitar.png "place this guitar on a sandy beach" beach.png"""

import argparse

from PIL import Image

from deepgen_npu import DeepGenPipeline


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("image", nargs="+", help="the image to edit, and further references")
parser.add_argument("prompt")
parser.add_argument("output")
parser.add_argument("--model", default="deepgenteam/DeepGen-1.0-diffusers", help="a folder, or an id to download")
parser.add_argument("--steps", type=int, default=50)
arguments = parser.parse_args()

references = [Image.open(path) for path in arguments.image]
pipe = DeepGenPipeline.from_pretrained(arguments.model, device="auto")
# The shape of the first image, at the area that the model was trained at.
height, width = pipe.sizes.match_aspect(references[0].height, references[0].width)
steps = arguments.steps
edited = pipe(arguments.prompt, references, height=height, width=width, num_inference_steps=steps, seed=42).images[0]
edited.save(arguments.output)
