"""Arithmetic of axis-parallel rectangles: overlaps, unions and shares of area, exact up to rounding.

A span is (start, end) along one axis, a box is xyxy; NaN stands for one that is nowhere.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

# Pixels. Edges closer than this are one edge: going from model to image pixels rounds in the 13th digit.
ROUNDING = 1e-6


def coverage(spans: Float[np.ndarray, "span 2"], length: int) -> Float[np.ndarray, "span length"]:
    """How much of each of `length` unit pixels each span covers along one axis, 0 to 1; a NaN span none."""
    # an edge that is a whole number but for rounding must not bleed into the next pixel
    spans = np.where(np.abs(spans - np.rint(spans)) < ROUNDING, np.rint(spans), spans)
    return overlap(spans, np.stack([np.arange(length), np.arange(1, length + 1)], 1))


def overlap(spans: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n 2), (m 2) -> (n m) lengths of the overlaps along one axis; 0 where a span is NaN."""
    first = np.maximum(spans[:, None, 0], others[None, :, 0])
    return np.fmax(np.minimum(spans[:, None, 1], others[None, :, 1]) - first, 0.0)


def edges(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows cols 4) boxes of a raster -> (rows 2) y-edges, (cols 2) x-edges; NaN where all are NaN."""
    # fmax skips NaN: one placed cell is enough to know its row and its column
    return np.fmax.reduce(boxes[..., [1, 3]], axis=1), np.fmax.reduce(boxes[..., [0, 2]], axis=0)


def cuts(*spans: np.ndarray) -> np.ndarray:
    """All edges along one axis, sorted: between two neighbours nothing begins and nothing ends."""
    edges = np.concatenate([span.ravel() for span in spans])
    return np.unique(edges[~np.isnan(edges)])


def joined(spans: np.ndarray, length: float) -> bool:
    """Whether (n 2) spans leave nothing out between 0 and ``length``; those that are NaN are none."""
    reach = 0.0
    for start, end in sorted(span for span in spans.tolist() if span[0] == span[0]):
        if start > reach:
            break
        reach = max(reach, end)
    return reach >= length


def holds(spans: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """(n 2) spans -> (n, cuts − 1): which of the pieces between the cuts each span holds."""
    return (spans[:, :1] <= cuts[:-1]) & (spans[:, 1:] >= cuts[1:])


def union(boxes: np.ndarray, ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
    """The union of boxes as bools over the pieces between the cuts, (y x)."""
    return holds(boxes[:, [1, 3]], ys).T.astype(float) @ holds(boxes[:, [0, 2]], xs).astype(float) > 0


def share_inside(tokens: np.ndarray, evidence: np.ndarray) -> np.ndarray:
    """Share of each token's area inside the union of the evidence boxes, exact; 0 for a NaN box."""
    ys, xs = cuts(evidence[:, [1, 3]]), cuts(evidence[:, [0, 2]])
    high = overlap(tokens[:, [1, 3]], np.stack([ys[:-1], ys[1:]], 1))
    wide = overlap(tokens[:, [0, 2]], np.stack([xs[:-1], xs[1:]], 1))
    inside = ((high @ union(evidence, ys, xs)) * wide).sum(1)
    area = (tokens[:, 2] - tokens[:, 0]) * (tokens[:, 3] - tokens[:, 1])
    return np.clip(np.nan_to_num(inside / area, nan=0.0), 0.0, 1.0)
