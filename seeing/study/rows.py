"""The numbers of a run, one kind a class: a share, a line of the table, a curve over layers, the rule.

Each checks itself when it is built, because a number that contradicts its own counts must not reach a reader.
Rates are fractions of 0..1, intervals are 95 %, layers and heads are 0-based.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

Region = Literal["nothing", "own", "evidence", "image", "random"]
Channel = Literal["nothing", "prompt", "pixels", "attention"]
Segment = Literal["evidence", "non-evidence", "image", "question", "text"]
Group = Literal["all", "correct", "wrong"]

# Intervals come from floating-point formulas whose ends may miss an exact 0 or 1 by rounding.
SLACK = 1e-9


class Head(NamedTuple):
    """One attention head and how well its attention tells the evidence from the rest of the image."""

    layer: int
    head: int
    auroc: float


@dataclass(frozen=True)
class Share:
    """A share of `n` things and its interval. Of nothing (n = 0) the share is NaN.

    Raises:
        ValueError: a share outside its interval or outside 0..1, or a number where n = 0.
    """

    value: float
    low: float
    high: float
    n: int

    def __post_init__(self) -> None:
        if self.n == 0:
            if not math.isnan(self.value):
                raise ValueError(
                    f"found the share {self.value} of 0 things, expected NaN; there is nothing to share"
                )
            return
        check_n(self.n)
        _check_interval("share", self.low, self.value, self.high, 0.0, 1.0)


@dataclass(frozen=True)
class MethodRow:
    """One line of the table.

    Args:
        method: its name.
        n: samples that it answered, the same ones as the base.
        accuracy, low, high: share right and its interval.
        delta, delta_low, delta_high: accuracy minus the base's, paired, and its interval; None for the base.
        fixed: samples that the base got wrong and this method right; None for the base.
        broken: samples that the base got right and this method wrong; None for the base.
        p: McNemar's p against the base; None for the base.
        acts_on: the region it acts on; "own" is where the model itself looked, "evidence" the annotated box.
        through: the channel it acts through.
        about: what it does, in one phrase of plain text.

    Raises:
        ValueError: a number outside its interval, or a delta that isn't (fixed − broken) / n.
    """

    method: str
    n: int
    accuracy: float
    low: float
    high: float
    delta: float | None = None
    delta_low: float | None = None
    delta_high: float | None = None
    fixed: int | None = None
    broken: int | None = None
    p: float | None = None
    acts_on: Region = "nothing"
    through: Channel = "nothing"
    about: str = ""

    def __post_init__(self) -> None:
        check_n(self.n)
        _check_interval(f"accuracy of {self.method}", self.low, self.accuracy, self.high, 0.0, 1.0)
        against_base = (self.delta, self.delta_low, self.delta_high, self.fixed, self.broken, self.p)
        missing = sum(value is None for value in against_base)
        if missing == len(against_base):
            return
        if missing:
            raise ValueError(
                f"found {missing} of the six numbers against base missing for {self.method}, expected all or "
                "none; leave them all out for the base only"
            )
        _check_interval(f"delta of {self.method}", self.delta_low, self.delta, self.delta_high, -1.0, 1.0)
        counted = (self.fixed - self.broken) / self.n
        if abs(self.delta - counted) > 1e-6:
            raise ValueError(
                f"found delta {self.delta} for {self.method}, expected (fixed {self.fixed} − broken "
                f"{self.broken}) / {self.n} = {counted}; pair the method with the base on the same samples"
            )
        if not 0 <= self.p <= 1:
            raise ValueError(f"found p = {self.p} for {self.method}, expected 0 to 1; pass McNemar's p")

    @property
    def is_base(self) -> bool:
        """Whether this is the row that the others are compared with."""
        return self.delta is None


@dataclass(frozen=True, eq=False)
class DepthCurve:
    """One number a layer, with its interval, over one group of samples. NaN where a layer has none.

    Args:
        metric: "auroc" (of attention against evidence labels, 0..1) or "rapt" (a ratio ≥ 0).
        segment: which tokens; for "auroc" always "evidence".
        group: all samples, or those that the base answered right or wrong.
        mean, low, high: one number a layer.
        n: samples behind the curve.
    """

    metric: Literal["auroc", "rapt"]
    segment: Segment
    group: Group
    mean: Float[np.ndarray, " layer"]
    low: Float[np.ndarray, " layer"]
    high: Float[np.ndarray, " layer"]
    n: int

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.low) == len(self.high):
            raise ValueError(
                f"found {len(self.mean)}, {len(self.low)} and {len(self.high)} layers in mean, low and high, "
                "expected one number a layer in each; pad with NaN"
            )
        if self.n < 0:
            raise ValueError(f"found n = {self.n}, expected ≥ 0; count the samples of the group")


@dataclass(frozen=True)
class Rule:
    """When emphasis gains.

    P(region right & answer wrong) · fix rate > P(region wrong & answer right) · break rate.
    "Region right" means that the model's own region lies on the evidence; the answer is the base's.

    Args:
        method: whose fix and break rates these are; a row of the table.
        seen_wrong: P(region right & answer wrong), over all samples.
        fix_rate: the share of those that the method answers right; NaN where there are none.
        unseen_right: P(region wrong & answer right), over all samples.
        break_rate: the share of those that the method answers wrong; NaN where there are none.
    """

    method: str
    seen_wrong: float
    fix_rate: float
    unseen_right: float
    break_rate: float

    def __post_init__(self) -> None:
        for name in ("seen_wrong", "unseen_right"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"found {name} = {getattr(self, name)}, expected 0 to 1; pass a share of all samples"
                )
        for name, cell in (("fix_rate", self.seen_wrong), ("break_rate", self.unseen_right)):
            rate = getattr(self, name)
            if not (0 <= rate <= 1 or (math.isnan(rate) and cell == 0)):
                raise ValueError(
                    f"found {name} = {rate} for a share of {cell}, expected 0 to 1 (NaN only where the share "
                    "is 0); divide by the samples of that cell"
                )

    @property
    def gain(self) -> float:
        """Accuracy won where the model saw and did not believe; 0 where that never happens."""
        return self.seen_wrong * self.fix_rate if self.seen_wrong else 0.0

    @property
    def loss(self) -> float:
        """Accuracy lost where the model was right without seeing; 0 where that never happens."""
        return self.unseen_right * self.break_rate if self.unseen_right else 0.0

    @property
    def predicts_gain(self) -> bool:
        """Whether the left side of the rule is greater than the right."""
        return self.gain > self.loss


def check_n(n: int) -> None:
    """Nothing is reported of no samples."""
    if n < 1:
        raise ValueError(f"found n = {n}, expected ≥ 1; there is nothing to report without a sample")


def _check_interval(what: str, low: float, value: float, high: float, least: float, most: float) -> None:
    if not (least - SLACK <= low <= value + SLACK and value <= high + SLACK <= most + 2 * SLACK):
        raise ValueError(
            f"found {low} ≤ {value} ≤ {high} for the {what}, expected this order within {least:g} to "
            f"{most:g}; pass fractions, not percent"
        )
