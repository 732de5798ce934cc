"""The main job: on the trained model it shows what it is meant to show, on any model it adds up."""

import numpy as np
import pytest
import torch

from seeing import edits as E
from seeing import probes
from seeing.data.plates import plates
from seeing.maps import window_tokens
from seeing.methods import RandomAttention, vea
from seeing.methods.controls import random_windows
from seeing.methods.method import grids_of, positions_mask
from seeing.metrics import Locality
from seeing.probes.attention.evidence import Evidence
from seeing.probes.profiles.profile import profile_of
from seeing.study import demo
from seeing.zoo.build import TOKEN

METHODS = [
    "base",
    "vea",
    "vea-authors",
    "window-highlight",
    "boost-in-pass",
    "second-look",
    "oracle-attention",
    "oracle-highlight",
    "random-attention",
    "random-highlight",
    "image-attention",
]


@pytest.fixture
def quick(monkeypatch):
    """Layers and heads are chosen on few samples, and few are drawn."""
    monkeypatch.setattr(demo, "CALIBRATION", 8)
    monkeypatch.setattr(demo, "PER_OUTCOME", 2)


# ---- the trained model -------------------------------------------------------------------------


def test_the_embedded_model_sees_and_does_not_believe(main_job):
    result, _ = main_job
    accuracy = {row.method: row.accuracy for row in result.table}
    assert 0.5 < accuracy["base"] < 0.85
    assert accuracy["second-look"] >= accuracy["base"]
    assert accuracy["oracle-attention"] >= accuracy["base"] + 0.05
    assert accuracy["random-highlight"] < accuracy["base"]
    assert result.wrong_seen.value > 0.4
    auroc = next(curve for curve in result.curves if curve.metric == "auroc" and curve.group == "all")
    assert auroc.mean[1:5].max() > 0.85


def test_the_table_is_that_of_the_outcomes(main_job):
    result, outcomes = main_job
    assert list(result.methods) == METHODS
    frame = outcomes.to_frame()
    assert len(frame) == 64 * len(METHODS)
    right = frame.pivot(index="sample", columns="method", values="correct")
    for row in result.table:
        assert row.accuracy == pytest.approx(right[row.method].mean())
        if row.method != "base":
            assert row.fixed == (~right["base"] & right[row.method]).sum()
            assert row.broken == (right["base"] & ~right[row.method]).sum()
    truth = {sample.id: sample.answers[0] for sample in plates("crowded", 64)}
    assert (frame["correct"] == (frame["answer"] == frame["sample"].map(truth))).all()


def test_layers_and_heads_are_chosen_on_the_calibration_split(main_job, trained):
    result, _ = main_job
    found = probes.profile(trained, plates("calibration", 64, seed=0), template="qa")
    assert result.layers == found.layers
    assert result.calibration_n == 64
    np.testing.assert_allclose(result.auroc_heads, found.auroc_heads, atol=1e-6)
    best = found.auroc_heads.flatten().sort(descending=True).values[:4]
    assert [head.auroc for head in result.heads] == pytest.approx(best.tolist())
    assert all(found.auroc_heads[head.layer, head.head] == head.auroc for head in result.heads)


def test_the_gallery_shows_every_outcome(main_job):
    result, outcomes = main_job
    base, after = outcomes.correct("base"), outcomes.correct(demo.CHIEF)
    shown = {item.sample: item for item in result.gallery}
    assert len(shown) == len(result.gallery)
    for group in (~base & after, base & ~after, ~base & ~after, base & after):
        ids = [outcomes.samples[place].id for place in group.nonzero()[0]]
        assert [one for one in ids if one in shown] == ids[:4]
    assert len(shown) > 8
    for place, sample in enumerate(outcomes.samples):
        if (item := shown.get(sample.id)) is None:
            continue
        assert item.answers == {name: given[place] for name, given in outcomes.answers.items()}
        assert item.correct["base"] == base[place]
        assert item.boxes == sample.boxes
        assert item.seen == outcomes.looked[place].seen
        region = outcomes.looked[place].region
        x, y = 14 * region.col, 14 * region.row
        assert item.region == (x, y, x + 28, y + 28)
        assert item.heat.shape == (112, 112)
        assert (item.heat.min(), item.heat.max()) == (0, 1)


def test_the_gallery_has_the_maps_under_both_boundaries(main_job, trained):
    result, outcomes = main_job
    item = result.gallery[0]
    sample = next(one for one in outcomes.samples if one.id == item.sample)
    for boundary, authors in (("nearest", False), ("reflect", True)):
        expected = vea(result.layers, authors=authors).maps(trained, trained.prompt(sample))[0]
        np.testing.assert_allclose(item.maps[f"vea, {boundary}"], expected, atol=1e-5)


def test_an_answer_stops_by_itself(trained):
    answers = trained.answer(trained.prompts(plates("crowded", 32)))
    assert all(answer.ids[-1] == TOKEN["<eos>"] and len(answer.ids) == 2 for answer in answers)
    assert all(len(answer) == 1 and answer.isdigit() for answer in answers)


def test_without_its_evidence_the_answer_is_another(trained):
    """Cutting the evidence off changes most right answers; cutting as much off elsewhere changes few."""
    samples = plates("easy", 48)
    base = trained.answer(trained.prompts(samples))
    right = [place for place, sample in enumerate(samples) if base[place] == sample.answers[0]]
    assert len(right) >= 32
    prompt = trained.prompts([samples[place] for place in right])
    windows = random_windows(prompt, (2, 2), seed=0)
    tokens = [window_tokens(grid, window) for grid, window in zip(grids_of(prompt), windows)]
    elsewhere = positions_mask(prompt, tokens) & ~prompt.evidence()

    def changed(mask):
        edit = E.Knockout(keys=E.Positions.of_mask(mask), queries="text")
        answers = trained.with_edits(edit).answer(prompt)
        return sum(answer != base[place] for answer, place in zip(answers, right))

    assert changed(prompt.evidence()) >= len(right) // 2
    kept = elsewhere.any(1)
    assert kept.all(), "no window fell on the evidence alone"
    assert changed(elsewhere) <= len(right) // 4


# ---- any model ---------------------------------------------------------------------------------


def test_it_runs_on_a_model_that_was_never_trained(random, quick):
    told = []
    result, outcomes = demo.run_demo(
        random, "random", split="noisy", n=16, seed=2, command="again", progress=lambda *one: told.append(one)
    )
    assert list(result.methods) == METHODS
    assert (result.model, result.split, result.seed, result.n) == ("random", "noisy", 2, 16)
    assert result.calibration_n == 8
    assert result.command == "again"
    assert result.seconds > 0
    assert result.peak_mb > 50
    assert {"torch", "transformers", "nnsight", "python"} <= set(result.versions)
    assert len(result.layers) == 1
    assert len(result.heads) == 4
    assert [sample.id for sample in outcomes.samples] == [sample.id for sample in plates("noisy", 16, 2)]
    stages = {what: (done, total) for what, done, total in told}
    assert stages == {"profile": (8, 8), "answer": (16 * 11, 16 * 11)}


def test_the_same_seed_gives_the_same_run(trained, quick):
    one, first = demo.run_demo(trained, "plates-tiny", n=6, seed=3)
    two, second = demo.run_demo(trained, "plates-tiny", n=6, seed=3)
    assert first.to_frame().equals(second.to_frame())
    assert one.table == two.table
    assert one.heads == two.heads
    for a, b in zip(one.curves, two.curves):
        np.testing.assert_array_equal([a.mean, a.low, a.high], [b.mean, b.low, b.high])


def test_the_random_windows_follow_the_seed(trained):
    entries = demo.demo_methods(probes.profile(trained, plates("calibration", 8)), 6, seed=5)
    assert entries["random-attention"].method == RandomAttention(seed=5)
    assert entries["random-highlight"].method.seed == 5


@pytest.mark.parametrize("n_layers", [2, 3, 6, 28])
def test_the_boost_in_one_pass_acts_behind_what_it_reads(n_layers):
    heads = torch.rand(n_layers, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(n_layers))
    parts = [Locality(*[part] * 6) for part in (heads, heads.mean(1), heads.mean(1)[None])]
    boost = demo.demo_methods(profile_of(Evidence(*parts, ("a",), ())), n_layers, 0)["boost-in-pass"].method
    assert sum(map(len, boost.heads.values())) == 4
    assert max(boost.heads) < min(boost.layers)
    assert max(boost.layers) == n_layers - 1


def test_no_sample_is_answered_that_the_heads_were_chosen_on(trained, quick, monkeypatch):
    """Not even when the calibration split itself is answered."""
    chosen_on = []
    inner = demo.evidence

    def listen(vlm, samples, **settings):
        chosen_on.extend(sample.id for sample in samples)
        return inner(vlm, samples, **settings)

    methods = demo.demo_methods
    few = ("base", "vea", demo.CHIEF)
    monkeypatch.setattr(demo, "demo_methods", lambda *given: {name: methods(*given)[name] for name in few})
    monkeypatch.setattr(demo, "evidence", listen)
    _, outcomes = demo.run_demo(trained, "plates-tiny", split="calibration", n=8)
    answered = {sample.id for sample in outcomes.samples}
    assert len(answered) == len(set(chosen_on)) == 8
    assert not answered & set(chosen_on)


def test_a_split_that_is_not_there_and_no_samples_are_refused(random):
    with pytest.raises(ValueError, match="crowded"):
        demo.run_demo(random, "random", split="crowd")
    with pytest.raises(ValueError, match="at least one"):
        demo.run_demo(random, "random", n=0)
