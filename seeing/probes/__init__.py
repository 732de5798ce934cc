"""Probes: what did the model see? Each returns a small typed result with named axes and `.to_frame()`."""

from seeing.probes.allocation import Allocation, allocation
from seeing.probes.evidence import Evidence, evidence
from seeing.probes.profile import Profile, profile

__all__ = ["Allocation", "Evidence", "Profile", "allocation", "evidence", "profile"]
