"""Timings of the toolkit: ratios of things measured in one run. ``python -m bench`` prints the tables."""
