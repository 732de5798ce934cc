"""Probes: what did the model see? Each returns a small typed result with named axes and `.to_frame()`."""

from seeing.probes.allocation import Allocation, allocation
from seeing.probes.allocations import MeanAllocation
from seeing.probes.attribution import Attribution, attribution
from seeing.probes.belief import Belief, belief
from seeing.probes.companions import among
from seeing.probes.comparison import Comparison
from seeing.probes.evidence import Evidence, evidence
from seeing.probes.gaze import gaze_heads
from seeing.probes.heads import HeadScores, evidence_heads
from seeing.probes.image_lens import ImageLens, image_lens
from seeing.probes.knockout import Knockouts, knockout
from seeing.probes.lens import LogitLens, logit_lens
from seeing.probes.localization import localization_heads
from seeing.probes.patching import Patched, patching
from seeing.probes.paths import DirectEffects, direct_effects, path_patching
from seeing.probes.profile import Profile, profile
from seeing.probes.published import Published, published
from seeing.probes.sinks import SinkDims, Sinks, sink_dims, sinks
from seeing.probes.stability import Aurocs, Stability, aurocs, stability
from seeing.probes.wrong import WrongAttention, wrong_attention

__all__ = [
    "Allocation",
    "Attribution",
    "Aurocs",
    "Belief",
    "Comparison",
    "DirectEffects",
    "Evidence",
    "HeadScores",
    "ImageLens",
    "Knockouts",
    "LogitLens",
    "MeanAllocation",
    "Patched",
    "Profile",
    "Published",
    "SinkDims",
    "Sinks",
    "Stability",
    "WrongAttention",
    "allocation",
    "among",
    "attribution",
    "aurocs",
    "belief",
    "direct_effects",
    "evidence",
    "evidence_heads",
    "gaze_heads",
    "image_lens",
    "knockout",
    "localization_heads",
    "logit_lens",
    "patching",
    "path_patching",
    "profile",
    "published",
    "sink_dims",
    "sinks",
    "stability",
    "wrong_attention",
]
