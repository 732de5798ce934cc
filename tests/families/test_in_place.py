"""Edits in place, in every family: they do what an assignment does, or raise."""

import pytest
import torch

import seeing
from seeing.families import FamilyContractError
from seeing.prompt import BadPrompt
from seeing.sites import LostEdit

GENERATED = dict(
    max_new_tokens=3, min_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
)


@pytest.fixture(scope="module")
def prompt(case):
    return case.prompt()


@pytest.fixture(scope="module")
def layer(case):
    return next(iter(case.vlm.sites.kernels["text"]))


@pytest.mark.parametrize("between", ["attn.v", "attn.z", "resid_post"])
def test_an_edit_in_place_that_comes_too_late_raises(case, prompt, layer, between):
    def late():
        with torch.no_grad(), case.vlm.trace(prompt):
            view = case.vlm.text[layer]
            pattern = view.attn.pattern
            *path, last = between.split(".")
            getattr(view.attn if path else view, last)
            pattern[:, 1, -1] = 0

    with pytest.raises(LostEdit, match=r"attn.pattern' was edited in place after"):
        late()
    with torch.no_grad():
        assert torch.equal(case.vlm.cache(prompt, "logits")["logits"], case.model(**prompt.inputs).logits)


def test_a_clone_may_be_edited_at_any_time(case, prompt, layer):
    with torch.no_grad(), case.vlm.trace(prompt):
        pattern = case.vlm.text[layer].attn.pattern.clone()
        logits = case.vlm.logits.save()
        pattern[:, 1, -1] = 0
    assert torch.equal(logits, case.vlm.cache(prompt, "logits")["logits"])


@pytest.mark.parametrize("part", ["k", "v"])
def test_keys_and_values_in_place_are_keys_and_values_assigned(case, prompt, layer, part):
    """Also for the tokens decoded after, whose cache is not edited by either."""
    attn = case.vlm.text[layer].attn
    with torch.no_grad(), case.vlm.generate(prompt, **GENERATED) as tracer:
        getattr(attn, part)[:, -6:] *= 0.5
        in_place = tracer.result.save()
    with torch.no_grad(), case.vlm.generate(prompt, **GENERATED) as tracer:
        value = getattr(attn, part).clone()
        value[:, -6:] *= 0.5
        setattr(attn, part, value)
        assigned = tracer.result.save()
    for one, other in zip(in_place.logits, assigned.logits):
        assert torch.equal(one, other)


def test_a_tower_layers_input_in_place_is_its_input_assigned(case, prompt):
    """Whatever features the model kept of the layers before."""
    for layer in range(case.vlm.cfg.vision.n_layers):
        view = case.vlm.vision[layer]
        with torch.no_grad(), case.vlm.trace(prompt):
            view.resid_pre[...] *= 0.5
            in_place = case.vlm.logits.save()
        with torch.no_grad(), case.vlm.trace(prompt):
            view.resid_pre = view.resid_pre * 0.5
            assigned = case.vlm.logits.save()
        assert torch.equal(in_place, assigned)


def test_the_tower_of_one_invoke_is_not_the_others(case, picture):
    """Cut to the invoke that asks, or refused: never everyone's."""
    one = case.prompt()
    two = case.vlm.prompt(picture(50, 90, 1), "what digit is on the blue circle ?")
    alone = case.vlm.cache(two, "logits")["logits"][:, -1]
    try:
        with torch.no_grad(), case.vlm.trace() as tracer:
            with tracer.invoke(one):
                case.vlm.vision[0].attn.z = case.vlm.vision[0].attn.z * 0
            with tracer.invoke(two):
                logits = case.vlm.logits[:, -1].save()
    except ValueError as error:
        assert "holds the pictures of all invokes" in str(error)  # noqa: PT017
        return
    torch.testing.assert_close(logits, alone, rtol=0, atol=2e-5 * float(alone.abs().max()))


def test_rows_with_other_numbers_of_pictures_are_one_by_one_or_refused(case, picture):
    rows = [(picture(), "why ?"), ([picture(), picture(50, 90, 1)], "why is it so ?")]
    if case.vlm.family.cross_grid(case.model, case.processor, (76, 52), 0) is not None:
        with pytest.raises(BadPrompt, match=r"have \[1, 2\] pictures"):
            case.vlm.prompts(rows)
        return
    if case.name == "llava":
        rows = [(images, "what digit is on the red square ?") for images, _ in rows]
    found = case.vlm.cache(case.vlm.prompts(rows), "logits")["logits"][:, -1]
    for row, (images, question) in enumerate(rows):
        expected = case.vlm.cache(case.vlm.prompt(images, question), "logits")["logits"][0, -1]
        torch.testing.assert_close(
            found[row], expected, rtol=0, atol=5e-5 * max(1.0, float(expected.abs().max()))
        )


def test_pictures_of_any_size_work_or_say_why(case, picture):
    for size in [(1, 1), (1, 10), (200, 20), (9, 120)]:
        try:
            prompt = case.vlm.prompt(picture(*size), "what digit is on the red square ?")
        except (BadPrompt, FamilyContractError) as error:
            assert str(size[0]) in str(error)  # noqa: PT017
            continue
        assert case.vlm.cache(prompt, "logits")["logits"].isfinite().all()


def test_another_family_is_refused_by_name(case):
    other = "gemma3" if case.vlm.cfg.family != "gemma3" else "mllama"
    with pytest.raises(FamilyContractError):
        seeing.load((case.model, case.processor), family=other)
