"""`seeing profile`, `seeing probe` and the listings: what they print and write is what Python gives."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from seeing import methods, probes
from seeing.cli.probing import PROBES, read, settings
from seeing.cli.terminal import UserError
from seeing.data.plates import plates
from seeing.families import FAMILIES
from seeing.methods.recipes import RECIPES
from seeing.probes import Profile

DATA = ("--model", "plates-tiny", "--data", "plates:crowded:6")


def told(said):
    assert said.code == 0, said.err
    return json.loads(said.out)


@pytest.fixture(scope="module")
def samples():
    return plates("crowded", 6)


@pytest.fixture
def hole(tmp_path, samples):
    """A data set of six samples, of which one has no picture and one no boxes."""
    for number, sample in enumerate(samples):
        sample.image.save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").unlink()
    lines = [
        {
            "id": sample.id,
            "image": f"{number}.png",
            "question": sample.question,
            "answer": sample.answers[0],
            "bboxs": [] if number == 4 else [list(box) for box in sample.boxes],
        }
        for number, sample in enumerate(samples)
    ]
    path = tmp_path / "holes.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


# ---- profile -------------------------------------------------------------------------------------


def test_a_profile_is_that_of_python_and_opens_again(seeing_command, loaded, trained, samples, tmp_path):
    out, figure = tmp_path / "profile.json", tmp_path / "profile.html"
    words = ("--top", "0.3", "-o", out, "--figure", figure, "--json")
    found = told(seeing_command("profile", *DATA, *words))
    made = probes.profile(trained, samples, 0.3, template="qa")
    kept = Profile.load(out, trained)
    assert found["layers"] == list(made.layers) == list(kept.layers)
    assert found["n"] == made.n == 6
    np.testing.assert_allclose(found["auroc_layers"], made.auroc_layers, atol=1e-6)
    np.testing.assert_allclose(kept.auroc_heads, made.auroc_heads, atol=1e-6)
    assert found["auroc"] == pytest.approx(float(made.auroc_layers[list(made.layers)].mean()), abs=1e-6)
    heads = {(layer, head) for layer, some in made.best_heads.items() for head in some}
    assert {(layer, head) for layer, head, _ in found["heads"]} == heads
    assert kept.origin.data == "plates-crowded"
    assert "plotly" in figure.read_text()[:5000]


def test_a_profile_is_told_in_words(seeing_command, loaded, trained, samples):
    said = seeing_command("profile", *DATA, "--limit", 4)
    made = probes.profile(trained, samples[:4], template="qa")
    assert said.code == 0, said.err
    assert f"layers {', '.join(map(str, made.layers))}: AUROC" in said.out
    assert "4 samples" in said.out


def test_what_can_not_be_had_is_left_out_and_said(seeing_command, loaded, trained, samples, hole):
    words = ("--model", "plates-tiny", "--data", hole, "--json")
    said = seeing_command("profile", *words)
    found = told(said)
    kept = [sample for number, sample in enumerate(samples) if number not in (3, 4)]
    made = probes.profile(trained, kept, template="qa")
    assert found["n"] == 4
    assert sum(found["left_out"].values()) == 1  # the one without boxes
    np.testing.assert_allclose(found["auroc_layers"], made.auroc_layers, atol=1e-6)
    assert "3.png" in said.err
    assert said.err.count("left out") == 1


# ---- probe ---------------------------------------------------------------------------------------


def test_a_probe_is_that_of_python_in_every_file(seeing_command, loaded, trained, samples, tmp_path):
    paths = [tmp_path / f"evidence.{kind}" for kind in ("parquet", "csv", "json", "html")]
    outs = [word for path in paths for word in ("-o", path)]
    said = seeing_command("probe", "evidence", *DATA, *outs, "--json")
    found = told(said)
    expected = probes.evidence(trained, samples, template="qa").to_frame()
    tables = [
        pd.read_parquet(paths[0]),
        pd.read_csv(paths[1]),
        pd.read_json(paths[2]),
        pd.DataFrame(found["rows"]),
    ]
    for table in tables:
        assert list(table.columns) == list(expected.columns)
        pd.testing.assert_frame_equal(table.astype(float), expected.astype(float), atol=1e-6)
    assert found["samples"] == 6
    assert "plotly" in paths[3].read_text()[:5000]
    assert all(str(path) in said.err.replace("\n", "") for path in paths)


def test_settings_of_a_probe_are_those_of_python(seeing_command, loaded, trained, samples):
    words = ("--set", "flows=evidence->last+question->last", "--set", "window=1", "--set", "layers=2-3")
    found = told(seeing_command("probe", "knockout", *DATA, *words, "--json"))
    expected = probes.knockout(
        trained, samples, flows=["evidence->last", "question->last"], window=1, layers=(2, 3), template="qa"
    ).to_frame()
    pd.testing.assert_frame_equal(
        pd.DataFrame(found["rows"])[["flow", "layer", "logprob"]],
        expected[["flow", "layer", "logprob"]],
        atol=1e-5,
        check_dtype=False,
    )


def test_wrong_attention_tries_methods(seeing_command, loaded, trained, samples):
    words = ("--set", "layers=2+3", "--methods", "oracle_highlight,vea:layers=2+3", "--json")
    found = pd.DataFrame(told(seeing_command("probe", "wrong_attention", *DATA, *words))["rows"])
    tried = {"oracle_highlight": methods.OracleHighlight(), "vea:layers=2+3": methods.vea((2, 3))}
    expected = probes.wrong_attention(trained, samples, tried, (2, 3), template="qa").to_frame()
    assert found["method"].tolist() == expected["method"].tolist()
    np.testing.assert_allclose(found["accuracy"].astype(float), expected["accuracy"], atol=1e-6)


@pytest.mark.parametrize("name", [name for name in PROBES if name not in ("sinks", "stability")])
def test_every_probe_prints_a_table(seeing_command, loaded, name):
    narrowed = ("wrong_attention", "belief", "knockout", "patching")
    given = ("--set", "layers=2+3") if name in narrowed else ()
    said = seeing_command("probe", name, "--model", "plates-tiny", "--data", "plates:crowded:3", *given)
    assert said.code == 0, said.err
    assert name in said.out
    assert said.out.count("│") > 8


def test_probes_that_need_numbers_take_them(seeing_command, loaded):
    for name, words in (("sinks", ("dims=3", "tau=2")), ("stability", ("sizes=2+4", "draws=20"))):
        given = [word for one in words for word in ("--set", one)]
        said = seeing_command("probe", name, *DATA, *given)
        assert said.code == 0, said.err
        assert name in said.out


@pytest.mark.parametrize("name", PROBES)
def test_the_settings_of_a_probe_are_its_parameters(name):
    known = settings(name)
    assert known
    assert not {"vlm", "samples", "template", "batch_size", "progress"} & set(known)
    for key in known:
        with pytest.raises(UserError, match=f"probe {name}: "):
            read(name, [f"{key}s=1"])


# ---- listings ------------------------------------------------------------------------------------


def test_methods_are_listed_for_the_eye_and_for_machines(seeing_command):
    said = seeing_command("methods")
    found = told(seeing_command("methods", "--json"))
    assert [one["name"] for one in found] == list(RECIPES)
    for one in found:
        assert one["name"] in said.out
        assert one["paper"] is None or one["paper"].removeprefix("arXiv ") in said.out
    (vea,) = told(seeing_command("methods", "vea", "--json"))
    assert vea["needs"] == ["layers"]
    assert {one["name"]: one["default"] for one in vea["settings"]}["alpha"] == 0.5
    one = seeing_command("methods", "vea").out
    assert "the profile's layers" in one
    assert "one of nearest, reflect" in one


def test_models_are_listed_for_machines(seeing_command):
    found = told(seeing_command("models", "--json"))
    assert {one["name"] for one in found} == {family.name for family in FAMILIES}
    (one,) = told(seeing_command("models", "gemma3", "--json"))
    assert one["needs"] == ["token_type_ids"]


@pytest.mark.parametrize(
    "command", ["models", "methods", "demo", "ask", "profile", "probe", "study", "table", "report", "data"]
)
def test_every_command_has_help_with_an_example(seeing_command, command):
    said = seeing_command(command, "--help")
    assert said.code == 0
    words = said.out if command != "data" else seeing_command("data", "check", "--help").out
    assert "Example: seeing" in words


def test_help_imports_nothing_heavy():
    """A command line that loads torch to say what it can do takes seconds to say it."""
    code = """
import sys
sys.argv = ["seeing", "--help"]
from seeing.cli import main
main()
heavy = {"torch", "transformers", "pandas", "numpy", "plotly", "nnsight", "PIL"} & set(sys.modules)
print("heavy:", sorted(heavy), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert "probe" in done.stdout
    assert "heavy: []" in done.stderr
