"""Tiny random models of every family, with the real processors: no weights are downloaded."""
