"""A study asks what it is told to, keeps what was said, and records what failed."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import seeing
from seeing import edits as E
from seeing import probes, study
from seeing.answer import Answer
from seeing.data.dataset import Dataset
from seeing.data.failures import BadSample
from seeing.data.plates import plates
from seeing.data.samples import EvidenceSample
from seeing.methods import Base, Method
from seeing.study.columns import SCHEMA
from seeing.study.folder import read_document

CALIBRATION = "plates:calibration:12"


class Samples(Dataset):
    """Samples that are there; an error in their midst is what asking for that one raises."""

    def __init__(self, name, samples):
        self.name, self.samples, self.spec = name, samples, f"test:{name}"

    def __len__(self):
        return len(self.samples)

    def id(self, i):
        one = self.samples[i]
        return one.id if isinstance(one, (EvidenceSample, BadSample)) else f"#{i}"

    def sample(self, i):
        if isinstance(self.samples[i], Exception):
            raise self.samples[i]
        return self.samples[i]

    def said(self, n):
        return map(self.id, range(n))

    @property
    def has_boxes(self):
        return True


class Counted(Method):
    """The plain model; notes how many rows it was given at a time, and may refuse some."""

    about = "counts"

    def __init__(self, refuses=lambda prompt: None):
        self.sizes, self.tokens, self.refuses = [], [], refuses

    def answer(self, vlm, prompt):
        self.sizes.append(len(prompt))
        self.tokens.append(len(prompt) * prompt.length)
        self.refuses(prompt)
        return vlm.answer(prompt)


@pytest.fixture(scope="module")
def found(trained, tmp_path_factory):
    """A study of 20 samples under four methods."""
    out = tmp_path_factory.mktemp("study") / "out"
    return study.run(
        trained, "plates:20", "base,inst,pai:gamma=1,oracle:gain=8", out, calibration=CALIBRATION, rows=8
    )


def test_a_row_is_what_the_model_says_when_it_is_asked_by_hand(found, trained):
    rows = found.rows.set_index(["sample", "method"])
    assert len(rows) == 20 * 4
    boosted = trained.with_edits(E.ScaleAttention(keys="evidence", gain=8.0))
    for sample in plates("crowded", 20)[::5]:
        prompt = trained.prompt(sample, template="qa")
        for method, vlm, asked in (
            ("base", trained, prompt),
            ("oracle:gain=8", boosted, prompt),
            ("inst", trained, trained.prompt(sample, template="vea")),
        ):
            answer, row = vlm.answer(asked), rows.loc[sample.id, method]
            assert row["answer"] == str(answer)
            assert row["logprob"] == pytest.approx(answer.logprob, abs=1e-4)
            assert row["n_tokens"] == len(answer.ids)
            assert row["n_prompt"] == asked.length
            assert row["n_image"] == 64
            assert row["correct"] == (str(answer) == sample.answers[0]) == bool(row["em"])
            assert list(row["truth"]) == list(sample.answers)
            assert json.loads(row["meta"])["digit"] == sample.meta["digit"]
            assert row["seconds"] > 0


def test_a_row_says_where_the_grounding_layers_looked(found, trained):
    profile = probes.Profile.load(found.folders[0] / "profiles" / "m0.json", trained)
    evidence = probes.evidence(trained, plates("crowded", 20), template="qa")
    by_id = dict(zip(evidence.ids, evidence.samples.auroc[:, list(profile.layers)].numpy()))
    for _, row in found.rows.iterrows():
        np.testing.assert_allclose(row["auroc_layers"], by_id[row["sample"]], atol=1e-6)
        assert row["evidence_auroc"] == pytest.approx(by_id[row["sample"]].mean(), abs=1e-6)


def test_the_folder_says_what_was_run(found):
    document = read_document(found.folders[0])
    settings, run = document["settings"], document["runs"][0]
    assert [one["text"] for one in settings["methods"]] == ["base", "inst", "pai:gamma=1", "oracle:gain=8"]
    assert settings["data"][0]["n"] == 20
    assert settings["seed"] == 0
    assert settings["profile"]["n"] == 12
    assert run["versions"]["torch"] == torch.__version__
    assert {"started", "command", "commit"} <= run.keys()
    model = next(iter(document["models"].values()))
    assert model["n_layers"] == 6
    assert len(model["weights"]) == 16
    parts = list((found.folders[0] / "rows").glob("*.parquet"))
    assert list(pd.read_parquet(parts[0]).columns) == SCHEMA.names


def test_started_again_a_finished_study_does_nothing(found, trained):
    method_calls = []
    again = study.run(
        trained,
        "plates:20",
        "base,inst,pai:gamma=1,oracle:gain=8",
        found.folders[0],
        calibration=CALIBRATION,
        rows=8,
        progress=lambda done, total, failed: method_calls.append((done, total)),
    )
    pd.testing.assert_frame_equal(again.rows, found.rows)
    assert set(method_calls) == {(80, 80)}


def test_a_study_that_was_stopped_goes_on_to_the_same_rows(found, trained, tmp_path):
    words = dict(calibration=CALIBRATION, rows=8)
    methods = "base,inst,pai:gamma=1,oracle:gain=8"
    for stop in (1, 30, 31, 60):

        def stopped(done, total, failed, stop=stop):
            if done >= stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            study.run(trained, "plates:20", methods, tmp_path / "out", progress=stopped, **words)
    assert 0 < len(study.open(tmp_path / "out").rows) < 80
    again = study.run(trained, "plates:20", methods, tmp_path / "out", **words)
    pd.testing.assert_frame_equal(
        again.rows.drop(columns="seconds"), found.rows.drop(columns="seconds"), check_exact=True
    )


# ---- what fails --------------------------------------------------------------------------------


def picture(width, height):
    return Image.fromarray(np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8))


def test_a_sample_that_can_t_be_had_is_one_failure(trained, tmp_path):
    good = plates("easy", 5)
    odd = EvidenceSample("odd", picture(50, 80), "what zebra is on the moon ?", ("7",), ((1, 1, 9, 9),))
    samples = [good[0], BadSample("gone", "no such picture"), odd, good[1], RuntimeError("boom"), *good[2:]]
    found = study.run(
        trained, Samples("mixed", samples), "base,oracle", tmp_path / "out", calibration=CALIBRATION
    )
    assert set(found.rows["sample"]) == {one.id for one in good}
    assert len(found.rows) == 10
    failures = found.failures.set_index("sample")
    assert failures.loc["gone", "reason"] == "no such picture"
    assert failures.loc["gone", "stage"] == failures.loc["#4", "stage"] == "sample"
    assert "boom" in failures.loc["#4", "reason"]
    assert "Traceback" in failures.loc["#4", "traceback"]
    assert failures.loc["odd", "stage"] == "prompt"
    assert "zebra" in failures.loc["odd", "reason"]
    assert len(failures) == 3


def test_a_method_that_fails_on_one_sample_answers_the_others(trained, tmp_path):
    samples = plates("easy", 9)

    bad = (samples[4].question, samples[4].boxes)

    def refuses(prompt):
        if any((turn.question, turn.boxes) == bad for turn in prompt.turns):
            raise ValueError("not this one")

    method = Counted(refuses)
    found = study.run(
        trained,
        Samples("easy", samples),
        {"base": Base(), "picky": method},
        tmp_path / "out",
        calibration=CALIBRATION,
    )
    assert len(found.rows) == 9 + 8
    assert found.failures["sample"].tolist() == [samples[4].id]
    assert found.failures["method"].tolist() == ["picky"]
    assert found.failures["reason"].tolist() == ["not this one"]
    assert "refuses" in found.failures["traceback"][0]
    assert method.sizes[0] == 9
    assert method.sizes.count(1) >= 1


def test_out_of_memory_halves_the_batch_and_is_remembered(trained, tmp_path):
    def refuses(prompt):
        if len(prompt) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    method = Counted(refuses)
    found = study.run(
        trained, "plates:easy:40", {"hungry": method}, tmp_path / "out", rows=20, calibration=CALIBRATION
    )
    assert len(found.rows) == 40
    assert not len(found.failures)
    assert method.sizes[:3] == [20, 10, 5]
    # Once it is known what fits, nothing larger is tried.
    assert max(method.sizes[3:]) == 5


def test_a_single_sample_that_does_not_fit_into_memory_is_a_failure(trained, tmp_path):
    def refuses(prompt):
        raise RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        )

    found = study.run(
        trained,
        "plates:easy:3",
        {"base": Base(), "hungry": Counted(refuses)},
        tmp_path / "out",
        calibration=CALIBRATION,
    )
    assert len(found.rows) == len(found.failures) == 3
    assert "can't allocate memory" in found.failures["reason"][0]


def test_a_probability_that_is_no_number_is_a_failure(trained, tmp_path):
    class Broken(Method):
        about = "NaN"

        def answer(self, vlm, prompt):
            answers = vlm.answer(prompt)
            return [Answer.of("7", answers[0].ids, answers[0].token_logprobs * math.nan), *answers[1:]]

    found = study.run(trained, "plates:easy:4", {"nan": Broken()}, tmp_path / "out", calibration=CALIBRATION)
    assert len(found.rows) == 3
    assert "log-probability of the answer is nan" in found.failures["reason"][0]


def test_no_batch_holds_more_tokens_or_rows_than_said(trained, tmp_path):
    method = Counted()
    study.run(trained, "plates:easy:20", {"m": method}, tmp_path / "a", rows=6, calibration=CALIBRATION)
    assert sum(method.sizes) == 20
    assert max(method.sizes) == 6
    few = Counted()
    study.run(trained, "plates:easy:20", {"m": few}, tmp_path / "b", tokens=300, calibration=CALIBRATION)
    assert sum(few.sizes) == 20
    assert 150 < max(few.tokens) <= 300
    one = Counted()
    study.run(trained, "plates:easy:3", {"m": one}, tmp_path / "c", tokens=1, calibration=CALIBRATION)
    assert one.sizes == [1, 1, 1]


# ---- what a study is made of -------------------------------------------------------------------


def test_several_models_and_data_sets_make_every_row(trained, tmp_path):
    other = seeing.load("plates-null", check=False)
    other._module.config.name_or_path = "null"
    found = study.run(
        [trained, other],
        ["plates:easy:3", "plates:noisy:2"],
        "base,random_region",
        tmp_path / "out",
        calibration=CALIBRATION,
    )
    counts = found.rows.groupby(["model", "data", "method"]).size()
    assert len(counts) == 2 * 2 * 2
    assert sorted(counts) == [2] * 4 + [3] * 4
    answers = found.rows.pivot(index=["data", "sample", "method"], columns="model", values="logprob")
    assert (answers.iloc[:, 0] != answers.iloc[:, 1]).all()


def test_held_out_samples_make_the_profile_and_are_not_asked(trained, tmp_path):
    found = study.run(trained, "plates:30", "base", tmp_path / "out", hold_out=12, limit=6)
    ids = [one.id for one in plates("crowded", 18)]
    assert found.rows["sample"].tolist() == ids[12:]
    assert probes.Profile.load(found.folders[0] / "profiles" / "m0.json").n == 12


def test_edits_and_functions_are_methods(trained, tmp_path):
    methods = {
        "cut": E.Knockout(queries="last", keys="image"),
        "made": lambda vlm, profile: E.ScaleAttention(keys="image", gain=2.0, layers=profile.layers),
    }
    found = study.run(trained, "plates:easy:4", methods, tmp_path / "out", calibration=CALIBRATION)
    assert set(found.rows["method"]) == {"cut", "made"}
    assert len(found.rows) == 8


def test_answers_are_as_long_as_said_and_the_model_is_left_as_it_was(random, tmp_path):
    own = random._module.generation_config.max_new_tokens
    found = study.run(
        random, "plates:easy:3", "base", tmp_path / "out", max_new_tokens=3, calibration=CALIBRATION
    )
    assert found.rows["n_tokens"].max() <= 3
    assert random._module.generation_config.max_new_tokens == own


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (dict(data="plates:0"), "1 or more"),
        (dict(data=[]), "needs a data set"),
        (dict(data=["plates:4", "plates:5"]), "stands twice"),
        (dict(methods=""), "method"),
        (dict(methods="bess"), "bess"),
        (dict(methods="pai:alpha=x"), "alpha"),
        (dict(rows=0), "rows is a whole number from 1 on"),
        (dict(limit=0), "limit is a whole number from 1 on"),
        (dict(calibration="plates:4"), "are asked too"),
        (dict(calibration="plates:calibration:4", hold_out=2), "not both"),
        (dict(hold_out=4), "no sample is left"),
        (dict(engine="spark"), "there are local and ray"),
    ],
)
def test_what_makes_no_study_is_refused_before_anything_runs(trained, tmp_path, words, said):
    given = dict(data="plates:4", methods="base") | words
    with pytest.raises(ValueError, match=said):
        study.run(trained, given.pop("data"), given.pop("methods"), tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_study_is_refused(found, trained):
    with pytest.raises(study.StudyError, match=r"seed: 0 there, 1 now"):
        study.run(
            trained,
            "plates:20",
            "base,inst,pai:gamma=1,oracle:gain=8",
            found.folders[0],
            calibration=CALIBRATION,
            rows=8,
            seed=1,
        )
    with pytest.raises(study.StudyError, match="holds a study already"):
        study.run(trained, "plates:20", "base", found.folders[0], resume=False)


def test_a_full_disk_ends_the_study_and_loses_nothing(trained, tmp_path, monkeypatch):
    from seeing.study import store

    written = []

    def full(path, value):
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(path)
        return append(path, value)

    append = store.append_line
    with monkeypatch.context() as patch:
        patch.setattr(store, "append_line", full)
        with pytest.raises(study.StudyError, match="No space left on device; what was finished is kept"):
            study.run(
                trained, "plates:easy:6", "base,oracle", tmp_path / "out", rows=3, calibration=CALIBRATION
            )
    assert len(study.open(tmp_path / "out").rows) == 6
    found = study.run(
        trained, "plates:easy:6", "base,oracle", tmp_path / "out", rows=3, calibration=CALIBRATION
    )
    assert len(found.rows) == 12
