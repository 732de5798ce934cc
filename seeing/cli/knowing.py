"""What is known of a model before it is asked: its profile, and samples to calibrate methods on."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from seeing.cli.terminal import UserError, mistakes, readable

if TYPE_CHECKING:
    from seeing.data.dataset import Dataset
    from seeing.data.samples import EvidenceSample
    from seeing.probes import Profile, Published
    from seeing.vlm import VLM


class Known(NamedTuple):
    """A profile, or None; where it is from, in words; calibration samples."""

    profile: Profile | Published | None
    source: str
    samples: list[EvidenceSample]

    @property
    def layers(self) -> tuple[int, ...] | None:
        return None if self.profile is None else tuple(self.profile.layers)


def known(
    vlm: VLM,
    model: str,
    profile: Path | None = None,
    calibration: Dataset | None = None,
    template: str | None = "qa",
    *,
    needs: Set[str] = frozenset(),
) -> Known:
    """The profile of a file, or one made on ``calibration``, or the one that the paper published, or none.

    ``needs`` are those of the methods. An embedded model that has to be profiled is, as in a study.
    """
    from seeing import probes
    from seeing.data.opening import open_data
    from seeing.study.planning import CALIBRATION
    from seeing.zoo import ZOO

    wanted = needs & ({"samples"} if profile is not None else {"layers", "heads", "samples"})
    if calibration is None and wanted and model in ZOO:
        calibration = open_data(f"{CALIBRATION}:0")
    samples = list(readable(calibration)) if calibration is not None and "samples" in needs else []
    if profile is not None:
        with mistakes(ValueError, OSError):
            return Known(probes.Profile.load(profile, vlm), f"profile {profile}", samples)
    if calibration is not None:
        with mistakes(ValueError):
            found = probes.profile(vlm, samples or readable(calibration), template=template)
        return Known(found, f"a profile on {calibration.name}", samples)
    try:
        found = probes.published(vlm)
    except ValueError:  # most models have none
        return Known(None, "", samples)
    return Known(found, f"the profile published in {found.source}", samples)


def profile_file(path: Path | None) -> None:
    """That a profile is there, before a model is loaded for it."""
    if path is not None and not path.is_file():
        raise UserError(f"no profile {path}: no such file; seeing profile makes one")
