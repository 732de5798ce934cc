"""What tests of probes share: the planted models."""

import jaxtyping
import numpy as np
import pytest
from PIL import Image
from tiny import planted


@pytest.fixture(scope="session")
def plant():
    """``plant(kind)``: a model in which head, layer and path are known, see `tiny.planted`."""
    return planted.planted


@pytest.fixture(scope="session")
def planted_samples():
    """``planted_samples(n, seed, …)``: pictures and questions for them; what is given is not drawn."""
    return planted.samples


@pytest.fixture(scope="session")
def noise():
    """``noise(width, height, seed)``: a picture of smooth noise."""

    def draw(width: int = 76, height: int = 52, seed: int = 0) -> Image.Image:
        coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)

    return draw


@pytest.fixture
def unchecked(monkeypatch):
    """Signatures are not checked, as with a user: what our own checks say is heard."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
