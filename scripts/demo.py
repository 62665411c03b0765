"""``make demo``: generate a picture and edit a photograph on the CPU, with the commands a user would type."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from deepgen_npu.random_checkpoint import write  # noqa: E402


DEMO = ROOT / "demo"
MODEL = DEMO / "random-tiny"
PHOTO = ROOT / "assets" / "coffee.jpg"


def run(*arguments: str) -> None:
    print(f"\n$ python -m deepgen_npu {shlex.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "deepgen_npu", *arguments], cwd=ROOT, check=True)


def main() -> None:
    start = time.perf_counter()
    if not (MODEL / "model_index.json").is_file():
        write(MODEL, size="tiny")
    print(
        "There is no trained demo checkpoint yet. This demo uses random weights in the layout of DeepGen 1.0, so "
        "its pictures are coloured noise: they show that everything runs, not what the model can do."
    )
    generated, edited = DEMO / "generated.png", DEMO / "edited.png"
    common = ["--model_path", str(MODEL.relative_to(ROOT)), "--device", "cpu"]
    prompt = "a photo of a blue pizza and a yellow baseball glove"
    run("generate", *common, "--prompt", prompt, "--output_image", str(generated.relative_to(ROOT)))
    prompt = "Place this cup of coffee on a sandy beach with the sunset in the background."
    run(
        "edit", *common, "--prompt", prompt, "--input_image", str(PHOTO.relative_to(ROOT)), "--follow_input",
        "--output_image", str(edited.relative_to(ROOT)),
    )  # fmt: skip
    print(f"\nDone in {time.perf_counter() - start:.0f}s. The pictures:\n  {generated}\n  {edited}")


if __name__ == "__main__":
    main()
