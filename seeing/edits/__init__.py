"""Edits: a small algebra of interventions. ``from seeing import edits as E``.

    E.ScaleAttention(keys="evidence", gain=2.0, layers="deep") + E.AblateHeads({12: [3, 7]})

An edit is a frozen value; `VLM.with_edits` attaches it. Selectors say which positions it is about.
"""

from seeing.edits.contrast import Contrast
from seeing.edits.edit import Edit, Edits
from seeing.edits.heads import AblateHeads, ScaleHeads, SetHeads
from seeing.edits.image import Crop, Highlight, Noise, Occlude
from seeing.edits.layers import Steps, top_heads
from seeing.edits.lens import MixLayers
from seeing.edits.moment import BadEdit, EmptySelection
from seeing.edits.patch import Patch
from seeing.edits.pattern import Attending, MapPattern, Redistribute, ScalePattern, SetPattern
from seeing.edits.residual import ProjectOut, Rotate, SetResidual, Steer
from seeing.edits.saving import from_json, to_json
from seeing.edits.scores import Amplify, Bias, Knockout, MapScores, ScaleAttention, Temperature
from seeing.edits.seen import seen
from seeing.edits.select import Boxes, Positions, Selector, Span, maybe
from seeing.edits.sinks import Sinks, sinks
from seeing.edits.steering import steering_vector

__all__ = [
    "AblateHeads",
    "Amplify",
    "Attending",
    "BadEdit",
    "Bias",
    "Boxes",
    "Contrast",
    "Crop",
    "Edit",
    "Edits",
    "EmptySelection",
    "Highlight",
    "Knockout",
    "MapPattern",
    "MapScores",
    "MixLayers",
    "Noise",
    "Occlude",
    "Patch",
    "Positions",
    "ProjectOut",
    "Redistribute",
    "Rotate",
    "ScaleAttention",
    "ScaleHeads",
    "ScalePattern",
    "Selector",
    "SetHeads",
    "SetPattern",
    "SetResidual",
    "Sinks",
    "Span",
    "Steer",
    "Steps",
    "Temperature",
    "from_json",
    "maybe",
    "seen",
    "sinks",
    "steering_vector",
    "to_json",
    "top_heads",
]
