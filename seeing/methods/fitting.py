"""Whether a method fits a model, found out before it runs.

A study answers thousands of prompts under a method; a gain that no edit takes, or a layer that the model
lacks, is said at the start. What a method would make for a prompt is made here without one.
"""

from __future__ import annotations

import numpy as np

from seeing.edits import Highlight, ScaleAttention
from seeing.maps import smooth
from seeing.methods.controls import OracleHighlight, RandomAttention, RandomHighlight
from seeing.methods.method import Edited, Method
from seeing.methods.second_look import SecondLook
from seeing.methods.vea import BoostInPass, Vea, WindowHighlight
from seeing.vlm import VLM

_DOT = np.ones((1, 1))


def fit(method: Method, vlm: VLM) -> None:
    """Raises `BadEdit` or ValueError where the method's own numbers, layers or heads do not fit."""
    if isinstance(method, Edited):
        vlm.with_edits(method.edits)
    if isinstance(method, BoostInPass):
        vlm.with_edits(method.edit())
    if isinstance(method, SecondLook):
        method.region.fit(vlm)
        ScaleAttention(keys="image", gain=method.gain, layers=method.layers).fit(vlm)
    if isinstance(method, RandomAttention):
        ScaleAttention(keys="image", gain=method.gain).fit(vlm)
    if isinstance(method, (Vea, WindowHighlight, OracleHighlight, RandomHighlight)):
        Highlight(_DOT, method.alpha)
    if isinstance(method, Vea):
        smooth(_DOT, method.sigma, method.boundary)
