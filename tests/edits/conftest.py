"""Fixtures of the tests of edits."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked(monkeypatch):
    """Signatures are not checked, as with a user: what our own checks say is heard."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
