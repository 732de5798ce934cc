"""One run of the main job on the trained model, shared by the tests that read it."""

import pytest

from seeing.study import demo


@pytest.fixture(scope="session")
def main_job(trained):
    """(result, outcomes) of 64 crowded scenes, 4 of an outcome drawn; calibrated on 64 others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "CALIBRATION", 64)
        patch.setattr(demo, "PER_OUTCOME", 4)
        return demo.run_demo(trained, "plates-tiny", n=64, command="seeing demo")
