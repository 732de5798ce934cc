"""What a demo run found, as plain frozen values: written by the runner, read by the report.

They stand between the two so that a report can be made, tested and made again without a model. The parts
check themselves (see `rows`); here they are checked against each other.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from PIL import Image

from seeing.study.rows import DepthCurve, Head, MethodRow, Rule, Share, check_n

__all__ = ["Box", "DemoResult", "DepthCurve", "GalleryItem", "Head", "MethodRow", "Rule", "Share"]

# x0, y0, x1, y1 in pixels of the original image.
Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class GalleryItem:
    """One sample with what every method answered and where the model looked.

    Args:
        sample: its id.
        image: as the data set gives it.
        question: as asked.
        truth: the accepted answers.
        answers: method → answer.
        correct: method → whether that answer counts as right.
        boxes: the annotated evidence.
        heat: where the model looked, 0..1, over the whole image; any grid, of tokens or of pixels.
        region: the model's own region, or None.
        seen: whether that region lies on the evidence.
        maps: further maps by name, for example "vea, nearest" and "vea, reflect".
    """

    sample: str
    image: Image.Image
    question: str
    truth: tuple[str, ...]
    answers: Mapping[str, str]
    correct: Mapping[str, bool]
    boxes: tuple[Box, ...]
    heat: Float[np.ndarray, "height width"]
    region: Box | None
    seen: bool
    maps: Mapping[str, Float[np.ndarray, "_ _"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.answers.keys() != self.correct.keys():
            raise ValueError(
                f"found answers of {sorted(self.answers)} but marks of {sorted(self.correct)} for sample "
                f"{self.sample}, expected the same methods; mark each answer"
            )
        for name, one in {"heat": self.heat, **self.maps}.items():
            if one.size == 0 or not (one.min() >= -1e-6 and one.max() <= 1 + 1e-6):
                raise ValueError(
                    f"found a map {name!r} of sample {self.sample} that is empty or leaves 0..1, expected "
                    "values within 0..1; scale it (min–max)"
                )


@dataclass(frozen=True, eq=False)
class DemoResult:
    """All that the report of one run needs.

    Args:
        model: its id.
        split: of the data.
        seed: of the samples.
        n: samples answered.
        calibration_n: samples that the layers and heads were chosen on, none of them among the `n`.
        layers: the profiled layers.
        heads: the heads that the model's own region is read from.
        auroc_heads: evidence AUROC of each head.
        table: one row a method, the base first.
        curves: depth curves.
        wrong_seen: of the base's wrong answers, the share whose own region lies on the evidence.
        rule: when emphasis gains, with this run's numbers.
        gallery: samples to look at.
        command: repeats the run.
        versions: package → version.
        seconds: wall time.
        peak_mb: the process's peak memory, or None.
        notes: plain text for the reader, for example the caveat of an embedded model.

    Raises:
        ValueError: parts that contradict each other.
    """

    model: str
    split: str
    seed: int
    n: int
    calibration_n: int
    layers: tuple[int, ...]
    heads: tuple[Head, ...]
    auroc_heads: Float[np.ndarray, "layer head"]
    table: tuple[MethodRow, ...]
    curves: tuple[DepthCurve, ...]
    wrong_seen: Share
    rule: Rule
    gallery: tuple[GalleryItem, ...]
    command: str
    versions: Mapping[str, str]
    seconds: float
    peak_mb: float | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_n(self.n)
        self._check_table()
        self._check_layers()
        self._check_seen()
        for item in self.gallery:
            self._check_item(item)

    @property
    def base(self) -> MethodRow:
        """The row that the others are compared with."""
        return self.table[0]

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of the table's rows."""
        return tuple(row.method for row in self.table)

    def row(self, method: str) -> MethodRow:
        """The row of a method.

        Raises:
            ValueError: no such row.
        """
        for row in self.table:
            if row.method == method:
                return row
        raise ValueError(f"found no row {method!r}, expected one of {list(self.methods)}; check the spelling")

    def depth(self, metric: str, segments: tuple[str, ...]) -> tuple[DepthCurve, ...]:
        """The curves of a metric for some segments, in their order.

        Those of correct and wrong answers where both are there, else those of all; a group without a sample
        has no curve to show.
        """
        found = tuple(
            c for s in segments for c in self.curves if c.metric == metric and c.segment == s and c.n
        )
        split = tuple(curve for curve in found if curve.group != "all")
        whole = tuple(curve for curve in found if curve.group == "all")
        return split if len({curve.group for curve in split}) == 2 else whole or found

    def _check_table(self) -> None:
        if not self.table or [row.is_base for row in self.table] != [True] + [False] * (len(self.table) - 1):
            raise ValueError(
                f"found base rows at {[i for i, row in enumerate(self.table) if row.is_base]}, expected the "
                "first row and no other; put the base first and give the others their numbers against it"
            )
        if len(set(self.methods)) != len(self.table):
            raise ValueError(
                f"found the rows {list(self.methods)}, expected each method once; drop the repeats"
            )
        if any(row.n != self.n for row in self.table):
            raise ValueError(
                f"found rows of {[row.n for row in self.table]} samples, expected {self.n} in each; "
                "answer the same samples by each method"
            )
        for row in self.table[1:]:
            if abs(row.delta - (row.accuracy - self.base.accuracy)) > 1e-6:
                raise ValueError(
                    f"found delta {row.delta} for {row.method}, expected "
                    f"{row.accuracy - self.base.accuracy} from the accuracies; mark both on the same samples"
                )
        if self.row(self.rule.method).is_base:
            raise ValueError(
                f"found a rule of {self.rule.method!r}, the base; expected a method that emphasises"
            )

    def _check_layers(self) -> None:
        layers, heads = self.auroc_heads.shape
        outside = [layer for layer in self.layers if not 0 <= layer < layers]
        outside += [
            head[:2] for head in self.heads if not (0 <= head.layer < layers and 0 <= head.head < heads)
        ]
        if outside:
            raise ValueError(
                f"found {outside} chosen, expected layers below {layers} and heads below {heads}; 0-based"
            )
        lengths = {len(curve.mean) for curve in self.curves} - {layers}
        if lengths:
            raise ValueError(
                f"found curves of {sorted(lengths)} layers, expected {layers}; cover every layer"
            )

    def _check_seen(self) -> None:
        """The share of wrong answers that saw, and the rule's left cell, are the same count said twice."""
        wrong = round((1 - self.base.accuracy) * self.n)
        if self.wrong_seen.n != wrong:
            raise ValueError(
                f"found a share of {self.wrong_seen.n} wrong answers, expected {wrong} (base accuracy "
                f"{self.base.accuracy:.4f} of {self.n}); take the base's wrong answers"
            )
        counted = self.wrong_seen.value * wrong / self.n if wrong else 0.0
        if abs(counted - self.rule.seen_wrong) > 1e-6:
            raise ValueError(
                f"found P(region right & answer wrong) = {self.rule.seen_wrong}, expected {counted} from the "
                "share of wrong answers that saw the evidence; use one region for both"
            )
        if self.rule.unseen_right > self.base.accuracy + 1e-6:
            raise ValueError(
                f"found P(region wrong & answer right) = {self.rule.unseen_right}, expected at most the "
                f"base's accuracy of {self.base.accuracy}; count the base's right answers"
            )

    def _check_item(self, item: GalleryItem) -> None:
        answered, first = item.answers.keys(), self.gallery[0].answers.keys()
        if answered != first or not answered <= set(self.methods):
            raise ValueError(
                f"found answers of {sorted(answered)} for sample {item.sample}, expected {sorted(first)} as "
                f"for the first item, all rows of the table {list(self.methods)}; use one set of methods"
            )
        if not {self.base.method, self.rule.method} <= answered:
            raise ValueError(
                f"found no answer of {self.base.method!r} or {self.rule.method!r} for sample {item.sample}, "
                "expected both; the gallery compares these two first"
            )
