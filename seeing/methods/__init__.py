"""Methods: interventions by name, a few lines each over the edits, and the controls they need."""

from seeing.methods.contrastive import Agla, agla, blind, crg, m3id, pai, vcd
from seeing.methods.controls import (
    OracleHighlight,
    RandomAttention,
    RandomHighlight,
    ablate_heads,
    all_image_attention,
    oracle,
    oracle_attention,
    random_heads,
    random_region,
)
from seeing.methods.crop import ViCrop, vicrop
from seeing.methods.method import Base, Edited, Method
from seeing.methods.named import Named, parse_methods
from seeing.methods.published import (
    AdaptVis,
    adaptvis,
    attention_knockout,
    gaze_heads,
    scaling_vis,
    second_look,
    vea_in_pass,
)
from seeing.methods.second_look import SecondLook
from seeing.methods.settings import BadMethod
from seeing.methods.vea import BoostInPass, Vea, WindowHighlight, vea
from seeing.methods.vista import vista, vista_vectors
from seeing.methods.visual_sinks import sink_dims, sink_sizes, var

__all__ = [
    "AdaptVis",
    "Agla",
    "BadMethod",
    "Base",
    "BoostInPass",
    "Edited",
    "Method",
    "Named",
    "OracleHighlight",
    "RandomAttention",
    "RandomHighlight",
    "SecondLook",
    "Vea",
    "ViCrop",
    "WindowHighlight",
    "ablate_heads",
    "adaptvis",
    "agla",
    "all_image_attention",
    "attention_knockout",
    "blind",
    "crg",
    "gaze_heads",
    "m3id",
    "oracle",
    "oracle_attention",
    "pai",
    "parse_methods",
    "random_heads",
    "random_region",
    "scaling_vis",
    "second_look",
    "sink_dims",
    "sink_sizes",
    "var",
    "vcd",
    "vea",
    "vea_in_pass",
    "vicrop",
    "vista",
    "vista_vectors",
]
