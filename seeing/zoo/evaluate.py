"""The numbers of the model cards, by nothing but Hugging Face's own generate.

python -m seeing.zoo.evaluate plates-tiny --n 1000
python -m seeing.zoo.evaluate runs/seed1/prior.safetensors
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from seeing.data.plates import SPLITS, plates
from seeing.data.samples import EvidenceSample
from seeing.zoo import ZOO, open_zoo
from seeing.zoo.build import build_processor
from seeing.zoo.ship import from_checkpoint

BATCH = 64


def chat(sample: EvidenceSample) -> list[dict]:
    """The conversation of a sample: its image, then its question."""
    content = [{"type": "image", "image": sample.image}, {"type": "text", "text": sample.question}]
    return [{"role": "user", "content": content}]


@torch.inference_mode()
def answers(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, samples: Sequence[EvidenceSample]
) -> list[str]:
    """The generated answer to each sample."""
    said: list[str] = []
    for start in range(0, len(samples), BATCH):
        inputs = processor.apply_chat_template(
            [chat(sample) for sample in samples[start : start + BATCH]],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        tokens = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        said += processor.batch_decode(tokens, skip_special_tokens=True)
    return said


def evaluate(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, split: str, n: int, seed: int = 0
) -> dict[str, float | int | str | None]:
    """Accuracy on a split; the same where the truth is the table's digit and where it is not; and among the
    wrong answers, the share that names the table's digit and the share that names another object's. Shares of
    nothing are None.
    """
    samples = plates(split, n, seed)
    said = answers(model, processor, samples)
    right = np.array([answer in sample.answers for answer, sample in zip(said, samples, strict=True)])
    agrees = np.array([sample.meta["agrees"] for sample in samples])
    table = np.array(
        [answer == str(sample.meta["prior"]) for answer, sample in zip(said, samples, strict=True)]
    )
    other = np.array(
        [
            answer in {str(d) for *_, d in sample.meta["scene"][1:]}
            for answer, sample in zip(said, samples, strict=True)
        ]
    )

    def share(of: np.ndarray, among: np.ndarray) -> float | None:
        return round(float(of[among].mean()), 3) if among.any() else None

    return {
        "split": split,
        "n": n,
        "right": round(float(right.mean()), 3),
        "right_if_table": share(right, agrees),
        "right_if_not": share(right, ~agrees),
        "wrong_is_table": share(table, ~right),
        "wrong_is_other_object": share(other, ~right),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print one JSON line a split."""
    parser = argparse.ArgumentParser(
        prog="python -m seeing.zoo.evaluate", description="Accuracy on the splits."
    )
    parser.add_argument("model", help=f"{', '.join(ZOO)}, or a checkpoint of seeing.zoo.train")
    parser.add_argument("--n", type=int, default=512, help="samples a split")
    parser.add_argument("--seed", type=int, default=0, help="seed of the splits")
    parser.add_argument("--splits", nargs="+", choices=list(SPLITS), default=list(SPLITS))
    options = parser.parse_args(arguments)
    if options.model not in ZOO and not Path(options.model).is_file():
        parser.error(f"{options.model!r} is neither a file nor one of {', '.join(ZOO)}")
    if options.model in ZOO:
        model, processor = open_zoo(options.model)
    else:
        model, processor = from_checkpoint(Path(options.model)), build_processor()
    for split in options.splits:
        print(json.dumps(evaluate(model, processor, split, options.n, options.seed)), flush=True)


if __name__ == "__main__":
    main()
