"""What a method is: a frozen value that answers a prompt, edited or not.

A method reads what it needs, makes its edits and asks. All methods take the same two things, a model
and a prompt (one row, or a batch), so that a study can compare them sample by sample.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seeing.edits import Edits, Highlight
from seeing.edits.edit import Edit
from seeing.edits.seen import seen_window
from seeing.grid import VisualGrid
from seeing.maps import Window, window_mask_map
from seeing.prompt import Prompt
from seeing.vlm import VLM, Answer

Answers = Answer | list[Answer]

#: The model and the prompt that a method asks in the end. One that says so, ``shown(vlm, prompt)``, can be
#: applied again to what it showed.
Shown = tuple[VLM, Prompt]

#: Layer -> heads, as `Profile.heads` gives them.
HeadTable = dict[int, list[int]]


class Method(ABC):
    """Answers prompts. ``about`` is one line for a table's legend."""

    about: str

    @abstractmethod
    def answer(self, vlm: VLM, prompt: Prompt) -> Answers:
        """The answer, or one a row of a batch."""


@dataclass(frozen=True)
class Base(Method):
    """The model as it is."""

    about = "the model as it is"

    def answer(self, vlm: VLM, prompt: Prompt) -> Answers:
        return vlm.answer(prompt)


@dataclass(frozen=True)
class Edited(Method):
    """The model under fixed edits, whose selectors are resolved against each prompt."""

    edits: Edit | Edits
    about: str = "the model under edits"

    def shown(self, vlm: VLM, prompt: Prompt) -> Shown:
        return vlm.with_edits(self.edits), prompt

    def answer(self, vlm: VLM, prompt: Prompt) -> Answers:
        edited, prompt = self.shown(vlm, prompt)
        return edited.answer(prompt)


def grids_of(prompt: Prompt) -> list[VisualGrid]:
    """The grid of each row's first picture, over the keys that its tokens are."""
    keys = prompt.keys
    return [keys.grids[keys.grid_rows.index(row)] for row in range(len(prompt))]


def token_maps(prompt: Prompt, rows: Float[Tensor, "batch key"]) -> list[Float[np.ndarray, " _"]]:
    """Each row's scores at the image tokens of its first picture."""
    return [rows[row, grid.positions].double().numpy() for row, grid in enumerate(grids_of(prompt))]


def own_windows(prompt: Prompt, rows: Float[Tensor, "batch key"], size: tuple[int, int]) -> list[Window]:
    """The model's own region in each row: the window with the largest sum of denoised scores."""
    return [seen_window(grid, rows[row, grid.positions], size) for row, grid in enumerate(grids_of(prompt))]


def highlight_windows(prompt: Prompt, windows: list[Window], alpha: float) -> Highlight:
    """Dim everything outside each row's window."""
    return Highlight(
        [window_mask_map(grid, window) for grid, window in zip(grids_of(prompt), windows)], alpha
    )


def positions_mask(prompt: Prompt, tokens: list[Bool[Tensor, " _"]]) -> Bool[Tensor, "batch pos"]:
    """Masks over each row's image tokens, as one mask over the keys that its tokens are."""
    mask = torch.zeros(len(prompt), prompt.keys.length, dtype=torch.bool)
    for row, (grid, chosen) in enumerate(zip(grids_of(prompt), tokens)):
        mask[row, grid.positions[chosen]] = True
    return mask
