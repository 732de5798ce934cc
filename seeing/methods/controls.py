"""Controls: what a method's gain has to be measured against.

The annotated evidence is the ceiling (`oracle`, `OracleHighlight`). A random window is the floor: the same
boost or the same dimming, somewhere. A method that names heads is compared with as many others
(`random_heads`). Dimming is not neutral (a dimmed picture is another picture), so a highlight is compared
with the base first.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from seeing.edits import AblateHeads, Highlight, Positions, ScaleAttention
from seeing.edits.layers import attention_layers, head_table, whole
from seeing.maps import Window, random_window, window_tokens
from seeing.methods.method import (
    Answers,
    Edited,
    HeadTable,
    Method,
    Shown,
    grids_of,
    highlight_windows,
    positions_mask,
)
from seeing.methods.second_look import crossing
from seeing.probes.heads.scores import draw_heads
from seeing.prompt import Prompt
from seeing.vlm import VLM


def oracle(gain: float = 4.0) -> Edited:
    """Boost the annotated evidence in the last token's attention, all layers. gain = 1 is neutral."""
    return Edited(ScaleAttention(keys="evidence", gain=gain), "boost the annotated evidence")


#: `oracle`, beside `OracleHighlight`.
oracle_attention = oracle


def all_image_attention(gain: float = 4.0) -> Edited:
    """Boost all image tokens alike, all layers: more looking, no aim."""
    return Edited(ScaleAttention(keys="image", gain=gain), "boost all image tokens alike")


@dataclass(frozen=True)
class OracleHighlight(Method):
    """Dim everything but the annotated evidence."""

    alpha: float = 0.5
    about = "dim all but the annotated evidence"

    def shown(self, vlm: VLM, prompt: Prompt) -> Shown:
        prompt.evidence()  # refuses a row whose evidence is unknown or out of sight: all of it would be dim
        maps = [box_map(turn.images[0].size, turn.boxes) for turn in prompt.turns]
        return vlm.with_edits(Highlight(maps, self.alpha)), prompt

    def answer(self, vlm: VLM, prompt: Prompt) -> Answers:
        edited, prompt = self.shown(vlm, prompt)
        return edited.answer(prompt)


@dataclass(frozen=True)
class RandomAttention(Method):
    """Boost a random window in the last token's attention, all layers that see the picture."""

    gain: float = 4.0
    window: tuple[int, int] = (2, 2)
    seed: int = 0
    about = "boost a random window"

    def edit(self, vlm: VLM, prompt: Prompt) -> ScaleAttention:
        windows = random_windows(prompt, self.window, self.seed)
        tokens = [window_tokens(grid, window) for grid, window in zip(grids_of(prompt), windows)]
        keys = Positions.of_mask(positions_mask(prompt, tokens))
        layers = "all" if prompt.cross is None else crossing("all", [], vlm)
        return ScaleAttention(keys=keys, gain=self.gain, layers=layers)

    def answer(self, vlm: VLM, prompt: Prompt) -> Answers:
        return vlm.with_edits(self.edit(vlm, prompt)).answer(prompt)


def random_region(gain: float = 4.0, window: tuple[int, int] = (2, 2), seed: int = 0) -> RandomAttention:
    """`RandomAttention`: boost a window that picture, question and ``seed`` choose. gain = 1 is neutral."""
    return RandomAttention(gain, window, seed)


@dataclass(frozen=True)
class RandomHighlight(Method):
    """Dim everything but a random window."""

    alpha: float = 0.5
    window: tuple[int, int] = (2, 2)
    seed: int = 0
    about = "dim all but a random window"

    def shown(self, vlm: VLM, prompt: Prompt) -> Shown:
        windows = random_windows(prompt, self.window, self.seed)
        return vlm.with_edits(highlight_windows(prompt, windows, self.alpha)), prompt

    def answer(self, vlm: VLM, prompt: Prompt) -> Answers:
        edited, prompt = self.shown(vlm, prompt)
        return edited.answer(prompt)


def ablate_heads(heads: Any, to: str = "zero", source: Any = None) -> Edited:
    """Take ``heads`` {layer: [heads]} out: `AblateHeads`. Behind a method's heads stand `random_heads`."""
    edit = AblateHeads(heads, to, source)
    return Edited(edit, f"{sum(len(some) for _, some in edit.heads)} heads set to {to}")


def random_heads(
    vlm: VLM, like: Any, seed: int = 0, *, exclude: Any = None, layers: Any = "all"
) -> HeadTable:
    """Heads drawn at random, as a table {layer: [heads]}, to put where a method names its own.

    ``like`` is a table: as many heads in each of its layers, and none of its own. Or a number: as many out of
    all ``layers`` with attention. ``exclude`` are further heads that are not drawn. The draw depends on
    ``seed``, and on how many heads there are to draw from.

    Raises `BadEdit` where there are not so many others.
    """
    taken = {(layer, head) for layer, heads in head_table(exclude) for head in heads} if exclude else set()
    count = whole(like)
    if count is None:
        own = head_table(like)
        taken |= {(layer, head) for layer, heads in own for head in heads}
        draws = [(attention_layers(layer, vlm), len(heads)) for layer, heads in own]
    else:
        draws = [(attention_layers(layers, vlm), count)]
    return draw_heads(draws, vlm.cfg.n_heads, taken, seed)


def random_windows(prompt: Prompt, size: tuple[int, int], seed: int) -> list[Window]:
    """One window a row, drawn from the picture and the seed, so that it does not depend on the batch."""
    return [
        random_window(_rng(seed, turn), grid.level(grid.overview).tokens.shape, size)
        for grid, turn in zip(grids_of(prompt), prompt.turns)
    ]


def _rng(seed: int, turn) -> np.random.Generator:
    digest = hashlib.sha256(turn.images[0].tobytes() + turn.question.encode()).digest()
    return np.random.default_rng([seed, *digest[:8]])


def box_map(size: tuple[int, int], boxes) -> np.ndarray:
    """1 inside the boxes (xyxy pixels), 0 outside; (height, width)."""
    width, height = size
    painted = np.zeros((height, width))
    for x0, y0, x1, y1 in boxes:
        left, top = max(int(np.floor(x0)), 0), max(int(np.floor(y0)), 0)
        painted[top : int(np.ceil(y1)), left : int(np.ceil(x1))] = 1.0
    return painted
