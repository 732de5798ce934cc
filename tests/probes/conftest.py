"""What tests of probes share: the planted models."""

import pytest
from tiny import planted


@pytest.fixture(scope="session")
def plant():
    """``plant(kind)``: a model in which head, layer and path are known, see `tiny.planted`."""
    return planted.planted


@pytest.fixture(scope="session")
def planted_samples():
    """``planted_samples(n, seed, …)``: pictures and questions for them; what is given is not drawn."""
    return planted.samples
