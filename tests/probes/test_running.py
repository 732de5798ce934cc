"""Running means and their intervals, against all values at once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from seeing.probes.running import Bootstrap, RunningMean
from seeing.stats import bootstrap_mean

NUMBERS = arrays(
    np.float64, (12, 3), elements=st.one_of(st.floats(-1e3, 1e3), st.just(float("nan"))), unique=False
)


@given(values=NUMBERS, cut=st.integers(1, 11))
def test_the_mean_is_numpys_whatever_the_batches(values, cut):
    running = RunningMean()
    for part in (values[:cut], values[cut:]):
        running.add(torch.from_numpy(part))
    count = (~np.isnan(values)).sum(0)
    assert running.count.tolist() == count.tolist()
    expected = np.array([np.nanmean(column) if n else np.nan for column, n in zip(values.T, count)])
    np.testing.assert_allclose(running.mean.numpy(), expected, rtol=1e-9, atol=1e-9)


def test_intervals_are_as_wide_as_the_bootstrap_of_all_values():
    values = np.random.default_rng(0).normal(3, 2, (300, 2))
    running = Bootstrap(draws=2000)
    for part in np.split(values, 10):
        running.add(torch.from_numpy(part))
    low, high = running.interval()
    for column in range(2):
        whole = bootstrap_mean(values[:, column], seed=1, level=0.95).interval
        width = whole.high - whole.low
        assert float(low[column]) == pytest.approx(whole.low, abs=0.12 * width)
        assert float(high[column]) == pytest.approx(whole.high, abs=0.12 * width)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    random, held = np.random.default_rng(1), 0
    for trial in range(200):
        running = Bootstrap(draws=300, seed=trial)
        running.add(torch.from_numpy(random.exponential(1.0, (80, 1))))
        low, high = running.interval(0.9)
        held += bool(low[0] <= 1.0 <= high[0])
    # 180 expected; binomial spread is 4.2, and the percentile interval of a skewed mean is a little short
    assert 160 <= held <= 194


def test_what_is_missing_is_left_out_of_every_draw():
    values = torch.tensor([[1.0, torch.nan], [3.0, torch.nan], [torch.nan, torch.nan], [2.0, torch.nan]])
    running = Bootstrap()
    running.add(values)
    low, high = running.interval()
    assert 1 <= low[0] < 2 < high[0] <= 3
    assert low[1].isnan()
    assert high[1].isnan()


def test_memory_does_not_grow_with_the_samples():
    running, mean = Bootstrap(draws=50), RunningMean()
    for _ in range(20):
        running.add(torch.rand(7, 4))
        mean.add(torch.rand(7, 4))
    kept = [
        value for one in (running, mean) for value in vars(one).values() if isinstance(value, torch.Tensor)
    ]
    assert max(value.numel() for value in kept) == 50 * 4


def test_mistakes_say_what_was_found():
    for empty in (lambda: RunningMean().mean, lambda: RunningMean().count, lambda: Bootstrap().interval()):
        with pytest.raises(ValueError, match="nothing was added"):
            empty()
    for one in (RunningMean(), Bootstrap()):
        one.add(torch.zeros(1, 3))
        with pytest.raises(ValueError, match="same axes"):
            one.add(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="draws"):
        Bootstrap(draws=1)
    full = Bootstrap()
    full.add(torch.zeros(2, 1))
    with pytest.raises(ValueError, match="level"):
        full.interval(95)
