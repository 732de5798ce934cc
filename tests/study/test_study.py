"""A study's folder is read whole, joined with others where they agree, and refused where they do not."""

import json

import pytest
from invented import failure, row, rows, write_study

from seeing.study.settings import StudyError
from seeing.study.study import Study


def test_a_folder_is_read_whole(tmp_path):
    made = rows(data=("crowded", "easy"), n=5)
    lost = [failure("plates-tiny", "crowded", "crowded/9"), failure("plates-tiny", "easy", "easy/7", "vea")]
    study = Study.open(write_study(tmp_path / "a", made, lost, parts=3))
    keys = study.rows[["model", "data", "sample", "method"]].apply(tuple, axis=1)
    assert sorted(keys) == sorted((r["model"], r["data"], r["sample"], r["method"]) for r in made)
    answers = {(r["data"], r["sample"], r["method"]): r["answer"] for r in made}
    for _, found in study.rows.iterrows():
        assert found["answer"] == answers[found["data"], found["sample"], found["method"]]
        assert found["truth"] == ("seven red plates",)
    assert study.failures["method"].tolist() == [None, "vea"]
    assert study.models == ("plates-tiny",)
    assert study.data == ("crowded", "easy")
    assert study.methods == ("base", "inst", "vea", "vea_in_pass:gain=2")
    assert study.settings[0]["prompt"] == "qa"


def test_names_come_in_the_order_of_the_settings(tmp_path):
    made = rows(methods=("base", "vea"), n=2)
    study = Study.open(write_study(tmp_path, made, methods=["vea", "pai", "base"]))
    assert study.methods == ("vea", "pai", "base")


def test_folders_are_joined(tmp_path):
    first = rows(methods=("base", "vea"), n=4)
    second = rows(models=("other",), methods=("base",), n=4)
    third = rows(data=("easy",), methods=("inst",), n=4)
    paths = [write_study(tmp_path / str(n), made) for n, made in enumerate((first, second, third))]
    study = Study.open(*paths)
    assert len(study.rows) == len(first) + len(second) + len(third)
    assert study.models == ("plates-tiny", "other")
    assert study.methods == ("base", "vea", "inst")
    assert len(study.documents) == 3


def test_what_two_folders_have_counts_once(tmp_path):
    made = rows(n=6)
    lost = [failure("plates-tiny", "crowded", "crowded/9")]
    part = [{**one, "seconds": 9.0, "logprob": -1.0001} for one in made[:8]]
    study = Study.open(write_study(tmp_path / "a", made, lost), write_study(tmp_path / "b", part, lost))
    assert len(study.rows) == len(made)
    assert len(study.failures) == 1
    assert (study.rows["seconds"] == 0.5).all()


def test_another_answer_to_the_same_is_refused(tmp_path):
    made = rows(n=3)
    other = [{**made[0], "answer": "nine"}]
    paths = write_study(tmp_path / "a", made), write_study(tmp_path / "b", other)
    with pytest.raises(StudyError, match=r"contradict.*crowded/0 · base.*'nine'.*\(1 such\)"):
        Study.open(*paths)


def test_another_question_under_the_same_name_is_refused(tmp_path):
    made = rows(methods=("base",), n=3)
    other = [{**made[0], "method": "vea", "question": "where ?"}]
    paths = write_study(tmp_path / "a", made), write_study(tmp_path / "b", other)
    with pytest.raises(StudyError, match=r"contradict.*crowded · crowded/0.*'where \?'"):
        Study.open(*paths)


@pytest.mark.parametrize(
    ("setting", "value", "shared", "said"),
    [
        ("prompt", "vea", False, "prompt: 'qa' there, 'vea' now"),
        ("max_new_tokens", 5, False, "max_new_tokens: None there, 5 now"),
        ("seed", 3, True, "seed: 0 there, 3 now"),
        ("profile", {"spec": "b"}, True, "profile.spec: 'a' there, 'b' now"),
        ("methods", [{"text": "base", "method": "other"}], False, "base.method: 'base' there, 'other' now"),
    ],
)
def test_other_settings_under_the_same_names_are_refused(tmp_path, setting, value, shared, said):
    first = write_study(tmp_path / "a", rows(methods=("base",), n=2), settings={"profile": {"spec": "a"}})
    model = "plates-tiny" if shared else "other"
    more = rows(models=(model,), data=("easy",), methods=("base",), n=2)
    with pytest.raises(StudyError, match=said):
        Study.open(first, write_study(tmp_path / "b", more, settings={setting: value}))


def test_another_seed_of_another_model_is_no_contradiction(tmp_path):
    first = write_study(tmp_path / "a", rows(methods=("base",), n=2))
    second = write_study(
        tmp_path / "b", rows(models=("other",), methods=("base",), n=2), settings={"seed": 3}
    )
    assert len(Study.open(first, second).rows) == 4


def test_a_study_that_needed_no_profile_joins_one_that_did(tmp_path):
    first = write_study(tmp_path / "a", rows(methods=("base",), n=2), settings={"profile": {"spec": "a"}})
    second = write_study(tmp_path / "b", rows(methods=("inst",), n=2))
    assert len(Study.open(first, second).rows) == 4


def test_another_model_of_the_same_name_is_refused(tmp_path):
    paths = [write_study(tmp_path / name, rows(n=2)) for name in "ab"]
    document = json.loads((paths[1] / "study.json").read_text())
    document["models"]["plates-tiny"]["layers"] = 9
    (paths[1] / "study.json").write_text(json.dumps(document))
    with pytest.raises(StudyError, match=r"plates-tiny.layers: 6 there, 9 now"):
        Study.open(*paths)


def test_a_part_of_a_study(tmp_path):
    made = rows(models=("a", "b"), data=("crowded", "easy"), n=3)
    lost = [failure("a", "easy", "easy/9"), failure("b", "easy", "easy/9", "vea")]
    study = Study.open(write_study(tmp_path, made, lost))
    part = study.only(models=["b"], methods=["vea", "base"])
    assert part.methods == ("vea", "base")
    assert part.models == ("b",)
    assert len(part.rows) == 2 * 3 * 2
    assert list(part.rows["method"].unique()) == ["vea", "base"]
    assert part.failures["method"].tolist() == ["vea"]
    assert study.only(methods=["base"]).failures["model"].tolist() == ["a"]  # failed under every method
    with pytest.raises(StudyError, match=r"no method 'pai'.*base, inst, vea"):
        study.only(methods=["pai"])


def test_a_study_without_a_row_can_be_read(tmp_path):
    lost = [failure("plates-tiny", "crowded", "crowded/0")]
    study = Study.open(write_study(tmp_path, [], lost, methods=["base"]))
    assert study.rows.empty
    assert study.methods == ("base",)
    assert study.data == ("crowded",)


def test_no_folder_and_no_study_are_said(tmp_path):
    with pytest.raises(StudyError, match="no folder"):
        Study.open()
    with pytest.raises(StudyError, match="no study"):
        Study.open(tmp_path)


def test_numbers_that_are_missing_stay_missing(tmp_path):
    one = row("m", "d", "s", "base", "x", ["y"], anls=None, auroc_layers=[0.5, None], evidence_auroc=0.5)
    study = Study.open(write_study(tmp_path, [one], parts=1))
    assert study.rows["anls"].isna().all()
    assert study.rows["evidence_auroc"].tolist() == [0.5]
