"""Samples with evidence, and the data sets that hand them out."""

from seeing.data.plates import PRIOR, SPLITS, PlatesSplit, plates
from seeing.data.samples import EvidenceSample

__all__ = ["PRIOR", "SPLITS", "EvidenceSample", "PlatesSplit", "plates"]
