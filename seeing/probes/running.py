"""Means over a data set in memory that does not grow with it, and how sure they are.

`RunningMean` leaves NaN out entry by entry and counts what is left. `Bootstrap` resamples while the samples
pass by: a bootstrap draw takes each sample as often as a multinomial says, and for many samples that
is close to an independent Poisson(1) number for each (Chamandy et al. 2012, Estimating uncertainty for
massive data streams). So every draw keeps one weighted sum, and no sample has to be kept.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from seeing.stats import Interval


class RunningMean:
    """The mean of what was added, entry by entry: NaN is left out and counted."""

    def __init__(self):
        self._total: Tensor | None = None
        self._count: Tensor | None = None

    def add(self, values: Float[Tensor, "sample ..."]) -> None:
        """Add values of one or more samples. Raises ValueError for other axes than before."""
        values = values.detach().double().cpu()
        if self._total is None:
            self._total = torch.zeros(values.shape[1:], dtype=torch.float64)
            self._count = torch.zeros(values.shape[1:], dtype=torch.long)
        _check_axes(values, self._total.shape)
        there = ~values.isnan()
        self._total += torch.where(there, values, 0.0).sum(0)
        self._count += there.sum(0)

    @property
    def mean(self) -> Float[Tensor, "*axes"]:
        """NaN where nothing was counted. Raises ValueError when nothing was added at all."""
        return self._known("_total") / self.count

    @property
    def count(self) -> Int[Tensor, "*axes"]:
        """Samples behind each entry."""
        return self._known("_count")

    def _known(self, part: str) -> Tensor:
        found = getattr(self, part)
        if found is None:
            raise ValueError("nothing was added, so there is no mean; add one sample at least")
        return found


class Bootstrap:
    """Intervals of a mean over samples, from ``draws`` Poisson bootstrap draws kept as running sums."""

    def __init__(self, draws: int = 500, seed: int = 0):
        if draws < 2:
            raise ValueError(f"expected at least 2 bootstrap draws, got {draws}")
        self.draws = draws
        self._random = np.random.default_rng(seed)
        self._total: Tensor | None = None
        self._weight: Tensor | None = None

    def add(self, values: Float[Tensor, "sample ..."]) -> None:
        """Add values of one or more samples; NaN entries are left out of every draw."""
        values = values.detach().double().cpu()
        if self._total is None:
            self._total = torch.zeros(self.draws, *values.shape[1:], dtype=torch.float64)
            self._weight = torch.zeros_like(self._total)
        _check_axes(values, self._total.shape[1:])
        # Drawn sample by sample, so that the batch size does not change what is drawn.
        taken = torch.from_numpy(self._random.poisson(1.0, (len(values), self.draws)).T).double()
        there = ~values.isnan()
        self._total += torch.tensordot(taken, torch.where(there, values, 0.0), 1)
        self._weight += torch.tensordot(taken, there.double(), 1)

    @property
    def means(self) -> Float[Tensor, "draw ..."]:
        """Each draw's mean; NaN where it took no sample. Raises ValueError when nothing was added."""
        if self._total is None:
            raise ValueError("nothing was added, so there is no interval; add one sample at least")
        return self._total / torch.where(self._weight > 0, self._weight, torch.nan)

    def interval(self, level: float = 0.95) -> Interval:
        """The percentile interval of each entry's mean: two tensors; NaN where nothing was counted.

        Raises ValueError for a level outside (0, 1) and when nothing was added.
        """
        if not 0 < level < 1:
            raise ValueError(f"expected a level in (0, 1), got {level}")
        ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        low, high = torch.nanquantile(self.means, ends, dim=0)
        return Interval(low, high)


def _check_axes(values: Tensor, axes: torch.Size) -> None:
    if values.shape[1:] != axes:
        raise ValueError(
            f"expected values of shape (sample, {', '.join(map(str, axes))}), found {tuple(values.shape)}; "
            f"samples of one mean have the same axes"
        )
