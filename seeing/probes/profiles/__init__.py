"""Which layers and heads of a model are the ones that look: found, published, kept, and how stable."""
