"""What a method is made from: the model, and what is known of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from seeing.data.samples import EvidenceSample
from seeing.edits.layers import attention_layers, check_heads, head_table
from seeing.methods.calibrated import PAIRS, directions
from seeing.methods.method import HeadTable
from seeing.methods.settings import BadMethod
from seeing.probes.heads.scores import draw_heads
from seeing.probes.profiles.profile import Profile
from seeing.probes.profiles.published import Published
from seeing.vlm import VLM


@dataclass(frozen=True)
class Bench:
    """The model, its profile, calibration samples and the study's seed; a recipe takes what it needs.

    Each thing raises `BadMethod` where it is not there, and says how to come by it.
    """

    vlm: VLM
    profile: Profile | Published | None = None
    seed: int = 0
    samples: Sequence[EvidenceSample] = ()

    def layers(self, given: Any) -> tuple[int, ...]:
        """Layers to read: those ``given``, "all" that see the picture, or the profile's."""
        if isinstance(given, str):
            return self.seeing_layers
        found = tuple(given) if isinstance(given, tuple) else self._profiled("layers").layers
        attention_layers(found, self.vlm)
        return found

    @property
    def seeing_layers(self) -> tuple[int, ...]:
        """All layers whose attention has the picture's tokens among its keys."""
        kernels = self.vlm.sites.kernels["text"]
        return tuple(layer for layer, one in kernels.items() if one.cross) or tuple(kernels)

    def heads(self, given: Any, k: int = 4, below: int | None = None) -> HeadTable:
        """Heads to read: those ``given``, or the profile's ``k`` best before layer ``below``."""
        if not isinstance(given, dict):
            scores = self._ranked.scores
            if not (ranked := scores.ranking(below)):
                raise BadMethod(
                    f"it reads heads before layer {below}, and the profile has a score for none: name "
                    f"heads (heads=LAYER.HEAD+…), or layers further up (layers=…)"
                )
            given = scores.top(min(k, len(ranked)), below)
        check_heads(head_table(given), self.vlm)
        return given

    def best_heads(self, given: Any, k: int | None) -> HeadTable:
        """Those ``given``, the profile's ``k`` best, or as many as it keeps."""
        if k is None and not isinstance(given, dict):
            return self._ranked.best_heads
        return self.heads(given, k or 1)

    def other_heads(self, like: HeadTable, seed: int, anywhere: bool) -> HeadTable:
        """As many random heads, none of ``like``: in the same layers, or in all of them."""
        of = self.vlm.cfg.n_heads
        taken = {(layer, head) for layer, some in like.items() for head in some}
        draws = [([layer], len(some)) for layer, some in like.items()]
        if anywhere:
            draws = [(self.seeing_layers, len(taken))]
        return draw_heads(draws, of, taken, seed)

    def behind(self, given: Any, heads: Any) -> tuple[int, ...]:
        """Layers that act on what others see: those ``given``, all behind ``heads``, or the last third."""
        n_layers = self.vlm.cfg.n_layers
        if not isinstance(given, (tuple, slice, str)):
            third = min(math.ceil(n_layers * 2 / 3), n_layers - 1)
            given = slice(max(heads) + 1 if isinstance(heads, dict) else third, None)
        found = attention_layers(given, self.vlm)
        return tuple(layer for layer in found if layer in self.seeing_layers)

    def seeded(self, given: Any) -> int:
        """The seed ``given``, or the study's."""
        return given if isinstance(given, int) else self.seed

    def calibration(self) -> Sequence[EvidenceSample]:
        if not self.samples:
            raise BadMethod(
                "it is calibrated on samples, and there are none: name a data set for the profile "
                "(calibration samples), or give the setting that it is to find"
            )
        return self.samples

    def vectors(self) -> Float[Tensor, "layer d_model"]:
        """VISTA's directions, from the calibration samples."""
        return directions(self.vlm, self.calibration())

    @property
    def few(self) -> Sequence[EvidenceSample]:
        """The first few calibration samples."""
        return self.calibration()[:PAIRS]

    @property
    def _ranked(self) -> Profile:
        found = self._profiled("heads")
        if not isinstance(found, Profile):
            raise BadMethod(
                f"it reads heads, and the published profile of {found.model} names layers only: make a "
                f"profile (seeing profile --model … --data …), or say heads=LAYER.HEAD+…"
            )
        return found

    def _profiled(self, what: str) -> Profile | Published:
        if self.profile is None:
            example = {"layers": "layers=14-17", "heads": "heads=14.3+15.0"}[what]
            raise BadMethod(
                f"it reads the {what} of a profile, and there is none: make one (seeing profile --model … "
                f"--data …), or say {example}"
            )
        try:
            self.profile.check(self.vlm)
        except ValueError as error:
            raise BadMethod(str(error)) from error
        return self.profile
