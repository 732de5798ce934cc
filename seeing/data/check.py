"""What a data set holds, before anything long starts: every sample is opened once, as a study would.

Memory stays flat: of each sample a few numbers are kept, of each kind of failure the first examples.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from seeing.data.dataset import Dataset
from seeing.data.failures import BadSample
from seeing.rectangles import share_inside

#: Failures that are shown of each kind.
EXAMPLES = 5


@dataclass(frozen=True)
class Spread:
    """How numbers are spread over samples."""

    least: float
    median: float
    mean: float
    most: float

    @classmethod
    def of(cls, numbers: array) -> Spread | None:
        if not numbers:
            return None
        values = np.frombuffer(numbers, dtype=np.float64)
        return cls(*(float(f(values)) for f in (np.min, np.median, np.mean, np.max)))


@dataclass
class Failures:
    """How many samples fail in one way, and the first of them: (id, reason)."""

    count: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)

    def add(self, bad: BadSample) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append((bad.id, bad.reason))


@dataclass(frozen=True)
class Report:
    """What `check` found.

    `failed` counts failures by kind, the most frequent first. `share` is the share of the picture that is
    evidence, in samples that have boxes; `repeated` are ids that the source gives more than once.
    """

    name: str
    spec: str
    fingerprint: str
    samples: int
    good: int
    failed: dict[str, Failures]
    repeated: tuple[str, ...]
    with_boxes: int
    boxes: Spread | None
    share: Spread | None
    width: Spread | None
    height: Spread | None
    answers: Spread | None

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return asdict(self)


def check(dataset: Dataset, told: Callable[[str, int, int], None] | None = None) -> Report:
    """Open every sample once. `told(what, done, total)` hears how far it is."""
    failed: dict[str, Failures] = {}
    kept = {name: array("d") for name in ("boxes", "share", "width", "height", "answers")}
    total = len(dataset)
    for i in range(total):
        try:
            sample = dataset.sample(i)
        except BadSample as bad:
            failed.setdefault(bad.kind, Failures()).add(bad)
        else:
            kept["answers"].append(len(sample.answers))
            kept["width"].append(sample.image.width)
            kept["height"].append(sample.image.height)
            kept["boxes"].append(len(sample.boxes))
            if sample.boxes:
                whole = np.array([[0, 0, *sample.image.size]], dtype=float)
                kept["share"].append(share_inside(whole, np.array(sample.boxes))[0])
        if told is not None:
            told("samples", i + 1, total)
    return Report(
        name=dataset.name,
        spec=dataset.spec,
        fingerprint=dataset.fingerprint(),
        samples=total,
        good=len(kept["width"]),
        failed=dict(sorted(failed.items(), key=lambda one: (-one[1].count, one[0]))),
        repeated=tuple(dataset.repeated_ids),
        with_boxes=len(kept["share"]),
        **{name: Spread.of(numbers) for name, numbers in kept.items()},
    )
