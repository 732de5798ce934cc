"""Methods by name: what is written is what is made, and mistakes are said before anything runs."""

import hashlib
import json
import pickle
import re

import pytest
import torch
from safetensors.torch import save_file

from seeing import edits as E
from seeing import methods, probes
from seeing.correctness import exact_match
from seeing.data.plates import plates
from seeing.methods.calibrated import cuts
from seeing.methods.named import parse_methods
from seeing.methods.recipes import RECIPES
from seeing.methods.settings import BadMethod
from seeing.methods.vea import AS_ASKED
from seeing.probes import Published

#: What the embedded model needs beside a name: it is narrow, has no sinks, and knows few words.
SPELLED = {
    "var": "var:dims=0+3:tau=1.2:least=0.05:layers=all:rho=1",
    "vicrop": "vicrop:generic=what is what ?:size=28",
    "gaze_heads": "gaze_heads:when=both",
}

#: Settings at which a method is the model as it is.
NEUTRAL = (
    *("vea:alpha=1", "vea_in_pass:gain=1", "second_look:gain=1", "window_highlight:alpha=1"),
    *("pai:alpha=0:gamma=1", "var:dims=0+3:tau=1.2:p=1", "scaling_vis:weight=1"),
    *("adaptvis:low=1:high=1:threshold=0.3", "vcd:alpha=0", "m3id:decay=0", "crg:alpha=0", "agla:alpha=0"),
    *("vista:strength=0:weight=0", "gaze_heads:bias=0", "oracle:gain=1", "oracle_highlight:alpha=1"),
    *("random_region:gain=1", "random_highlight:alpha=1", "all_image:gain=1"),
)


@pytest.fixture(scope="module")
def calibration():
    return plates("calibration", 12)


@pytest.fixture(scope="module")
def profile(trained, calibration):
    return probes.profile(trained, calibration)


@pytest.fixture(scope="module")
def made(trained, profile, calibration):
    """``made(text)``: the method for the embedded model."""
    return lambda text, seed=0: one(text).build(trained, profile, seed, calibration).method


def one(text):
    (found,) = parse_methods(text)
    return found


# ---- all names -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_every_name_answers_a_batch(trained, profile, calibration, crowded, name):
    ask = one(SPELLED.get(name, name)).build(trained, profile, 0, calibration)
    batch = trained.prompts(crowded[:3], ask.template)
    answers, plain = ask.method.answer(trained, batch), trained.answer(trained.prompts(crowded[:3], "qa"))
    assert len(answers) == 3
    assert all(len(answer.ids) and answer.token_logprobs.isfinite().all() for answer in answers)
    if name not in ("base", "inst"):
        moved = [abs(answer.logprob - before.logprob) for answer, before in zip(answers, plain)]
        assert max(moved) > 1e-5


@pytest.mark.parametrize("text", NEUTRAL)
def test_neutral_settings_are_the_model_as_it_is(trained, made, crowded, text):
    prompt = trained.prompts(crowded[:2], "qa")
    method = made(text)
    if isinstance(method, methods.Vea):
        method = methods.Vea(method.layers, method.alpha, template=AS_ASKED)
    for answer, plain in zip(method.answer(trained, prompt), trained.answer(prompt)):
        assert answer.ids.tolist() == plain.ids.tolist()
        torch.testing.assert_close(answer.token_logprobs, plain.token_logprobs, atol=1e-5, rtol=1e-5)


def test_what_the_papers_inst_asks_is_the_prompt_of_vea(trained):
    asks = {text: one(text).build(trained) for text in ("base", "inst", "vea:layers=2")}
    assert {text: ask.template for text, ask in asks.items()} == {
        "base": "qa",
        "inst": "vea",
        "vea:layers=2": "qa",  # read in the plain prompt, asked in its own
    }
    assert asks["vea:layers=2"].method.template == "vea"
    assert asks["inst"].method == methods.Base()


@pytest.mark.parametrize("name", RECIPES)
def test_a_name_says_what_it_does_and_where_it_was_published(name):
    recipe = RECIPES[name]
    assert 10 < len(recipe.about) < 100
    assert recipe.paper is None or re.fullmatch(r"\d{4}\.\d{5}", recipe.paper)
    for setting in recipe.settings.values():
        assert setting.kind.says
        json.dumps(setting.as_dict())


# ---- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base", methods.Base()),
        ("pai", methods.pai()),
        ("pai:alpha=0.3", methods.pai(0.3)),
        ("pai:alpha=3e-1:gamma=1:layers=4-5", methods.pai(0.3, 1, (4, 5))),
        ("pai:layers=1-2+5:plausibility=none", methods.pai(layers=(1, 2, 5), plausibility=None)),
        ("vea:layers=2+3", methods.vea((2, 3))),
        ("vea:layers=2:alpha=0.25:denoise=false", methods.Vea((2,), 0.25, denoise=False)),
        ("vea:layers=2:authors=true", methods.vea((2,), authors=True)),
        ("vea_no_denoise:layers=2", methods.Vea((2,), denoise=False)),
        ("vea_no_smooth:layers=2", methods.Vea((2,), sigma=0.0)),
        ("vea_no_profiling", methods.Vea((0, 1, 2, 3, 4, 5))),
        ("vea_no_prompt:layers=2", methods.Vea((2,), template=AS_ASKED)),
        ("vea_in_pass:heads=1.0+2.3:gain=2", methods.vea_in_pass({1: [0], 2: [3]}, (3, 4, 5), 2.0)),
        ("vea_in_pass:heads=1.0:layers=4-", methods.vea_in_pass({1: [0]}, (4, 5))),
        ("second_look:heads=4.1+4.0", methods.second_look({4: [0, 1]})),
        ("second_look:heads=4.1:window=1x3", methods.second_look({4: [1]}, window=(1, 3))),
        ("scaling_vis:weight=2", methods.scaling_vis(2)),
        ("adaptvis:low=0.6:high=1.2:threshold=0.4", methods.adaptvis(0.6, 1.2, 0.4)),
        ("vcd:step=300:seed=7", methods.vcd(step=300, seed=7)),
        ("crg:alpha=0.5", methods.crg(alpha=0.5)),
        ("var:dims=0+3:tau=2", methods.var((0, 3), 2.0)),
        ("gaze_heads:heads=1.2:target=image", methods.gaze_heads({1: [2]}, "image")),
        (
            "attention_knockout:queries=question:layer=2:window=3",
            methods.attention_knockout("question", "image", 2, window=3),
        ),
        ("ablate_heads:heads=1.2+1.3:to=mean", methods.ablate_heads({1: [2, 3]}, "mean")),
        ("random_region:gain=8:window=3:seed=2", methods.random_region(8.0, (3, 3), 2)),
        ("oracle:gain=2", methods.oracle(2.0)),
        ("all_image", methods.all_image_attention()),
    ],
)
def test_settings_are_those_that_are_written(made, text, expected):
    assert made(text) == expected


def test_spaces_around_names_and_settings_do_not_count_and_those_in_a_text_do():
    found = parse_methods(" base , pai : alpha = 0.3,vicrop:generic = what is what ? ,")
    assert [named.text for named in found] == ["base", "pai:alpha=0.3", "vicrop:generic=what is what ?"]
    assert found[2].given == {"generic": "what is what ?"}


def test_what_is_written_reads_back_as_the_same_and_travels():
    found = parse_methods("base,vea:alpha=0.25,vea_in_pass:heads=1.0+2.3:layers=4-,vicrop:generic=what ?")
    assert parse_methods([named.text for named in found]) == found
    assert pickle.loads(pickle.dumps(found)) == found
    assert parse_methods(found) == found


def test_layers_and_heads_come_from_the_profile(made, profile):
    assert made("vea").layers == profile.layers
    assert made("vea_in_pass").heads == profile.heads(below=4)
    assert made("vea_in_pass").layers == (4, 5)
    assert made("second_look").heads == profile.heads()
    assert made("second_look:k=2").heads == profile.heads(2)
    assert made("ablate_heads") == methods.ablate_heads(profile.best_heads)


def test_what_a_method_needs_is_known_before_a_model_is():
    needs = {
        "base": set(),
        "vea": {"layers"},
        "vea:layers=2": set(),
        "second_look": {"heads"},
        "oracle": {"boxes"},
        "gaze_heads": {"heads", "boxes"},
        "gaze_heads:target=image": {"heads"},
        "var": {"samples"},
        "var:dims=3": set(),
        "vista": {"samples"},
        "adaptvis": set(),
        "adaptvis:tune=true": {"samples"},
        "random_region": set(),
    }
    assert {text: set(one(text).needs) for text in needs} == needs
    assert [one(text).needs_profile for text in ("base", "vea", "second_look", "vista")] == [
        *(False, True, True, False),
    ]


def test_random_heads_are_as_many_others_in_the_same_layers(made, profile):
    best, others = profile.best_heads, dict(made("random_heads").edits.heads)
    assert {layer: len(some) for layer, some in others.items()} == {k: len(v) for k, v in best.items()}
    assert not any(set(others[layer]) & set(best[layer]) for layer in best)
    assert len({made("random_heads:k=1:anywhere=true", seed) for seed in range(8)}) > 1


def test_the_seed_is_the_studys_unless_one_is_said(made):
    assert made("random_region", 5).seed == 5
    assert made("random_region:seed=0", 5).seed == 0


def test_a_published_profile_is_enough_where_layers_are_read(trained):
    theirs = Published("someone/model", (2, 3), trained.cfg.n_layers, 0.9, 0.8)
    assert one("vea").build(trained, theirs).method.layers == (2, 3)
    with pytest.raises(BadMethod, match=r"'second_look': .*layers only: make a profile .*heads=LAYER\.HEAD"):
        one("second_look").build(trained, theirs)
    other = Published("someone/model", (2, 3), 32, 0.9, 0.8)
    with pytest.raises(BadMethod, match=r"'vea': .*a text stack of 32"):
        one("vea").build(trained, other)


def test_adaptvis_is_tuned_on_calibration_samples(trained, calibration):
    """Against all settings of the same factors, each run by itself."""

    def right(method):
        answers = method.answer(trained, prompt)
        return sum(exact_match(answer, sample.answers) > 0 for answer, sample in zip(answers, some))

    some = calibration[:6]
    prompt = trained.prompts(some, "qa")
    method = one("adaptvis:low=0.05:high=4:tune=true").build(trained, samples=some).method
    assert (method.low, method.high) == (0.05, 4)
    every = cuts(method.confidence(trained, prompt).double())
    assert len(every) == 7
    scores = [right(methods.adaptvis(0.05, 4.0, cut)) for cut in every]
    assert right(method) == max(scores) > min(scores)


def test_adaptvis_has_its_papers_numbers_unless_it_is_to_be_tuned(trained, calibration):
    assert one("adaptvis").build(trained, samples=calibration).method == methods.adaptvis()
    with pytest.raises(BadMethod, match="calibrated on samples, and there are none"):
        one("adaptvis:tune=true").build(trained)


def test_vectors_are_found_on_samples_or_read_from_a_file(trained, calibration, tmp_path):
    vectors = methods.vista_vectors(trained, trained.prompts(calibration, "qa"))
    save_file({"vectors": vectors}, tmp_path / "v.safetensors")
    found = one("vista").build(trained, samples=calibration).method
    read = one(f"vista:vectors={tmp_path / 'v.safetensors'}").build(trained).method
    assert found == read == methods.vista(vectors)


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("veaa", "no method 'veaa' (did you mean 'vea'?); there are base, inst, vea"),
        ("base,", None),
        ("", "no method is named; there are base"),
        (" , ", "no method is named"),
        ("base,base", "base stands there twice"),
        ("pai:alpha=1,pai: alpha=1", "pai:alpha=1 stands there twice"),
        ("base:gain=2", "method 'base': no setting 'gain'; it has no settings"),
        ("pai:alhpa=2", "no setting 'alhpa' (did you mean 'alpha'?); its settings are alpha=0.2, gamma=1.1"),
        ("pai:alpha", "a setting is written key=value, got 'alpha'"),
        ("pai:alpha=", "alpha is a number; got ''"),
        ("pai:alpha=much", "alpha is a number; got 'much'"),
        ("pai:alpha=nan", "alpha is a number"),
        ("pai:alpha=1:alpha=2", "alpha is set twice"),
        ("vcd:step=1.5", "step is a whole number"),
        ("vea:denoise=perhaps", "denoise is true or false"),
        ("vea:layers=deep", "layers is layers: numbers and ranges"),
        ("vea:layers=5-4", "layers is layers: numbers and ranges"),
        ("vea:layers=0-99999999999", "layers is layers: numbers and ranges"),
        ("vea:boundary=mirror", "boundary is one of nearest, reflect"),
        ("second_look:heads=12", "heads is heads as LAYER.HEAD, such as 12.3+14.5"),
        ("second_look:window=big", "window is a window of tokens, ROWSxCOLUMNS"),
        ("var:dims=a", "dims is whole numbers, such as 0+3"),
        ("nowhere.json", "method 'nowhere.json': edits are read from"),
        ("nowhere.py", "can't read 'nowhere.py': No such file"),
    ],
)
def test_a_mistake_is_said_before_a_model_is_there(text, words):
    if words is None:
        assert parse_methods(text)
        return
    with pytest.raises(BadMethod) as error:
        parse_methods(text)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("scaling_vis:weight=0", "positive number"),
        ("vea:alpha=7", "alpha"),
        ("vea:sigma=9", "sigma"),
        ("vea:layers=99", "no layer 99: the text stack has layers 0-5"),
        ("second_look:heads=4.9", "no head 9 in layer 4"),
        ("second_look:gain=-1", "gain"),
        ("second_look:layers=9", "no layer 9"),
        ("vea_in_pass:heads=4.0:layers=3", "layer"),
        ("vea_in_pass:layers=0-2", "it reads heads before layer 0"),
        ("oracle:gain=-1", "gain"),
        ("oracle_highlight:alpha=-1", "alpha"),
        ("random_region:gain=-2", "gain"),
        ("vcd:step=5000", "step"),
        ("adaptvis:threshold=2", "probability"),
        ("agla:keep=2", "share"),
        ("attention_knockout:layer=9", "no layer 9"),
        ("vista:vectors=nowhere.safetensors", "nowhere.safetensors"),
    ],
)
def test_numbers_that_a_method_refuses_are_said_when_it_is_made(trained, profile, text, words):
    with pytest.raises(BadMethod) as error:
        one(text).build(trained, profile)
    assert str(error.value).startswith(f"method '{text}': ")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("vea", "it reads the layers of a profile, and there is none: make one (seeing profile"),
        ("second_look", "or say heads=14.3+15.0"),
        ("vista", "calibrated on samples, and there are none"),
        ("var", "calibrated on samples, and there are none"),
    ],
)
def test_what_is_not_there_is_said_with_what_to_do(trained, text, words):
    with pytest.raises(BadMethod) as error:
        one(text).build(trained)
    assert words in str(error.value)


def test_a_model_without_sinks_has_none_for_var(trained, calibration):
    with pytest.raises(BadMethod, match=r"method 'var': no dimension"):
        one("var").build(trained, samples=calibration)


# ---- edits and Python files ------------------------------------------------------------------------


@pytest.fixture
def edits():
    return E.ScaleAttention(keys="image", gain=3.0, layers="deep") + E.Steer(
        "text.2.resid_post", torch.ones(128)
    )


def test_saved_edits_are_a_method_and_go_along_whole(trained, crowded, tmp_path, edits):
    path = tmp_path / "mine.json"
    edits.to_json(path)
    named = pickle.loads(pickle.dumps(one(str(path))))
    for file in tmp_path.iterdir():
        file.unlink()
    prompt = trained.prompt(crowded[0])
    ask = named.build(trained)
    assert (named.text, ask.template) == (str(path), "qa")
    answer, expected = ask.method.answer(trained, prompt), trained.with_edits(edits).answer(prompt)
    assert answer.ids.tolist() == expected.ids.tolist()
    torch.testing.assert_close(answer.token_logprobs, expected.token_logprobs)
    kept = json.loads(json.dumps(named.as_dict()))
    assert E.from_json(json.dumps(kept["edits"])).to_json() == edits.to_json()


def test_edits_that_do_not_fit_the_model_are_refused(trained, tmp_path):
    path = tmp_path / "mine.json"
    E.AblateHeads({50: [0]}).to_json(path)
    with pytest.raises(BadMethod, match=r"mine\.json': no layer 50"):
        one(str(path)).build(trained)


PYTHON = '''
from dataclasses import dataclass
from seeing import edits as E, methods


@dataclass(frozen=True)
class Last(methods.Method):
    """Traces by itself, which needs this file's source."""

    about = "mine"

    def answer(self, vlm, prompt):
        with vlm.trace(prompt):
            logits = vlm.logits.save()
        self.seen.append(tuple(logits.shape))
        return vlm.answer(prompt)

    seen = []


METHODS = {
    "own": Last(),
    "boost": E.ScaleAttention(keys="image", gain=2.0),
    "sized": lambda vlm: E.AblateHeads({vlm.cfg.n_layers - 1: [0]}),
    "read": lambda vlm, profile: methods.vea(profile),
}
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(PYTHON)
    return path


def test_a_python_file_gives_its_methods(trained, crowded, profile, file):
    found = parse_methods(f"base,{file}")
    assert [named.text for named in found[1:]] == [
        f"{file}:{name}" for name in ("own", "boost", "sized", "read")
    ]
    assert one(f"{file}:sized") == found[3]
    assert [named.needs_profile for named in found] == [False, False, False, False, True]
    assert found[2].as_dict() == {
        "file": "mine.py",
        "method": "boost",
        "sha256": hashlib.sha256(PYTHON.encode()).hexdigest(),
    }
    travelled = pickle.loads(pickle.dumps(found))
    file.unlink()
    own, boost, sized, read = (named.build(trained, profile).method for named in travelled[1:])
    assert boost.edits == E.ScaleAttention(keys="image", gain=2.0)
    assert sized.edits == E.AblateHeads({5: [0]})
    assert read == methods.vea(profile.layers)
    prompt = trained.prompts(crowded[:2])
    assert [str(answer) for answer in own.answer(trained, prompt)] == [
        str(one) for one in trained.answer(prompt)
    ]
    assert own.seen[-1][0] == 2
    with pytest.raises(BadMethod, match=r"takes \(vlm, profile\), and there is no profile"):
        travelled[4].build(trained)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("METHODS = {}", "defines METHODS as {}; expected METHODS = {"),
        ("x = 1", "defines METHODS as None"),
        ("METHODS = {\n  'a': 1 +\n}", "line 3: SyntaxError"),
        ("import sys\n\n1 / 0\n", "line 3: ZeroDivisionError: division by zero"),
        ("METHODS = {'a': 7}", "a method is a Method, edits, or a function (vlm, profile); got 7"),
        ("METHODS = {'a': lambda: 1}", "a method is a Method, edits, or a function (vlm, profile)"),
    ],
)
def test_a_python_file_that_gives_none_says_where(trained, tmp_path, text, words):
    path = tmp_path / "wrong.py"
    path.write_text(text)
    with pytest.raises(BadMethod) as error:
        [named.build(trained) for named in parse_methods(str(path))]
    assert words in str(error.value)
    assert "wrong.py" in str(error.value)


def test_a_function_that_fails_says_its_line(trained, tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text("def a(vlm):\n    return vlm.nothing\n\nMETHODS = {'a': a, 'b': lambda vlm: 3}\n")
    a, b = parse_methods(str(path))
    with pytest.raises(BadMethod, match=r"wrong\.py, line 2: AttributeError"):
        a.build(trained)
    with pytest.raises(BadMethod, match=r"its function gave 3; expected a Method or edits"):
        b.build(trained)
    with pytest.raises(BadMethod, match=r"defines no method 'c'; it has a, b"):
        parse_methods(f"{path}:c")


def test_methods_are_given_from_python_by_name(trained, profile):
    given = {
        "mine": E.ScaleAttention(keys="image", gain=2.0),
        "vea": methods.vea([2]),
        "heads": lambda vlm, profile: methods.second_look(profile),
        "strong": "pai:alpha=0.5",
    }
    found = parse_methods(given)
    assert [named.text for named in found] == ["mine", "vea", "heads", "pai:alpha=0.5"]
    assert [named.needs_profile for named in found] == [False, False, True, False]
    mine, vea, heads, strong = (named.build(trained, profile).method for named in found)
    assert mine.edits == given["mine"]
    assert vea == given["vea"]
    assert heads == methods.second_look(profile)
    assert strong == methods.pai(0.5)
    assert all(json.dumps(named.as_dict()) for named in found)
    with pytest.raises(BadMethod, match="a text without commas"):
        parse_methods({"a,b": methods.Base()})


def test_vea_without_its_prompt_asks_as_the_base_was_asked(trained, crowded):
    picture, question = crowded[0].image, crowded[0].question
    for template in ("vea", "{question}"):
        prompt = trained.prompt(picture, question, template=template)
        edited, asked = one("vea_no_prompt:layers=2").build(trained).method.shown(trained, prompt)
        assert edited.shown(asked).turns[0].template == template
    edited, asked = one("vea:layers=2").build(trained).method.shown(trained, prompt)
    assert edited.shown(asked).turns[0].template == "vea"
