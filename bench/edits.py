"""What do edits cost? The last row scaled in half of the layers, in the prompt pass and for a decoded token.

The model is that of `bench.rows`: random weights, 8 text layers × 1,024 wide, a prompt of about 2,000 tokens.
Every case is timed beside the same thing without edits, in turn. A decoded token is the median time between
two forwards of a generation.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable

import torch

from bench.rows import build
from seeing import edits as E
from seeing.prompt import Prompt
from seeing.vlm import VLM

#: How many tokens a generation decodes.
TOKENS = 48


def cases() -> dict[str, E.Edit | E.Edits]:
    """What is timed, by name."""
    scale = E.ScaleAttention(keys="image", gain=4.0, layers="deep")
    heads = E.AblateHeads({layer: [0, 3] for layer in range(4, 8)})
    return {
        "ScaleAttention, half of the layers": scale,
        "the same for half of the heads": E.ScaleAttention(
            keys="image", gain=4.0, layers="deep", heads=range(8)
        ),
        "ScaleAttention + AblateHeads + Steer": scale
        + heads
        + E.Steer("text.6.resid_post", torch.randn(1024)),
        "seen in layers 0-3, boosted behind": E.ScaleAttention(
            keys=E.seen(layers=range(4)), gain=4.0, layers="deep"
        ),
    }


def measure(repeats: int = 5) -> dict[str, tuple[float, float]]:
    """Name -> (seconds without edits, seconds with), medians."""
    vlm, prompt = build(side=630)
    vlm._module.generation_config.max_new_tokens = None
    model, inputs = vlm._module, prompt.inputs
    found: dict[str, tuple[float, float]] = {}
    with torch.no_grad():
        for name, edit in cases().items():
            edited = vlm.with_edits(edit)
            times = _in_turn(
                repeats,
                lambda: _seconds(lambda: model(**inputs, logits_to_keep=1)),
                lambda e=edited: _seconds(lambda: _forward(e, prompt)),
            )
            found[f"{name}: prompt pass"] = times
            settings = dict(do_sample=False, max_new_tokens=TOKENS)
            times = _in_turn(
                max(2, repeats // 2),
                lambda s=settings: _a_token(model, lambda: model.generate(**inputs, **s)),
                lambda e=edited: _a_token(model, lambda: e.answer(prompt, TOKENS)),
            )
            found[f"{name}: a decoded token"] = times
    return found


def _forward(vlm: VLM, prompt: Prompt) -> None:
    with vlm.trace(prompt, logits_to_keep=1):
        pass


def _in_turn(repeats: int, *cases: Callable[[], float]) -> tuple[float, ...]:
    """The median of each case, taken in turn so that drift falls on all; a first round is left out."""
    rounds = [[case() for case in cases] for _ in range(repeats + 1)][1:]
    return tuple(map(statistics.median, zip(*rounds)))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _a_token(model: torch.nn.Module, run: Callable[[], object]) -> float:
    """The median time from one forward of a generation to the next."""
    stamps: list[float] = []
    hook = model.register_forward_hook(lambda *_: stamps.append(time.perf_counter()))
    try:
        run()
    finally:
        hook.remove()
    return statistics.median(after - before for before, after in itertools.pairwise(stamps))


def table() -> list[str]:
    """Markdown."""
    lines = ["| edit | without | with | ratio |", "|---|---|---|---|"]
    for name, (without, with_) in measure().items():
        lines.append(f"| {name} | {without * 1e3:.1f} ms | {with_ * 1e3:.1f} ms | {with_ / without:.2f}× |")
    return lines
