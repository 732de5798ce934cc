"""Trains the embedded models from nothing: one command and one seed give both.

    python -m seeing.zoo.train --seed 0 --out runs/seed0 [--resume] [--stages prior null] [--workers 1]

Two single-thread processes with one all-reduce of a flat gradient a step: on two cores this beats two threads
in one process. A stage reads its predecessor's file and leaves its own, so a killed run goes on at a stage
boundary.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from seeing.data.plates import PlatesBatch, training_batch
from seeing.zoo.build import build_model
from seeing.zoo.packing import Learner, pack
from seeing.zoo.recipe import Stage, recipe

SHARDS, SHARD_IMAGES, QUESTIONS = 2, 32, 4
"""A step is 2 shards of 32 images with 4 questions each for any number of workers, so a seed names the same
data.
"""
LOG_EVERY = 25


class FlatGradient:
    """All gradients as views of one vector, so that workers exchange them in one message."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self.vector = torch.zeros(sum(p.numel() for p in parameters))
        for p, view in zip(parameters, self.vector.split([p.numel() for p in parameters]), strict=True):
            p.grad = view.view_as(p)

    def share(self, workers: int) -> None:
        """Average over the workers."""
        if workers > 1:
            dist.all_reduce(self.vector)
            self.vector /= workers

    def clip(self, norm: float = 1.0) -> float:
        """Scale down to `norm`; returns the norm before."""
        found = self.vector.norm().item()
        if found > norm:
            self.vector *= norm / found
        return found


def train_stage(
    learner: Learner, stage: Stage, seed: int, rank: int = 0, workers: int = 1, report=print
) -> None:
    """Train in place for one stage; `report` gets a dict of averages every LOG_EVERY steps."""
    trained = [p for name, p in learner.named_parameters() if stage.joint or not _is_text(name)]
    gradient = FlatGradient(trained)
    optimizer = torch.optim.AdamW(trained, lr=stage.rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    window, since = [], time.time()
    for step in range(stage.steps):
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate(step)
        gradient.vector.zero_()
        loss, log = learner(pack(_shards(stage, seed, rank, workers, step)), stage.joint)
        loss.backward()
        gradient.share(workers)
        window.append(log | {"loss": loss.item(), "gradient": gradient.clip()})
        optimizer.step()
        if (step + 1) % LOG_EVERY == 0 or step + 1 == stage.steps:
            speed = len(window) * SHARDS * SHARD_IMAGES / (time.time() - since)
            means = {
                name: round(float(np.mean([entry[name] for entry in window])), 4) for name in log | window[0]
            }
            report({"stage": stage.name, "step": step + 1, **means, "images_per_s": round(speed, 1)})
            window, since = [], time.time()


def _is_text(name: str) -> bool:
    return name.startswith(("model.model.language_model.", "model.lm_head."))


def _shards(stage: Stage, seed: int, rank: int, workers: int, step: int) -> PlatesBatch:
    """This worker's shards of one step, joined."""
    shards = [
        training_batch(
            stage.scenes(step), SHARD_IMAGES, QUESTIONS, seed=seed, stage=stage.stream, rank=i, step=step
        )
        for i in range(rank, SHARDS, workers)
    ]
    names = [f.name for f in fields(PlatesBatch)]
    return PlatesBatch(**{name: np.concatenate([getattr(shard, name) for shard in shards]) for name in names})


def _worker(rank: int, workers: int, options: argparse.Namespace, meeting: str) -> None:
    with _one_quick_thread():
        _train(rank, workers, options, meeting)


def _train(rank: int, workers: int, options: argparse.Namespace, meeting: str) -> None:
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers)
    # Every worker draws the same weights, so none needs to be sent.
    torch.manual_seed(options.seed)
    fresh = Learner(build_model()).state_dict()
    for stage in options.plan:
        file = options.out / f"{stage.name}.safetensors"
        if options.resume and file.exists():
            continue
        learner = Learner(build_model())
        learner.load_state_dict(
            load_file(options.out / f"{stage.after}.safetensors") if stage.after else fresh
        )
        entries: list[dict] = []
        start = time.time()
        train_stage(
            learner,
            stage,
            options.seed,
            rank,
            workers,
            entries.append if rank else _Log(options.out, entries),
        )
        if rank == 0:
            # Written aside and renamed, so that a kill never leaves half a checkpoint for --resume to trust.
            save_file(learner.state_dict(), file.with_suffix(".part"))
            about = {"seed": options.seed, "seconds": round(time.time() - start), "last": entries[-1]}
            file.with_suffix(".json").write_text(json.dumps(about | {"stage": asdict(stage)}, indent=1))
            os.replace(file.with_suffix(".part"), file)
        if workers > 1:
            dist.barrier()
    if workers > 1:
        dist.destroy_process_group()


@contextmanager
def _one_quick_thread() -> Iterator[None]:
    """One thread, and denormal numbers taken as zero, until the work is done: both are the process's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)


class _Log:
    """Appends entries to log.jsonl and prints them."""

    def __init__(self, out: Path, entries: list[dict]) -> None:
        self.path, self.entries = out / "log.jsonl", entries

    def __call__(self, entry: dict) -> None:
        self.entries.append(entry)
        line = json.dumps(entry)
        with self.path.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(
        prog="python -m seeing.zoo.train", description="Train the embedded models."
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="names the weights' and the data's random streams"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and log.jsonl")
    parser.add_argument("--resume", action="store_true", help="keep the stages whose checkpoint is there")
    parser.add_argument(
        "--stages", nargs="+", choices=list(recipe()), default=list(recipe()), help="only these stages"
    )
    parser.add_argument("--dim", type=float, default=0.3, help="share of darkened images in the last stage")
    parser.add_argument(
        "--workers", type=int, choices=(1, SHARDS), default=SHARDS, help="single-thread processes"
    )
    options = parser.parse_args(arguments)
    options.plan = [stage for name, stage in recipe(options.dim).items() if name in options.stages]
    for stage in options.plan:
        before = options.out / f"{stage.after}.safetensors"
        if stage.after and stage.after not in options.stages and not before.exists():
            parser.error(
                f"stage {stage.name} goes on from {before}, which is missing; train {stage.after} first"
            )
    options.out.mkdir(parents=True, exist_ok=True)
    # Set before the workers start: their maths libraries read it once, on import.
    os.environ["OMP_NUM_THREADS"] = "1"
    if options.workers == 1:
        _worker(0, 1, options, "")
        return
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, (options.workers, options, f"{folder}/meeting"), nprocs=options.workers)


if __name__ == "__main__":
    main()
