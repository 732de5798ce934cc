"""Samples × methods: running them, and the plain values that a run leaves behind."""
