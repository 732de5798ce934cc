"""What one process finds that has all weights in its memory, in one piece."""

import pytest
from parallel.checks import ALL, MODELS, SOME, found_by

import seeing


@pytest.fixture(scope="session")
def built():
    """The models beside the embedded one, (model, processor) by name."""
    return {name: build() for name, build in MODELS.items()}


@pytest.fixture(scope="session")
def saved(built, tmp_path_factory):
    """A folder that holds them by name, as ``save_pretrained`` writes them."""
    folder = tmp_path_factory.mktemp("saved")
    for name, (model, _) in built.items():
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="session")
def whole(built):
    models = {name: found_by(SOME, seeing.load(pair, check=False)) for name, pair in built.items()}
    return models | {"plates": found_by(ALL, seeing.load("plates-tiny", check=False))}
