"""Probes: what did the model see? Each returns a small typed result with named axes and `.to_frame()`."""

from seeing.probes.allocation import Allocation, allocation
from seeing.probes.evidence import Evidence, evidence
from seeing.probes.image_lens import ImageLens, image_lens
from seeing.probes.lens import LogitLens, logit_lens
from seeing.probes.profile import Profile, profile

__all__ = [
    "Allocation",
    "Evidence",
    "ImageLens",
    "LogitLens",
    "Profile",
    "allocation",
    "evidence",
    "image_lens",
    "logit_lens",
    "profile",
]
