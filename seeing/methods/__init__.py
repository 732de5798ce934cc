"""Methods: interventions by name, a few lines each over the edits, and the controls they need."""

from seeing.methods.controls import (
    OracleHighlight,
    RandomAttention,
    RandomHighlight,
    all_image_attention,
    oracle_attention,
)
from seeing.methods.method import Base, Edited, Method
from seeing.methods.second_look import SecondLook
from seeing.methods.vea import BoostInPass, Vea, WindowHighlight, vea

__all__ = [
    "Base",
    "BoostInPass",
    "Edited",
    "Method",
    "OracleHighlight",
    "RandomAttention",
    "RandomHighlight",
    "SecondLook",
    "Vea",
    "WindowHighlight",
    "all_image_attention",
    "oracle_attention",
    "vea",
]
