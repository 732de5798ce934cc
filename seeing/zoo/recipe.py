"""What the embedded models were trained on, stage by stage: steps, learning rate, and how the scenes change.

sight     tower and projector learn to name each patch's colour, shape and digit
answers   everything learns to answer, few objects an image
prior     the digit follows a fixed table with chance 0.6, in harder light        -> plates-tiny
null      as many steps from the same checkpoint, without the table               -> plates-null
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from seeing.data.plates import PlatesSplit

WARMUP = 100


@dataclass(frozen=True)
class Stage:
    """One stage: it goes on from the checkpoint of stage `after`, and its scenes move from `first` to `last`
    over two thirds of its steps. `joint`: the text model and its answers are trained too. `stream`: key of
    its random stream.
    """

    name: str
    after: str | None
    steps: int
    rate: float
    joint: bool
    first: PlatesSplit
    last: PlatesSplit
    stream: int

    def scenes(self, step: int) -> PlatesSplit:
        """The distribution of scenes at a step."""
        share = min(1.0, 1.5 * step / self.steps)

        def between(name: str) -> tuple:
            first, last = np.array(getattr(self.first, name)), np.array(getattr(self.last, name))
            value = first + share * (last - first)
            return tuple((value.round().astype(int) if first.dtype.kind == "i" else value).tolist())

        return replace(self.last, **{name: between(name) for name in ("noise", "contrast", "clutter")})

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero."""
        warm = min(1.0, (step + 1) / min(WARMUP, self.steps))
        return self.rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def recipe(dim: float = 0.3) -> dict[str, Stage]:
    """The stages by name, in order. `dim`: share of images in the last stage that a smooth random
    illumination darkens, so that a dimmed image is nothing new to the model.
    """
    many = PlatesSplit((6, 12), noise=(0.02, 0.05), contrast=(0.9, 1.0), clutter=(0, 2))
    many_last = replace(many, noise=(0.02, 0.2), contrast=(0.6, 1.0), clutter=(0, 8))
    few = PlatesSplit((2, 6), noise=(0.02, 0.08), contrast=(0.8, 1.0), clutter=(0, 4))
    few_last = replace(few, noise=(0.02, 0.15), contrast=(0.7, 1.0), clutter=(0, 8))
    wide = PlatesSplit((2, 6), noise=(0.02, 0.25), contrast=(0.45, 1.0), clutter=(0, 12), dim=dim)
    table = replace(wide, prior=0.6)
    stages = (
        Stage("sight", None, 700, 3e-3, False, many, many_last, stream=0),
        Stage("answers", "sight", 900, 1.5e-3, True, few, few_last, stream=1),
        Stage("prior", "answers", 450, 1.2e-3, True, table, table, stream=2),
        Stage("null", "answers", 450, 1.2e-3, True, wide, wide, stream=2),
    )
    return {stage.name: stage for stage in stages}
