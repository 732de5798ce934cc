"""Probes: what did the model see? Each returns a small typed result with named axes and `.to_frame()`."""

from seeing.probes.attention.allocation import Allocation, allocation
from seeing.probes.attention.allocations import MeanAllocation
from seeing.probes.attention.evidence import Evidence, evidence
from seeing.probes.believing.belief import Belief, belief
from seeing.probes.believing.companions import among
from seeing.probes.believing.wrong import WrongAttention, wrong_attention
from seeing.probes.causal.attribution import Attribution, attribution
from seeing.probes.causal.comparison import Comparison
from seeing.probes.causal.knockout import Knockouts, knockout
from seeing.probes.causal.patching import Patched, patching
from seeing.probes.causal.paths import DirectEffects, direct_effects, path_patching
from seeing.probes.heads.gaze import gaze_heads
from seeing.probes.heads.localization import localization_heads
from seeing.probes.heads.scores import HeadScores, evidence_heads
from seeing.probes.heads.sinks import SinkDims, Sinks, sink_dims, sinks
from seeing.probes.lens.image_lens import ImageLens, image_lens
from seeing.probes.lens.logit_lens import LogitLens, logit_lens
from seeing.probes.profiles.profile import Profile, profile
from seeing.probes.profiles.published import Published, published
from seeing.probes.profiles.stability import Aurocs, Stability, aurocs, stability

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
