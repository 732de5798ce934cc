"""Samples with evidence, and the data sets that hand them out."""
