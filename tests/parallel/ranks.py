"""One rank of several: loads models that all of them share, asks every check, and keeps what came out.

Run as a program: ``torchrun --nproc-per-node 2 ranks.py FOLDER``, where ``FOLDER/NAME`` are saved models. It
leaves ``rank0.pt``, ``rank1.pt``.
"""

import sys
from pathlib import Path

import torch
from parallel.checks import ALL, MODELS, SAID, SOME, STUDY, found_by
from parallel.documented import program
from transformers import AutoModelForImageTextToText
from transformers.distributed import DistributedConfig

import seeing
from seeing.loading import CannotLoad
from seeing.study import on_ranks

#: How models are split: one has an embedding that has to stay whole.
WHOLE = {"model.language_model.embed_tokens": "replicate", "lm_head": "replicate"}
PLANS = {"gated": "auto", "tower": WHOLE}


def other(folder: Path, name: str, plan):
    """A model whose processor is made anew: a (model, processor) pair."""
    split = DistributedConfig(tp_plan=plan)
    model = AutoModelForImageTextToText.from_pretrained(folder / name, distributed_config=split)
    return seeing.load((model, MODELS[name]()[1]))


def refused(load) -> str:
    try:
        load()
    except CannotLoad as error:
        return str(error)
    return "loaded"


def main(folder: Path) -> None:
    vlm = seeing.load("plates-tiny", tp_plan="auto")
    found = {"plates": found_by(ALL, vlm)}
    held = vlm._module.model.language_model.layers[0].self_attn
    found["held"] = {
        name: tuple(getattr(held, name).weight.to_local().shape) for name in ("q_proj", "o_proj")
    }
    found |= {name: found_by(SOME, other(folder, name, plan)) for name, plan in PLANS.items()}
    found["refused"] = refused(lambda: other(folder, "tower", "auto"))
    exec(program("Several processes, split heads"), said := {})
    found["documented"] = {"answer": str(said["answer"]), "shape": tuple(said["pattern"].shape)}
    asked = on_ranks.run(*STUDY, folder / "results", load={"tp_plan": "auto"}, **SAID)
    found["study"] = asked.rows.set_index(["sample", "method"])[["answer", "logprob", "evidence_auroc"]]
    torch.save(found, folder / f"rank{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
