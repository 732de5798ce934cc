"""What do the metrics of evidence locality cost? All heads of a 7B model over a thousand image tokens.

28 layers × 28 heads, every metric of `seeing.metrics.Locality` for each head, from one sample's rows. Beside
it scikit-learn's AUROC alone, head by head. Times are the best of the repeats: others' work on the machine
only adds to them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from sklearn.metrics import roc_auc_score

from seeing.metrics import locality

LAYERS, HEADS, TOKENS = 28, 28, 1000


def measure(repeats: int = 30) -> dict[str, float]:
    """Case -> seconds."""
    torch.manual_seed(0)
    rows = torch.rand(LAYERS, HEADS, TOKENS).mul(8).softmax(-1)
    found = {}
    for evidence in (20, 100, 300, 500):
        labels = torch.zeros(TOKENS, dtype=torch.bool)
        labels[200 : 200 + evidence] = True
        found[f"all metrics, {evidence} evidence tokens"] = _best(
            repeats, lambda labels=labels: locality(rows, labels)
        )
    flat, truth = rows.flatten(0, 1).numpy(), labels.numpy()
    by_head = _best(2, lambda: [roc_auc_score(truth, head) for head in flat])
    return found | {"scikit-learn's AUROC alone, head by head, 500": by_head}


def _best(repeats: int, run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def table() -> list[str]:
    """The table, in Markdown."""
    rows = (f"| {name} | {1e3 * seconds:.1f} |" for name, seconds in measure().items())
    return [f"| {LAYERS} layers × {HEADS} heads × {TOKENS:,} tokens | ms |", "|---|---|", *rows]
