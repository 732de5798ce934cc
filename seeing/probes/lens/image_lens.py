"""Image-token lens: what the stream of each image token would say, layer by layer, laid over the picture.

An image token enters as a vector of the projector's that is no word's embedding. On its way through the
layers it comes to lie near words for what it shows (Neo et al. 2024, "Towards Interpreting Visual Information
Processing in Vision-Language Models", arXiv 2410.07149), and the model's own last step says which. What a
token says is what the model would answer from there: read it as a trace of what the place holds, not as what
the model will do with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int, Shaped
from PIL import Image
from torch import Tensor

from seeing.data.samples import EvidenceSample
from seeing.figures.lens import Cells, words_over_image
from seeing.grid import Box, VisualGrid
from seeing.probes.lens.logit_lens import LogitLens, Tokens, logit_lens
from seeing.prompt import BadPrompt, Prompt, Template
from seeing.rectangles import edges
from seeing.vlm import VLM


@dataclass(frozen=True, eq=False)
class ImageLens:
    """What one picture's tokens would say.

    Attributes:
        lens: the logit lens of the picture's tokens: its place axis is the token axis of ``grid``.
        grid: where each token looks.
        image: the picture.
        question: what was asked.
        n_layers: how many layers the model has; a negative layer counts from behind them.
        boxes: the annotated evidence in it, xyxy pixels; empty where none is known.
    """

    lens: LogitLens
    grid: VisualGrid
    image: Image.Image
    question: str
    n_layers: int
    boxes: tuple[Box, ...] = ()

    @property
    def layers(self) -> tuple[int, ...]:
        return self.lens.layers

    @property
    def n(self) -> int:
        """Pictures: one."""
        return 1

    @property
    def left_out(self) -> tuple:
        """Nothing: a picture that can't be read raises."""
        return self.lens.left_out

    @property
    def ids(self) -> Int[Tensor, "token layer k"]:
        """The likeliest tokens' ids."""
        return self.lens.top

    @property
    def probs(self) -> Float[Tensor, "token layer k"]:
        """Their probabilities."""
        return self.lens.probs

    def words(self, layer: int, level: int | str | None = None) -> Shaped[np.ndarray, "row col"]:
        """The likeliest word of each token in ``layer``, in the rows and columns of the picture's tokens.

        ``level`` is the block of tokens, by name or number, where a picture has several (tiles, a thumbnail);
        by default the one that sees the most of it. A cell without a place in the picture (padding) is "".
        """
        return self._cells(level).words[self._layer(layer), ..., 0]

    def to_frame(self) -> pd.DataFrame:
        """One row a token, layer and rank k: the word, its probability, and the token's box in pixels."""
        frame = self.lens.top_frame().drop(columns=["sample", "position", "token"])
        n_rows = len(frame) // len(self.grid)
        token = np.repeat(np.arange(len(self.grid)), n_rows)
        frame.insert(0, "token", token)
        frame.insert(1, "level", np.array(self.grid.kind, dtype=object)[token])
        for name, edge in zip(("x0", "y0", "x1", "y1"), self.grid.boxes.numpy().T):
            frame[name] = edge[token]
        return frame

    def figure(
        self, layer: int | None = None, level: int | str | None = None, *, dark: bool = False
    ) -> go.Figure:
        """The picture under its tokens' words; a slider goes through the layers, ``layer`` shown first."""
        ys, xs = edges(self.grid.boxes.numpy()[self._tokens(level)])
        rows, cols = (~np.isnan(side[:, 0]) for side in (ys, xs))
        cells = self._cells(level)
        return words_over_image(
            self.image,
            Cells(cells.words[:, rows][:, :, cols], cells.probs[:, rows][:, :, cols]),
            np.append(xs[cols, 0], xs[cols][-1, 1]),
            np.append(ys[rows, 0], ys[rows][-1, 1]),
            layers=self.layers,
            start=-1 if layer is None else self._layer(layer),
            boxes=np.array(self.boxes) if self.boxes else None,
            caption=self.question,
            dark=dark,
        )

    def _tokens(self, level: int | str | None) -> Int[np.ndarray, "row col"]:
        return self.grid.level(self.grid.overview if level is None else level).tokens

    def _cells(self, level: int | str | None) -> Cells:
        """Words and probabilities (layer, row, col, k) of a level."""
        tokens, n_layers, k = self._tokens(level), len(self.layers), self.lens.top.shape[-1]
        shape = (n_layers, *tokens.shape, k)
        found = self.lens.cells(torch.from_numpy(np.ravel(tokens)))
        words, probs = found.words.reshape(shape).copy(), found.probs.reshape(shape).astype(float)
        off = ~self.grid.placed.numpy()[tokens]
        words[:, off], probs[:, off] = "", np.nan
        return Cells(words, probs)

    def _layer(self, layer: int) -> int:
        number = layer + self.n_layers if layer < 0 else layer
        if number not in self.layers:
            raise ValueError(f"layer {layer!r} was not read; those that were: {list(self.layers)}")
        return self.layers.index(number)


def image_lens(
    vlm: VLM,
    sample: Prompt | EvidenceSample,
    layers: Any = "all",
    site: str = "resid_post",
    k: int = 5,
    *,
    image: int = 0,
    tokens: Tokens = None,
    template: Template | None = None,
) -> ImageLens:
    """Decode every token of a picture at each layer.

    Args:
        sample: one sample, or a prompt of one row.
        layers, site, k, tokens: as in `logit_lens`; what ``tokens`` asks is in ``.lens``.
        image: which of the prompt's pictures, counted from 0.
        template: how a sample's question is asked.

    Raises `BadPrompt` for a batch, for a picture that is not there, and for a model whose words look at the
    picture from outside the stream (cross-attention layers): there no token of the stream is the picture's.
    """
    if isinstance(sample, Iterable) and not isinstance(sample, (Prompt, Mapping)):
        raise BadPrompt(
            f"an image lens reads one picture: one sample, or a prompt of one row; got "
            f"{type(sample).__name__}: ask for one of its samples at a time"
        )
    prompt = sample if isinstance(sample, Prompt) else vlm.prompt(sample, template=template)
    if len(prompt) != 1:
        raise BadPrompt(f"an image lens reads one row, this prompt has {len(prompt)}; take prompt.row(0)")
    if prompt.cross is not None:
        raise BadPrompt(
            f"{vlm.family.name} keeps its pictures outside the stream, as keys of cross-attention layers: "
            f"there are no image tokens whose stream could be unembedded"
        )
    shown = vlm.shown(prompt)
    if not 0 <= image < len(shown.grids):
        raise BadPrompt(f"the prompt has {len(shown.grids)} picture(s), none is number {image}")
    grid = shown.grids[image]
    lens = logit_lens(vlm, prompt, grid.positions, layers, site, k, tokens=tokens)
    turn = shown.turns[0]
    boxes = () if image else turn.boxes
    return ImageLens(lens, grid, turn.images[image], turn.question, vlm.cfg.n_layers, boxes)
