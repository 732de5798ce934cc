"""Random lists of edits against a plain Llama written out: a loop over layers, every edit by its formula.

The reference holds all rows at once, those of the prompt and those of the decoded tokens, so that an edit
"at step t" is an edit of some rows. Of a selection it knows a tree of tuples, not the selector made of it.
"""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny.drawn import ANY, BOXES, HEADS, ROWS, SAVED, STEPS, Run, row_edits
from tiny.hand import close
from tiny.llama import Reference

from seeing import edits as E
from seeing.data.plates import plates

QUESTIONS = ("what digit is on the red square ?", "what digit is on the blue circle on the red square ?")
SIZES = ((100, 84), (76, 112))
GENERATED = dict(
    max_new_tokens=STEPS,
    min_new_tokens=STEPS,
    do_sample=False,
    suppress_tokens=[4],
    output_logits=True,
    return_dict_in_generate=True,
)
RANDOM = settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module")
def prompt(random):
    """Two rows, one padded, pictures of other sizes."""
    pictures = [
        plate.image.resize(size, Image.Resampling.BICUBIC) for plate, size in zip(plates("crowded", 2), SIZES)
    ]
    made = random.prompts(list(zip(pictures, QUESTIONS)))
    assert not made.inputs["attention_mask"].all()
    return made


@pytest.fixture(scope="module")
def run(prompt):
    spans = {name: prompt.spans.mask(name) for name in ("image", "question", "template", "text")}
    box = torch.zeros_like(spans["image"])
    for row, grid in enumerate(prompt.grids):
        box[row, grid.positions[torch.as_tensor(grid.labels(BOXES))]] = True
    return Run({**spans, "box": box}, prompt.length)


@pytest.fixture(scope="module")
def embedded(bare, prompt):
    """What goes into the bare model's first layer."""
    kept = []
    hook = bare.model.model.language_model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: kept.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        bare.model(**prompt.inputs)
    hook.remove()
    return kept[0]


def reference(bare, embedded, prompt, run, drawn, ids):
    """(batch, row, d_vocab) over the prompt and all decoded tokens but the last."""
    decoded = bare.model.get_input_embeddings()(ids[:, :-1])
    real = torch.nn.functional.pad(prompt.inputs["attention_mask"].bool(), (0, STEPS - 1), value=True)
    with torch.no_grad():
        return Reference(bare)(torch.cat([embedded, decoded], 1), real, run, drawn)


def generated(vlm, prompt):
    with torch.no_grad(), vlm.generate(prompt, **GENERATED) as tracer:
        result = tracer.result.save()
    return result.sequences[:, -STEPS:], torch.stack(result.logits, 1)


# ---- what holds --------------------------------------------------------------------------------------------


def test_the_reference_is_the_bare_model(bare, embedded, prompt, run):
    ids = torch.tensor([[7, 8, 9]] * 2)
    found = reference(bare, embedded, prompt, run, [], ids)[:, : prompt.length]
    real = prompt.inputs["attention_mask"].bool()
    with torch.no_grad():
        close(found[real], bare.model(**prompt.inputs).logits[real], 2e-5)


@RANDOM
@given(drawn=st.lists(ANY, min_size=1, max_size=5))
def test_random_edits_are_the_references(random, bare, embedded, prompt, run, drawn):
    """The prompt pass in every row, and three steps of decoding."""
    edited = random.with_edits(E.Edits(tuple(one.edit for one in drawn)))
    ids, logits = generated(edited, prompt)
    expected = reference(bare, embedded, prompt, run, drawn, ids)
    close(logits, expected[:, prompt.length - 1 :])
    real = prompt.inputs["attention_mask"].bool()
    close(edited.cache(prompt, "logits")["logits"][real], expected[:, : prompt.length][real])


@pytest.mark.parametrize("kind", ["Bias", "Temperature", "Amplify", "MapScores"])
def test_what_is_cut_stays_cut(random, prompt, kind):
    cut = E.Knockout(keys="image")
    # A cosine of −∞ is no number.
    behind = E.MapScores(torch.cos, keys="image") if kind == "MapScores" else ROWS[kind][0]("image", 2.0, {})
    alone, both = (random.with_edits(some).cache(prompt, "logits")["logits"] for some in (cut, cut + behind))
    assert torch.equal(alone, both)


@settings(RANDOM, max_examples=15)
@given(data=st.data())
def test_edits_of_different_heads_commute(random, prompt, data):
    """Whatever they do, wherever they do it: in any order the same, bit for bit."""
    drawn = [data.draw(row_edits(heads={layer: [head] for layer in (0, 3, 5)})) for head in range(HEADS)]
    edits = [one.edit for one in drawn]
    straight, reverse = (
        random.with_edits(E.Edits(tuple(some))).cache(prompt, "logits")["logits"]
        for some in (edits, edits[::-1])
    )
    assert torch.equal(straight, reverse)


@RANDOM
@given(drawn=st.lists(row_edits(), min_size=2, max_size=4))
def test_a_repr_is_the_expression_that_made_it(drawn):
    edits = sum(one.edit for one in drawn if not isinstance(one.edit, (E.MapScores, E.MapPattern)))
    if edits == 0:
        return
    again = eval(repr(edits), vars(E))
    again, edits = (E.Edits() + one for one in (again, edits))
    assert again == edits
    assert hash(again) == hash(edits)
    assert replace(edits, edits=edits.edits[:-1]) != edits


@RANDOM
@given(drawn=st.lists(SAVED, min_size=1, max_size=4))
def test_edits_come_back_from_json_as_they_were(drawn):
    edits = E.Edits(tuple(one.edit for one in drawn))
    again = E.from_json(edits.to_json())
    assert again == edits
    assert hash(again) == hash(edits)
    assert repr(again) == repr(edits)


JUNK = st.sampled_from([None, True, -7, 1e400, "nothing", "", [], {}, [None], {"kind": "Path"}, [[1]], ["a"]])


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Every place in a document."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        found += places(part, (*path, key))
    return found


@RANDOM
@given(drawn=st.lists(SAVED, min_size=1, max_size=2), data=st.data())
def test_broken_json_raises_bad_edit(drawn, data):
    """Cut off, or with junk in any place: `BadEdit`, unless it means an edit there too."""
    text = sum(one.edit for one in drawn).to_json()
    with pytest.raises(E.BadEdit):
        E.from_json(text[: data.draw(st.integers(1, len(text) - 1))])
    document = json.loads(text)
    *path, last = data.draw(st.sampled_from(places(document)))
    inner = document
    for key in path:
        inner = inner[key]
    inner[last] = data.draw(JUNK)
    broken = json.dumps(document)
    try:
        found = E.from_json(broken)
    except E.BadEdit:
        return
    assert isinstance(found, (E.Edit, E.Edits))
    assert E.from_json(found.to_json()) == found
