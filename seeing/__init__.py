"""seeing: did the model see the evidence, and did its answer use what it saw?

A mechanistic-interpretability toolkit for vision-language models, on nnsight's tracing.
"""
