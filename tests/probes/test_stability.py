"""How a choice settles with samples: against drawing by hand, and where the answer is known beforehand."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from seeing import probes
from seeing.probes import Stability, stability
from seeing.probes.profiles.profile import profile_of


def noisy(means, n, spread, seed=0):
    """Values (sample, place) whose means over all samples are exactly these."""
    noise = np.random.default_rng(seed).normal(0, spread, (n, len(means)))
    return torch.from_numpy(np.array(means) + noise - noise.mean(0))


# ---- known beforehand --------------------------------------------------------------------------------------


def test_without_noise_every_draw_chooses_the_same():
    values = torch.tensor([0.6, 0.9, 0.7, 0.8]).double().expand(30, 4)
    found = stability(values, sizes=(1, 5, 30), top=0.5, draws=50)
    assert found.layers.places == (1, 3)
    assert found.layers.chosen.tolist() == [[0, 1, 0, 1]] * 3
    for agreement in (found.layers.jaccard, found.layers.same, found.layers.pairs, *found.layers.interval):
        assert agreement.tolist() == [1, 1, 1]
    assert found.enough(1.0) == 1


@pytest.mark.parametrize("gap", [0.02, 0.05])
def test_of_two_layers_the_better_one_wins_as_often_as_the_normal_law_says(gap):
    """Means of s samples differ by gap ± spread · √(2 / s)."""
    values, spread = noisy([0.8, 0.8 + gap], 1000, 0.2), 0.2
    found = stability(values, sizes=(10, 40, 160), draws=2000)
    assert found.layers.places == (1,)
    for place, size in enumerate(found.sizes):
        wins = norm.cdf(gap / (spread * math.sqrt(2 / size)))
        assert float(found.layers.chosen[place, 1]) == pytest.approx(wins, abs=0.04)
        # One of two layers: the Jaccard index is 1 or 0.
        assert found.layers.jaccard[place] == found.layers.same[place] == found.layers.chosen[place, 1]
        assert float(found.layers.pairs[place]) == pytest.approx(wins**2 + (1 - wins) ** 2, abs=0.04)


def test_a_choice_among_equals_is_as_good_as_a_random_one():
    """Ten layers alike, two of them chosen: the share of each is 0.2, two draws agree as random pairs do."""
    values = noisy([0.7] * 10, 1000, 0.1) + 1e-7 * torch.arange(10)
    found = stability(values, sizes=(20,), top=0.2, draws=3000)
    assert found.layers.places == (8, 9)
    np.testing.assert_allclose(found.layers.chosen[0], 0.2, atol=0.035)
    pairs = list(itertools.combinations(range(10), 2))
    jaccard = np.mean([len({*a} & {*b}) / len({*a} | {*b}) for a in pairs for b in pairs])
    assert float(found.layers.pairs[0]) == pytest.approx(jaccard, abs=0.02)


def test_of_three_samples_every_draw_is_counted_out():
    """27 draws of three samples with replacement, all as likely: their shares are exact."""
    values = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.6, 0.1], [0.3, 0.4, 0.95]]).double()
    draws = [values[list(draw)].mean(0).argmax() for draw in itertools.product(range(3), repeat=3)]
    truth = np.bincount(draws, minlength=3) / 27
    found = stability(values, sizes=(3,), top=0.3, draws=20000)
    np.testing.assert_allclose(found.layers.chosen[0], truth, atol=0.015)
    kept = int(values.mean(0).argmax())
    assert found.layers.places == (kept,)
    assert float(found.layers.same[0]) == pytest.approx(truth[kept], abs=0.015)


# ---- against drawing by hand -------------------------------------------------------------------------------


def test_chosen_shares_are_those_of_drawing_by_hand():
    values = noisy(np.linspace(0.7, 0.8, 12), 60, 0.15, seed=3)
    values[::7, 5] = math.nan
    found = stability(values, sizes=(15,), top=0.25, draws=3000)
    rng, counts, jaccards = np.random.default_rng(9), np.zeros(12), []
    everything = set(np.nanmean(values, 0).argsort()[-3:].tolist())
    for _ in range(3000):
        best = np.nanmean(values[rng.integers(60, size=15)], 0).argsort()[-3:]
        counts[best] += 1
        jaccards.append(len(everything & {*best}) / len(everything | {*best}))
    assert found.layers.places == tuple(sorted(everything))
    np.testing.assert_allclose(found.layers.chosen[0], counts / 3000, atol=0.04)
    assert float(found.layers.jaccard[0]) == pytest.approx(np.mean(jaccards), abs=0.02)
    low, high = np.quantile(jaccards, [0.025, 0.975])
    assert (float(found.layers.interval.low[0]), float(found.layers.interval.high[0])) == (low, high)


def test_each_draw_chooses_the_rounded_up_share_of_places_with_a_score():
    values = noisy(np.linspace(0.7, 0.8, 11), 20, 0.1)
    values[:, 3] = math.nan
    found = stability(values, sizes=(5,), top=0.15, draws=200)
    assert len(found.layers.places) == 2
    assert float(found.layers.chosen[0].sum()) == pytest.approx(2)
    assert found.layers.chosen[0, 3] == 0


def test_heads_are_chosen_among_all_heads():
    heads = noisy(np.linspace(0.6, 0.9, 12), 40, 1e-6).view(40, 3, 4)
    found = stability(heads.mean(-1), sizes=(5, 40), heads=heads, top=0.25, draws=20)
    assert found.heads.places == ((2, 1), (2, 2), (2, 3))
    assert found.heads.chosen.shape == (2, 3, 4)
    assert found.heads.chosen[0].sum() == 3
    assert found.layers.places == (2,)


def test_settings_do_not_change_one_another():
    values = noisy(np.linspace(0.7, 0.8, 12), 60, 0.15)
    one, all_of_them = stability(values, sizes=(20,)), stability(values, sizes=(50, 10, 20))
    assert all_of_them.sizes == (10, 20, 50)
    assert torch.equal(one.layers.chosen[0], all_of_them.layers.chosen[1])
    assert not torch.equal(one.layers.chosen, stability(values, sizes=(20,), seed=1).layers.chosen)


def test_more_samples_agree_better():
    found = stability(noisy(np.linspace(0.7, 0.8, 12), 300, 0.2), sizes=(5, 20, 80, 300))
    assert (found.layers.jaccard.diff() > 0).all()
    assert found.enough(0.99) is None
    assert found.enough(float(found.layers.jaccard[2]) - 0.01) == 80


# ---- what is asked -----------------------------------------------------------------------------------------


def test_sizes_above_the_number_at_hand_are_that_number():
    assert stability(noisy([0.7, 0.8], 30, 0.1)).sizes == (10, 20, 30)
    assert stability(noisy([0.7, 0.8], 8, 0.1)).sizes == (8,)


@pytest.mark.parametrize(
    ("given", "settings", "said"),
    [
        (noisy([0.7, 0.8], 1, 0.1), {}, "2 samples or more"),
        (noisy([0.7, 0.8], 5, 0.1), {"sizes": (0, 3)}, "sizes of 1 or more"),
        (noisy([0.7, 0.8], 5, 0.1), {"sizes": ()}, "sizes of 1 or more"),
        (noisy([0.7, 0.8], 5, 0.1), {"draws": 1}, "2 draws or more"),
        (noisy([0.7, 0.8], 5, 0.1), {"top": 0.0}, "share"),
        (noisy([0.7, 0.8], 5, 0.1), {"heads": torch.zeros(4, 2, 2)}, "5 of layers and 4 of heads"),
    ],
)
def test_what_can_not_be_drawn_is_refused(given, settings, said):
    with pytest.raises(ValueError, match=said):
        stability(given, **settings)


def test_a_loaded_profile_has_no_samples_to_draw_from(trained, crowded, tmp_path):
    found = probes.profile(trained, crowded[:3], progress=False)
    found.save(tmp_path / "profile.json")
    with pytest.raises(ValueError, match="were not saved with it"):
        stability(probes.Profile.load(tmp_path / "profile.json"))
    with pytest.raises(ValueError, match="per_sample=True"):
        stability(probes.evidence(trained, crowded[:3], per_sample=False, progress=False))
    with pytest.raises(ValueError, match="no choice of 'heads'"):
        stability(found, draws=5).figure("heads")


def test_aurocs_are_what_the_evidence_probe_takes_means_of(random, mixed):
    found = probes.aurocs(random, iter(mixed), batch_size=4, progress=False)
    truth = probes.evidence(random, mixed, progress=False)
    torch.testing.assert_close(found.layers, truth.samples.auroc, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.heads.mean(0), truth.auroc, rtol=0, atol=1e-6)
    assert found.ids == truth.ids


def test_a_profile_an_evidence_probe_and_its_values_have_one_stability(random, mixed):
    found = probes.evidence(random, mixed, progress=False)
    several = [
        stability(given, sizes=(3,), top=0.3, draws=100)
        for given in (found, profile_of(found, 0.3), found.samples.auroc)
    ]
    assert all(torch.equal(one.layers.chosen, several[0].layers.chosen) for one in several)
    assert stability(profile_of(found, 0.3), sizes=(3,)).layers.places == profile_of(found, 0.3).layers


def test_a_planted_head_is_stable_from_few_samples_on(plant, planted_samples):
    model = plant("believes")
    values = probes.aurocs(model.vlm, planted_samples(24, seed=3), progress=False)
    found = stability(values, sizes=(2, 24), draws=100)
    assert found.layers.places == (model.looks[0],)
    assert model.looks in found.heads.places
    assert (found.heads.chosen[:, *model.looks] == 1).all()


# ---- shown -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both() -> Stability:
    heads = noisy(np.linspace(0.6, 0.9, 12), 40, 0.2).view(40, 3, 4)
    return stability(heads.mean(-1), sizes=(5, 40), heads=heads, top=0.25, draws=50)


def test_frames_hold_the_agreement_and_the_shares(both):
    frame = both.to_frame()
    assert list(frame.columns) == ["what", "samples", "jaccard", "low", "high", "same", "pairs"]
    assert frame[["what", "samples"]].values.tolist() == [
        ["layers", 5],
        ["layers", 40],
        ["heads", 5],
        ["heads", 40],
    ]
    assert frame["jaccard"].tolist() == [*both.layers.jaccard.tolist(), *both.heads.jaccard.tolist()]
    chosen = both.chosen_frame("heads").set_index(["samples", "layer", "head"])
    assert chosen.loc[(40, 2, 1), "share"] == float(both.heads.chosen[1, 2, 1])
    assert list(both.chosen_frame().columns) == ["samples", "layer", "share"]


@pytest.mark.parametrize("dark", [False, True])
def test_the_figure_draws_agreement_above_and_shares_below(both, dark):
    fig = both.figure(dark=dark)
    line, shares = fig.data
    np.testing.assert_allclose(line.y, both.layers.jaccard)
    np.testing.assert_allclose(shares.z, both.layers.chosen)
    assert list(line.x) == list(shares.y) == ["5", "40"]
    assert "n = 40, 50 draws" in fig.layout.title.text
    rings = {shape.x0 + 0.5 for shape in fig.layout.shapes}
    assert rings == set(map(float, both.layers.places))


def test_of_heads_the_figure_shows_those_that_are_chosen_most(both):
    shares = both.figure("heads").data[1]
    shown = {name: shares.z[:, place] for place, name in enumerate(shares.customdata[0])}
    assert set(map(float, shown["2.3"])) == set(both.heads.chosen[:, 2, 3].tolist())
    many = noisy(np.linspace(0.6, 0.9, 60), 40, 0.2).view(40, 15, 4)
    crowd = stability(many.mean(-1), sizes=(5,), heads=many, top=0.1, draws=50)
    names = list(crowd.figure("heads").data[1].customdata[0])
    assert len(names) == 20
    assert {f"{layer}.{head}" for layer, head in crowd.heads.places} <= set(names)
