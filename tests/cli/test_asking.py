"""`seeing ask` with methods: answers are those of Python, and the picture is written."""

import json

import pytest
from PIL import Image

from seeing import methods, probes
from seeing.data.plates import plates
from seeing.edits import ScaleAttention
from seeing.vlm import VLM


@pytest.fixture(scope="module")
def profile(trained, tmp_path_factory):
    """(path of a profile, the profile)."""
    made = probes.profile(trained, plates("calibration", 16), template="qa")
    path = tmp_path_factory.mktemp("profile") / "profile.json"
    made.save(path)
    return path, made


def told(said):
    assert said.code == 0, said.err
    return json.loads(said.out)


def test_answers_are_those_of_the_methods_themselves(seeing_command, loaded, trained, photo, profile):
    path, sample = photo
    words = ("--method", "vea,pai:alpha=0.5", "--method", "second_look", "--profile", profile[0])
    found = told(seeing_command("ask", path, sample.question, *words, "--json"))
    prompt = trained.prompt(sample.image, sample.question, template="qa")
    expected = {
        "base": trained.answer(prompt),
        "vea": methods.vea(profile[1]).answer(trained, prompt),
        "pai:alpha=0.5": methods.pai(0.5).answer(trained, prompt),
        "second_look": methods.second_look(profile[1]).answer(trained, prompt),
    }
    assert [one["method"] for one in found["answers"]] == list(expected)
    for one, answer in zip(found["answers"], expected.values()):
        assert one["answer"] == str(answer)
        assert one["logprob"] == pytest.approx(answer.logprob, abs=1e-5)
        assert sum(token["logprob"] for token in one["tokens"]) == pytest.approx(answer.logprob, abs=1e-4)
    assert found["look"]["layers"] == list(profile[1].layers)
    assert found["look"]["evidence_auroc"] is None


def test_answers_stand_side_by_side_for_the_eye(seeing_command, loaded, photo):
    said = seeing_command("ask", photo[0], photo[1].question, "--method", "pai,attention_knockout")
    assert said.code == 0, said.err
    for word in ("base", "pai", "attention_knockout", "log p", "'<eos>'"):
        assert word in said.out
    assert "first token" in said.err


def test_a_box_is_the_evidence(seeing_command, loaded, trained, photo):
    path, sample = photo
    boxes = [word for box in sample.boxes for word in ("--box", ",".join(map(str, box)))]
    found = told(seeing_command("ask", path, sample.question, *boxes, "--method", "oracle:gain=9", "--json"))
    prompt = trained.prompt(sample, template="qa")
    expected = methods.oracle(9).answer(trained, prompt)
    assert found["answers"][1]["logprob"] == pytest.approx(expected.logprob, abs=1e-5)
    assert 0 <= found["look"]["evidence_auroc"] <= 1
    assert found["look"]["layers"] == [3, 4, 5]  # without a profile the second half
    said = seeing_command("ask", path, sample.question, *boxes)
    assert f"evidence AUROC {found['look']['evidence_auroc']:.2f} in layers 3, 4, 5" in said.err


def test_the_prompt_is_the_papers_unless_another_is_asked_for(seeing_command, loaded, photo, monkeypatch):
    asked = []
    prompt = VLM.prompt

    def spy(self, image, question=None, boxes=None, template=None, **kwargs):
        asked.append(template)
        return prompt(self, image, question, boxes, template, **kwargs)

    monkeypatch.setattr(VLM, "prompt", spy)
    for words in ((), ("--template", "vea"), ("--template", "plain"), ("--template", "{question}")):
        assert seeing_command("ask", photo[0], photo[1].question, *words).code == 0
    assert asked == ["qa", "vea", None, "{question}"]


@pytest.mark.parametrize("name", ["looked.png", "looked.html", "deep/er/looked.webp"])
def test_what_it_looked_at_is_written(seeing_command, loaded, photo, profile, tmp_path, name):
    out = tmp_path / name
    words = ("--method", "vea,pai,random_highlight", "--profile", profile[0], "--out", out)
    said = seeing_command("ask", photo[0], photo[1].question, *words)
    assert said.code == 0, said.err
    assert str(out) in said.err.replace("\n", "")
    if name.endswith("html"):
        page = out.read_text()
        assert page.count("<img") == 2  # what vea and random_highlight showed; pai shows the picture as it is
        assert "As vea showed it" in page
    else:
        with Image.open(out) as picture:
            assert picture.width > 3 * 360


def test_calibration_data_make_a_profile(seeing_command, loaded, trained, photo):
    words = ("--method", "vea,vista", "--calibration", "plates:calibration:4", "--json")
    found = told(seeing_command("ask", photo[0], photo[1].question, *words))
    samples = plates("calibration", 4)
    made = probes.profile(trained, samples, template="qa")
    assert found["look"]["layers"] == list(made.layers)
    assert found["look"]["region"] is not None
    prompt = trained.prompt(photo[1].image, photo[1].question, template="qa")
    vectors = methods.vista_vectors(trained, trained.prompts(samples, "qa"))
    expected = methods.vista(vectors).answer(trained, prompt)
    assert found["answers"][2]["logprob"] == pytest.approx(expected.logprob, abs=1e-4)


def test_saved_edits_and_python_files_are_methods_too(seeing_command, loaded, trained, photo, tmp_path):
    edit = ScaleAttention(keys="image", gain=5.0, layers="deep")
    edit.to_json(tmp_path / "mine.json")
    python = "from seeing import methods\nMETHODS = {'a': methods.all_image_attention(5.0)}\n"
    (tmp_path / "mine.py").write_text(python)
    words = ("--method", f"{tmp_path / 'mine.json'},{tmp_path / 'mine.py'}", "--json")
    found = told(seeing_command("ask", photo[0], photo[1].question, *words))
    prompt = trained.prompt(photo[1].image, photo[1].question, template="qa")
    boosted = methods.all_image_attention(5.0).answer(trained, prompt)
    for one, answer in zip(found["answers"][1:], [trained.with_edits(edit).answer(prompt), boosted]):
        assert one["logprob"] == pytest.approx(answer.logprob, abs=1e-5)
    assert found["answers"][2]["method"].endswith("mine.py:a")
