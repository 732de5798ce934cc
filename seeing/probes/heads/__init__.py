"""Which single heads look, which tokens draw them, and other heads to compare with."""
