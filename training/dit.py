"""Stage 4: the DiT. ``python -m training dit``.

Flow matching on the encoded training set. The work is shared by processes of one thread each: threads of one process
wait for each other whenever the machine is busy with something else.
"""

from __future__ import annotations

import os
import random
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from deepgen_npu.model.transformer import predict_velocity

from . import latents
from .evaluate import quick
from .latents import Chunk
from .model import load, save_part
from .progress import Log
from .resume import SAVE_SECONDS, Saved


BATCH = 64  # of each process
LEARNING_RATE = 1.5e-3
WEIGHT_DECAY = 0.02
WARMUP = 200  # steps
COOLDOWN = 0.3
"""The last part of the time, in which the learning rate falls to zero. A longer run resumes from before it."""
EMA = 0.998
EDIT_PART = 0.55
"""Part of the steps that train edits, which are longer and harder; half as much in the first eighth of the time."""
EVALUATE_SECONDS = 420


def train(work: Path, process: int, processes: int, seconds: float, seed: int, log: Log, images: int = 60) -> None:
    """Train, from the last saved state if there is one, up to ``seconds`` of training in total.

    Args:
        work: Folder of the run.
        process: Number of this process.
        processes: Number of all processes.
        seconds: Of training, over all runs.
        seed: Of weights, data and noise.
        log: For losses and evaluations.
        images: Number of images in each evaluation.
    """
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29511")
    dist.init_process_group("gloo", rank=process, world_size=processes, timeout=timedelta(minutes=30))
    run = _Run(work, process, seed)
    run.agree_on_step()
    data = latents.read(work, process)
    generator = torch.Generator().manual_seed(1000 * seed + 10 * run.saved.step + process)
    shift = run.pipe.scheduler.config["shift"]
    last = saved = evaluated = time.monotonic()
    recent: dict[str, list[float]] = {"generate": [], "edit": []}
    while run.saved.seconds < seconds:
        part = run.saved.seconds / seconds
        # The same for all processes: edits take longer, and no process should wait.
        editing = random.Random(f"{seed} {run.saved.step}").random() < EDIT_PART * (0.5 if part < 0.125 else 1)
        task = "edit" if editing else "generate"
        batch = _draw(data[task], generator)
        run.set_learning_rate(min(1.0, (run.saved.step + 1) / WARMUP) * min(1.0, (1 - part) / COOLDOWN))
        recent[task].append(run.train_step(batch, shift, generator))

        now = time.monotonic()
        # All processes must use the same clock, or one of them stops before the others.
        clock = torch.tensor([now - last, now - saved, now - evaluated], dtype=torch.float64)
        dist.broadcast(clock, 0)
        run.saved.seconds += float(clock[0])
        last = now
        if process == 0 and run.saved.step % 200 == 0:
            means = {f"loss_{name}": sum(values) / len(values) for name, values in recent.items() if values}
            log.write(stage="dit", step=run.saved.step, seconds=run.saved.seconds, **means)
            recent = {"generate": [], "edit": []}
        if clock[1] > SAVE_SECONDS:
            saved = now
            run.save()
        if clock[2] > EVALUATE_SECONDS:
            evaluated = now
            run.evaluate(log, images)
            dist.barrier()
            last = time.monotonic()  # evaluation is not training
    run.save()
    run.evaluate(log, images)
    dist.barrier()
    dist.destroy_process_group()


def initialise(transformer: SD3Transformer2DModel) -> None:
    """Initialise as DiT and SD3: every block is the identity, the output zero (arXiv 2212.09748, section 3.2)."""
    for name, module in transformer.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        if name.endswith(("norm1.linear", "norm1_context.linear", "norm_out.linear")) or name == "proj_out":
            nn.init.zeros_(module.weight)


class _Run:
    """The model in training, and everything that is saved of it."""

    def __init__(self, work: Path, process: int, seed: int):
        self.work, self.process = work, process
        self.pipe = load(work / "checkpoint")
        torch.manual_seed(seed)
        config = self.pipe.transformer.config
        self.model = SD3Transformer2DModel.from_config(config)
        initialise(self.model)
        self.average = SD3Transformer2DModel.from_config(config).requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        hidden, other = [], []
        for name, parameter in self.model.named_parameters():
            # Muon is for the matrices inside the blocks, not for modulation, embeddings and output.
            inside = parameter.ndim == 2 and name.startswith("transformer_blocks.") and "norm" not in name
            (hidden if inside else other).append(parameter)
        # Its matrix iteration is expensive, so each process updates a share of the matrices and broadcasts it.
        processes = dist.get_world_size()
        hidden.sort(key=lambda parameter: -parameter.numel())
        self.shares = [hidden[number::processes] for number in range(processes)]
        self.optimizers = [
            torch.optim.Muon(
                self.shares[process],
                lr=LEARNING_RATE,
                weight_decay=WEIGHT_DECAY,
                momentum=0.95,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(other, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY),
        ]
        muon, adamw = self.optimizers
        # One file for each process: they differ in their share of the matrices.
        self.saved = Saved(work / f"dit-{process}.pt", model=self.model, average=self.average, muon=muon, adamw=adamw)

    def agree_on_step(self) -> None:
        """Let all processes continue from the same step: a run may have been stopped when only some had saved.

        Raises:
            ValueError: When their states do not belong together.
        """
        least, _ = self._steps()
        if self.saved.step > least:
            self.saved.go_back()
        least, most = self._steps()
        if least != most:
            raise ValueError(
                f"The states in {self.work} must be of one step, got steps {least} to {most}. Resume with the same "
                "number of processes, or remove dit-*.pt there to start from scratch."
            )

    def _steps(self) -> tuple[int, int]:
        """The lowest and the highest step of all processes."""
        least, most = torch.tensor(self.saved.step), torch.tensor(self.saved.step)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(least), int(most)

    def save(self) -> None:
        self.saved.save()
        if self.process == 0:
            save_part(self.work / "checkpoint", "transformer", self.average.state_dict())

    def set_learning_rate(self, factor: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * factor

    def train_step(self, batch: Chunk, shift: float, generator: torch.Generator) -> float:
        noise = torch.randn(batch.target.shape, generator=generator)
        uniform = torch.rand(len(noise), generator=generator)
        sigma = shift * uniform / (1 + (shift - 1) * uniform)  # as the scheduler spends its steps
        mix = sigma[:, None, None, None]
        noisy = (1 - mix) * batch.target + mix * noise
        # The backward pass of PyTorch's flash attention is ten times slower than plain matrix products here:
        # sequences are short.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            velocity = predict_velocity(self.model, noisy, 1000 * sigma, batch.embeds, batch.pooled, batch.references)
        loss = (velocity.float() - (noise - batch.target)).square().mean()
        loss.backward()
        self._share_gradients()
        for optimizer in self.optimizers:
            optimizer.step()
        self._share_matrices()
        self.model.zero_grad(set_to_none=True)
        self.saved.step += 1
        decay = min(EMA, (1 + self.saved.step) / (10 + self.saved.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        return float(loss.detach())

    def _share_gradients(self) -> None:
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.view(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        norm = flat.norm()
        if norm > 1:
            flat /= norm
        _spread(flat, gradients)

    def _share_matrices(self) -> None:
        for owner, parameters in enumerate(self.shares):
            flat = torch.cat([parameter.data.view(-1) for parameter in parameters])
            dist.broadcast(flat, owner)
            if owner != self.process:
                _spread(flat, [parameter.data for parameter in parameters])

    def evaluate(self, log: Log, images: int) -> None:
        """Evaluate generation in one process and edits in another."""
        self.pipe.transformer.load_state_dict(self.average.state_dict())
        for number, task in enumerate(("generate", "edit")):
            if number % dist.get_world_size() == self.process:
                log.write(
                    stage="dit",
                    step=self.saved.step,
                    seconds=self.saved.seconds,
                    task=task,
                    **quick(self.pipe, task, images),
                )


def _spread(flat: Tensor, tensors: list[Tensor]) -> None:
    """Copy a flat tensor into tensors, one after the other."""
    pieces = flat.split([tensor.numel() for tensor in tensors])
    for tensor, piece in zip(tensors, pieces, strict=True):
        tensor.copy_(piece.view_as(tensor))


def _draw(chunks: list[Chunk], generator: torch.Generator) -> Chunk:
    """Rows of a random chunk, each chunk with a probability proportional to its number of rows."""
    sizes = torch.tensor([len(chunk.target) for chunk in chunks], dtype=torch.float)
    chunk = chunks[int(torch.multinomial(sizes, 1, generator=generator))]
    return chunk.rows(torch.randperm(len(chunk.target), generator=generator)[:BATCH])
