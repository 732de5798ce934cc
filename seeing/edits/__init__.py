"""Edits: a small algebra of interventions. ``from seeing import edits as E``.

    E.ScaleAttention(keys="evidence", gain=2.0, layers="deep") + E.AblateHeads({12: [3, 7]})

An edit is a frozen value; `VLM.with_edits` attaches it. Selectors say which positions it is about.
"""

from seeing.edits.attention import Bias, Knockout, ScaleAttention
from seeing.edits.edit import Edit, Edits
from seeing.edits.heads import AblateHeads, ScaleHeads
from seeing.edits.image import Highlight
from seeing.edits.residual import Steer
from seeing.edits.seen import seen
from seeing.edits.select import BadEdit, Boxes, EmptySelection, Positions, Selector, Span

__all__ = [
    "AblateHeads",
    "BadEdit",
    "Bias",
    "Boxes",
    "Edit",
    "Edits",
    "EmptySelection",
    "Highlight",
    "Knockout",
    "Positions",
    "ScaleAttention",
    "ScaleHeads",
    "Selector",
    "Span",
    "Steer",
    "seen",
]
