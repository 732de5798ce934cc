"""What some published methods take from calibration samples: three numbers, directions, sinks.

The papers tune or estimate these on a data set of their own. Here they come from the samples of the profile,
which should not be among those that a method is later judged on.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from os import PathLike

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from seeing.correctness import exact_match
from seeing.data.samples import EvidenceSample
from seeing.edits import BadEdit
from seeing.methods.published import AdaptVis, scaling_vis
from seeing.methods.vista import vista_vectors
from seeing.vlm import VLM

#: What AdaptVis is tuned over, the ranges of its paper (arXiv 2503.01773).
LOWS, HIGHS = (0.5, 0.8), (1.2, 1.5, 2.0)

#: How many samples directions are estimated from: the first few are enough.
PAIRS = 16


def tuned(
    vlm: VLM,
    samples: Sequence[EvidenceSample],
    *,
    low: float | None = None,
    high: float | None = None,
    threshold: float | None = None,
    batch_size: int = 16,
) -> AdaptVis:
    """AdaptVis with the numbers that answer most of ``samples`` right; those that are given stay.

    Each factor on the scores answers the samples once, and then every threshold is a choice between two
    answers that are there: those between two samples in order of confidence. Ties go to the factors nearest
    to 1, then to the lowest threshold.
    """
    lows, highs = ([low] if low is not None else LOWS), ([high] if high is not None else HIGHS)
    sure, right = [], {weight: [] for weight in (*lows, *highs)}
    for some in _batches(samples, batch_size):
        prompt = vlm.prompts(some, "qa")
        sure.append(AdaptVis().confidence(vlm, prompt))
        for weight, marks in right.items():
            answers = scaling_vis(weight).answer(vlm, prompt)
            marks += [exact_match(answer, one.answers) > 0 for answer, one in zip(answers, some)]
    confidence = torch.cat(sure).double()
    marked = {weight: torch.tensor(marks, dtype=torch.float64) for weight, marks in right.items()}
    found = []
    for one, other in product(lows, highs):
        for cut in [threshold] if threshold is not None else cuts(confidence):
            unsure = confidence < cut
            score = float(torch.where(unsure, marked[one], marked[other]).mean())
            found.append((-score, abs(one - 1) + abs(other - 1), cut, one, other))
    _, _, cut, one, other = min(found)
    return AdaptVis(one, other, cut)


def cuts(confidence: Float[Tensor, " sample"]) -> list[float]:
    """0, 1 and the middles between neighbours in order: all thresholds that tell samples apart."""
    values = confidence.unique()
    return [0.0, *((values[1:] + values[:-1]) / 2).tolist(), 1.0]


def directions(vlm: VLM, samples: Sequence[EvidenceSample]) -> Float[Tensor, "layer d_model"]:
    """VISTA's vectors (arXiv 2502.03628) from the first few samples, as `vista_vectors` makes them."""
    return vista_vectors(vlm, vlm.prompts(samples[:PAIRS], "qa"))


def read_vectors(path: str | PathLike) -> Float[Tensor, "layer d_model"]:
    """The one tensor of a safetensors file. Raises `BadEdit` for anything else."""
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadEdit(f"can't read vectors from {str(path)!r}: {error}") from error
    if len(found) != 1 or next(iter(found.values())).ndim != 2:
        shapes = {name: tuple(value.shape) for name, value in found.items()}
        raise BadEdit(f"{str(path)!r} holds {shapes}; expected one tensor (layer, d_model)")
    return next(iter(found.values())).float()


def _batches(samples: Sequence[EvidenceSample], size: int) -> list[list[EvidenceSample]]:
    return [list(samples[first : first + size]) for first in range(0, len(samples), size)]
