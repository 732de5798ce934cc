"""The paper's intervention, and its kin: make the evidence count where the model itself saw it.

*Seeing but Not Believing* (Liu et al., ICLR 2026, arXiv 2510.17771) reads the attention of the
grounding layers in one pass, turns it into a soft map over the picture, dims the rest and asks again
(`Vea`). The same evidence can be made to count inside the model, by a bias on the last token's
attention: in the same pass, behind the layers that are read (`BoostInPass`), or when the last token
alone is run again (`second_look.SecondLook`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from seeing.edits import BadEdit, Highlight, ScaleAttention, seen
from seeing.edits.edit import ImageEdit
from seeing.edits.layers import attention_layers, layers_said
from seeing.edits.seen import mean_rows
from seeing.maps import evidence_maps
from seeing.methods.method import (
    Answers,
    HeadTable,
    Method,
    Shown,
    grids_of,
    highlight_windows,
    own_windows,
    token_maps,
)
from seeing.probes.reading import read_rows
from seeing.prompt import Prompt, Template
from seeing.turns import Turn
from seeing.vlm import VLM

#: In place of a template: the prompt as it was asked.
AS_ASKED = "as asked"


@dataclass(frozen=True)
class Vea(Method):
    """Visual evidence augmentation, steps B–E of the paper.

    Evidence score of a token: mean over ``layers`` (L_VG) of the last token's attention, heads
    averaged. Denoise, smooth with σ = ``sigma`` × the shorter side, min–max, highlight with
    ``alpha``, ask again with the prompt of ``template`` (`AS_ASKED` leaves it as it was).

    ``boundary`` is how the smoothing continues the map past the picture's edge: "nearest" keeps a
    peak where it is; "reflect", the authors' choice, piles the map up at the nearest border. ``vea(…,
    authors=True)`` is theirs in everything.
    """

    layers: tuple[int, ...]
    alpha: float = 0.5
    sigma: float = 0.5
    denoise: bool = True
    boundary: str = "nearest"
    template: Template | None = "vea"

    def __post_init__(self):
        if not self.layers:
            raise BadEdit("vea reads the rows of some layers, and none are named: vea([14, 15])")

    @property
    def about(self) -> str:
        return f"the paper's VEA: smooth map of layers {list(self.layers)}, α = {self.alpha}, {self.boundary}"

    def maps(self, vlm: VLM, prompt: Prompt) -> list:
        """The evidence map of each row, (height, width) of its original picture, in [0, 1]."""
        reading = read_rows(vlm, prompt, layers=attention_layers(self.layers, vlm))
        rows = reading.over_images[:, :, :, -1].mean((1, 2))
        grids, scores = grids_of(reading.prompt), token_maps(reading.prompt, rows)
        return evidence_maps(scores, grids, denoise=self.denoise, sigma=self.sigma, boundary=self.boundary)

    def shown(self, vlm: VLM, prompt: Prompt) -> Shown:
        return vlm.with_edits(Highlight(self.maps(vlm, prompt), self.alpha) + AskedIn(self.template)), prompt

    def answer(self, vlm: VLM, prompt: Prompt) -> Answers:
        edited, prompt = self.shown(vlm, prompt)
        return edited.answer(prompt)


@dataclass(frozen=True, eq=False, repr=False)
class AskedIn(ImageEdit):
    """The question in another template: the processor runs once for it and for the edits of the picture."""

    template: Template | None
    when: str = "both"

    def turn(self, row: int, turn: Turn) -> Turn:
        return turn if self.template == AS_ASKED else replace(turn, template=self.template)


def vea(layers: Any, *, authors: bool = False, **settings: Any) -> Vea:
    """`Vea` on ``layers``, or on the layers of a `Profile`; ``authors=True`` is the authors' release."""
    if authors:
        settings = {"boundary": "reflect", **settings}
    said = layers_said(layers)
    if not isinstance(said, (int, tuple)):
        raise BadEdit(f"vea reads layers by number, or those of a profile; got {layers!r:.200}")
    return Vea((said,) if isinstance(said, int) else said, **settings)


@dataclass(frozen=True)
class WindowHighlight(Method):
    """Highlight the model's own region: the best window of the mean map of ``heads``, the rest dimmed."""

    heads: HeadTable
    alpha: float = 0.5
    window: tuple[int, int] = (2, 2)
    about = "dim all but the own region"

    def shown(self, vlm: VLM, prompt: Prompt) -> Shown:
        windows = own_windows(prompt, own_rows(vlm, prompt, self.heads), self.window)
        return vlm.with_edits(highlight_windows(prompt, windows, self.alpha)), prompt

    def answer(self, vlm: VLM, prompt: Prompt) -> Answers:
        edited, prompt = self.shown(vlm, prompt)
        return edited.answer(prompt)


@dataclass(frozen=True)
class BoostInPass(Method):
    """Read ``heads``, then boost the own region in the layers behind them, all in ONE pass.

    ``layers`` act; each is behind every layer that is read. The boost goes on while tokens are decoded.
    """

    heads: HeadTable
    layers: tuple[int, ...]
    gain: float = 16.0
    window: tuple[int, int] = (2, 2)

    @property
    def about(self) -> str:
        return (
            f"read layers {sorted(self.heads)}, boost the own region in layers {list(self.layers)}, one pass"
        )

    def edit(self) -> ScaleAttention:
        return ScaleAttention(keys=seen(self.heads, self.window), gain=self.gain, layers=self.layers)

    def shown(self, vlm: VLM, prompt: Prompt) -> Shown:
        return vlm.with_edits(self.edit()), prompt

    def answer(self, vlm: VLM, prompt: Prompt) -> Answers:
        edited, prompt = self.shown(vlm, prompt)
        return edited.answer(prompt)


def own_rows(vlm: VLM, prompt: Prompt, heads: HeadTable) -> Float[Tensor, "batch key"]:
    """The last token's rows, mean over ``heads``."""
    layers = sorted(heads)
    reading = read_rows(vlm, prompt, layers=layers)
    rows = {layer: reading.over_images[:, place, :, -1] for place, layer in enumerate(layers)}
    return mean_rows(rows, heads.items())
