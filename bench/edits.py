"""What do edits cost? The last row scaled in half of the layers, in the prompt pass and for a decoded token.

The model is that of `bench.rows`: random weights, 8 text layers × 1,024 wide, a prompt of about 1,600 image
tokens, or about 2,000. Every case is timed beside the same thing without edits, in turn. A decoded token is
what sixteen more of them cost, divided by sixteen.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from bench.rows import build
from seeing import edits as E

#: How many tokens are decoded to find what one costs.
TOKENS = 16


def measure(repeats: int = 7) -> dict[str, tuple[float, float]]:
    """Name -> (seconds without edits, seconds with), medians."""
    vlm, prompt = build(side=630)
    vlm._module.generation_config.max_new_tokens = None
    model, inputs = vlm._module, prompt.inputs
    edited = {
        "ScaleAttention": E.ScaleAttention(keys="image", gain=4.0, layers="deep"),
        "ScaleAttention + AblateHeads + Steer": E.ScaleAttention(keys="image", gain=4.0, layers="deep")
        + E.AblateHeads({layer: [0, 3] for layer in range(4, 8)})
        + E.Steer("text.6.resid_post", torch.randn(1024)),
        "seen in layers 0-3, boosted behind": E.ScaleAttention(
            keys=E.seen(layers=range(4)), gain=4.0, layers="deep"
        ),
    }
    found: dict[str, tuple[float, float]] = {}
    for name, edit in edited.items():
        copy = vlm.with_edits(edit)
        found[f"{name}: prompt pass"] = _medians(
            repeats, lambda: model(**inputs, logits_to_keep=1), lambda c=copy: _forward(c, prompt)
        )
        one, many = (
            _medians(
                repeats,
                lambda n=n: model.generate(**inputs, do_sample=False, max_new_tokens=n),
                lambda c=copy, n=n: c.answer(prompt, n),
            )
            for n in (1, 1 + TOKENS)
        )
        found[f"{name}: a decoded token"] = tuple((b - a) / TOKENS for a, b in zip(one, many))
    return found


def _forward(vlm, prompt) -> None:
    with torch.no_grad(), vlm.trace(prompt, logits_to_keep=1):
        pass


def _medians(repeats: int, *cases: Callable[[], object]) -> tuple[float, ...]:
    """The median seconds of each case, the cases taken in turn so that drift falls on all."""
    times: list[list[float]] = [[] for _ in cases]
    with torch.no_grad():
        for repeat in range(repeats + 1):
            for case, spent in zip(cases, times):
                start = time.perf_counter()
                case()
                if repeat:
                    spent.append(time.perf_counter() - start)
    return tuple(map(statistics.median, times))


def table() -> list[str]:
    """Markdown."""
    lines = ["| edit | without | with | ratio |", "|---|---|---|---|"]
    for name, (without, with_) in measure().items():
        lines.append(f"| {name} | {without * 1e3:.1f} ms | {with_ * 1e3:.1f} ms | {with_ / without:.2f}× |")
    return lines
