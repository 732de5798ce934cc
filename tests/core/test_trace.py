"""nnsight still works: what its traces can do, a VLM's can, and the names fit in.

The truth is the bare model of the same weights: run again over the whole sequence, hooked by torch, or
differentiated by autograd.
"""

import pytest
import torch
from nnsight.intervention.interleaver import OutOfOrderError

from seeing.prompt import BadPrompt

LONGER = "what digit is on the red square on the blue circle ?"


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@torch.no_grad()
def bare(tiny, inputs, kernel="sdpa", **kwargs):
    return tiny().twin(kernel)(**inputs, **kwargs)


def followed_by(prompt, ids):
    """The model's inputs for the prompt and the tokens behind it, as one sequence."""
    ids = torch.cat([prompt.inputs["input_ids"], ids], 1)
    mask = torch.nn.functional.pad(
        prompt.inputs["attention_mask"], (0, ids.shape[1] - prompt.length), value=1
    )
    return dict(prompt.inputs, input_ids=ids, attention_mask=mask)


@pytest.fixture
def ran(vlm):
    """The layers of the text stack that ran, in order."""
    found = []
    hooks = [
        layer.register_forward_pre_hook(lambda *_, i=i: found.append(i))
        for i, layer in enumerate(vlm._module.model.language_model.layers)
    ]
    yield found
    for hook in hooks:
        hook.remove()


# -- modules and inputs ------------------------------------------------------------------------------


def test_modules_are_read_as_in_plain_nnsight(tiny, vlm, prompt, clean):
    """By their path in the model, beside a name of the same pass."""
    kept = {}
    layer = tiny().twin("sdpa").model.language_model.layers[1]
    hook = layer.self_attn.o_proj.register_forward_hook(lambda _, args, out: kept.update({"in": args[0]}))
    logits = bare(tiny, prompt.inputs).logits
    hook.remove()
    with torch.no_grad(), vlm.trace(prompt):
        stream = vlm.text[0].resid_post.save()
        z = vlm.model.language_model.layers[1].self_attn.o_proj.input.save()
        named = vlm.text[1].attn_out.save()
        raw = vlm.model.language_model.layers[2].input.save()
        head = vlm.lm_head.output.save()
    assert stream.shape == raw.shape == named.shape
    assert torch.equal(z, kept["in"])
    assert torch.equal(head, logits)


def test_modules_are_written_as_in_plain_nnsight(tiny, vlm, prompt, clean):
    with torch.no_grad(), vlm.trace(prompt):
        vlm.model.language_model.layers[1].mlp.output[:] = 0
        logits = vlm.lm_head.output.save()
    expected = tiny().reference(prompt, {"text.1.mlp_out": torch.zeros_like})["logits"]
    close(logits, expected)
    assert (logits - bare(tiny, prompt.inputs).logits).abs().max() > 1e-2


def test_the_bare_models_keywords_are_taken_too(tiny, vlm, prompt):
    with torch.no_grad(), vlm.trace(**prompt.inputs):
        pattern = vlm.text[2].attn.pattern.clone().save()
        logits = vlm.logits.save()
    expected = tiny().eager(prompt)
    assert torch.equal(logits, bare(tiny, prompt.inputs).logits)
    close(pattern, expected.attentions[2])


def test_keywords_beside_a_prompt_reach_the_model(vlm, prompt):
    with torch.no_grad(), vlm.trace(prompt, logits_to_keep=2):
        logits = vlm.logits.save()
    assert logits.shape == (1, 2, 31)
    close(logits, vlm.cache(prompt, "logits")["logits"][:, -2:])


# -- several prompts in one trace --------------------------------------------------------------------


def test_two_invokes_are_one_padded_batch(tiny, vlm, prompt, picture, clean):
    """Each invoke sees its own row, and an edit in one does not reach the other."""
    other = vlm.prompt(picture(50, 90, seed=1), LONGER)
    shift = other.length - prompt.length
    assert shift == 4
    with torch.no_grad(), vlm.trace() as tracer:
        with tracer.invoke(prompt):
            first = vlm.text[2].attn.pattern.clone().save()
            vlm.text[3].resid_post = vlm.text[3].resid_post * 0
            silenced = vlm.logits.save()
        with tracer.invoke(other):
            second = vlm.text[2].attn.pattern.clone().save()
            logits = vlm.logits.save()
    expected = [tiny().eager(one) for one in (prompt, other)]
    assert (first[..., shift:, :shift] == 0).all()
    close(first[..., shift:, shift:], expected[0].attentions[2])
    close(second, expected[1].attentions[2])
    close(logits, expected[1].logits, 1e-5 * float(expected[1].logits.abs().max()))
    alone = tiny().reference(prompt, {"text.3.resid_post": torch.zeros_like})["logits"]
    close(silenced[:, shift:], alone)


def test_an_edit_of_rows_in_one_invoke_leaves_the_other_alone(vlm, prompt, picture):
    other = vlm.prompt(picture(50, 90, seed=1), LONGER)
    turns = [(one.turns[0].images[0], one.turns[0].question) for one in (prompt, other)]
    plain = vlm.cache(vlm.prompts(turns), "logits")["logits"]
    with torch.no_grad(), vlm.trace() as tracer:
        with tracer.invoke(prompt):
            vlm.text[1].attn.pattern[:, 1, -1] = 0
            edited = vlm.logits.save()
        with tracer.invoke(other):
            untouched = vlm.logits.save()
    assert torch.equal(untouched, plain[1:])
    assert (edited[:, -1] - plain[:1, -1]).abs().max() > 1e-3


def test_prompts_and_raw_inputs_do_not_mix(vlm, prompt, clean):
    with pytest.raises(BadPrompt, match="in all of its invokes, or in none"), vlm.trace() as tracer:
        with tracer.invoke(prompt):
            vlm.logits.save()
        with tracer.invoke(**prompt.inputs):
            vlm.logits.save()


# -- generation --------------------------------------------------------------------------------------


def test_generating_directly_is_the_bare_models_generate(tiny, vlm, prompt, clean):
    found = vlm.generate(prompt, max_new_tokens=3)
    expected = tiny().twin("sdpa").generate(**prompt.inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(found, expected)
    assert found.shape == (1, prompt.length + 3)


def test_every_step_is_read_and_equals_a_run_over_the_whole_sequence(tiny, vlm, prompt, clean):
    with torch.no_grad(), vlm.generate(prompt, max_new_tokens=3) as tracer:
        rows, streams, logits = [].save(), [].save(), [].save()
        for _step in tracer.iter[:3]:
            rows.append(vlm.text[2].attn.pattern[:, :, -1].clone())
            streams.append(vlm.text[3].resid_post[:, -1].clone())
            logits.append(vlm.logits[:, -1].clone())
        ids = tracer.result.save()
    new = ids[:, prompt.length :]
    assert torch.equal(torch.stack([step.argmax(-1) for step in logits], 1), new)
    for step in range(3):
        full = bare(
            tiny,
            followed_by(prompt, new[:, :step]),
            "eager",
            output_attentions=True,
            output_hidden_states=True,
        )
        close(rows[step], full.attentions[2][:, :, -1])
        close(logits[step], full.logits[:, -1])
        normed = tiny().twin("eager").model.language_model.norm(streams[step])
        close(normed, full.hidden_states[-1][:, -1])


def test_a_write_in_one_step_of_a_generation_acts_in_that_step(tiny, vlm, prompt, clean):
    """Step 1's row is edited; the run over the whole sequence has that one row edited too."""
    with torch.no_grad(), vlm.generate(prompt, max_new_tokens=3) as tracer:
        logits = [].save()
        for step in tracer.iter[:3]:
            if step == 1:
                vlm.text[2].attn.pattern[:, 1] = 0
            logits.append(vlm.logits[:, -1].clone())
        ids = tracer.result.save()

    def fn(pattern):
        pattern = pattern.clone()
        pattern[:, 1, prompt.length] = 0
        return pattern

    new = ids[:, prompt.length :]
    for step in range(3):
        inputs = followed_by(prompt, new[:, :step])
        reference = tiny().reference(Inputs(inputs), {"text.2.attn.pattern": fn} if step else None)
        close(logits[step], reference["logits"][:, -1])
    plain = bare(tiny, followed_by(prompt, new[:, :1])).logits[:, -1]
    assert (logits[1] - plain).abs().max() > 1e-3


class Inputs:
    """What has inputs, for the reference."""

    def __init__(self, inputs):
        self.inputs = inputs


# -- gradients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["text.1.resid_post", "text.2.attn.z", "vision.1.resid_post"])
def test_a_gradient_through_a_trace_is_autograds(tiny, vlm, prompt, name):
    """∂ logit / ∂ activation, against autograd through the bare model with a torch hook."""
    with vlm.trace(prompt):
        value = vlm.sites[name].read()
        value.retain_grad()
        kept = value.save()
        logit = vlm.logits[0, -1, 5].save()
    logit.backward()
    vlm._module.zero_grad()

    model = tiny().twin("eager")
    holder = {}
    module, before = {
        "text.1.resid_post": (model.model.language_model.layers[1], False),
        "text.2.attn.z": (model.model.language_model.layers[2].self_attn.o_proj, True),
        "vision.1.resid_post": (model.model.vision_tower.encoder.layers[1], False),
    }[name]
    if before:
        hook = module.register_forward_pre_hook(lambda _, args: holder.update(value=args[0]))
    else:
        hook = module.register_forward_hook(lambda _, args, out: holder.update(value=out))
    (expected,) = torch.autograd.grad(model(**prompt.inputs).logits[0, -1, 5], holder["value"])
    hook.remove()
    assert expected.abs().max() > 1e-3
    close(kept.grad.reshape(expected.shape), expected, 1e-5 * max(1.0, float(expected.abs().max())))


def test_a_gradient_goes_through_an_edit_of_the_pattern(vlm, prompt):
    """The weight of one edge, against a finite difference of the same edit."""

    def logit(weight):
        with vlm.trace(prompt):
            vlm.text[2].attn.pattern[:, 1, -1, 5] = weight
            logit = vlm.logits[0, -1, 5].save()
        return logit

    weight = torch.tensor(0.3, requires_grad=True)
    (found,) = torch.autograd.grad(logit(weight), weight)
    with torch.no_grad():
        step = torch.tensor(0.02)
        expected = (logit(weight + step) - logit(weight - step)) / (2 * step)
    assert expected.abs() > 1e-2
    assert (found - expected).abs() < 2e-3 * max(1.0, float(expected.abs()))


def test_no_grad_outside_is_respected(vlm, prompt):
    with torch.no_grad(), vlm.trace(prompt):
        logits = vlm.logits.save()
    assert not logits.requires_grad


# -- copies, stopping, failing -----------------------------------------------------------------------


def test_an_edited_copy_of_nnsights_own(tiny, vlm, prompt, clean):
    """`vlm.edit()` makes a VLM whose every run is edited; the original is not."""
    with vlm.edit() as (_, copy):
        copy.text[2].resid_mid = copy.text[2].resid_mid * 0.5
    assert type(copy) is type(vlm)
    expected = tiny().reference(prompt, {"text.2.resid_mid": lambda value: value * 0.5})["logits"]
    with torch.no_grad(), copy.trace(prompt):
        logits = copy.logits.save()
    close(logits, expected)
    assert torch.equal(copy.cache(prompt, "logits")["logits"], logits)
    assert not torch.equal(vlm.cache(prompt, "logits")["logits"], logits)


def test_a_stopped_trace_runs_no_further(vlm, prompt, ran, clean):
    with torch.no_grad(), vlm.trace(prompt) as tracer:
        value = vlm.text[1].resid_post.save()
        tracer.stop()
    assert ran == [0, 1]
    assert torch.equal(value, vlm.cache(prompt, "text.1.resid_post")["text.1.resid_post"])


@pytest.mark.parametrize("where", ["resid_post", "attn"])
def test_an_error_in_a_block_leaves_the_model_clean(tiny, vlm, prompt, where):
    """Between two edits in place, of what the model holds and of what is written back later."""
    before = bare(tiny, prompt.inputs).logits
    with pytest.raises(ZeroDivisionError), torch.no_grad(), vlm.trace(prompt):
        if where == "attn":
            vlm.text[1].attn.pattern[:] = 0
        else:
            vlm.text[1].resid_post[:] = 0
        1 / 0  # noqa: B018
    for _ in range(2):
        with torch.no_grad(), vlm.trace(prompt):
            logits = vlm.logits.save()
        assert torch.equal(logits, before)


def test_an_error_in_a_generation_leaves_the_model_clean(vlm, prompt, clean):
    expected = vlm.generate(prompt, max_new_tokens=3)
    with pytest.raises(ZeroDivisionError), vlm.generate(prompt, max_new_tokens=3) as tracer:
        for step in tracer.iter[:3]:
            vlm.text[1].resid_post[:] = 0
            if step == 1:
                1 / 0  # noqa: B018
    assert torch.equal(vlm.generate(prompt, max_new_tokens=3), expected)


@pytest.mark.parametrize(
    ("first", "second"),
    [("text.2.resid_post", "text.1.resid_post"), ("text.1.attn.z", "text.1.attn.q"),
     ("text.2.resid_post", "text.2.attn.pattern"), ("text.0.attn.q", "vision.0.resid_post")],
)  # fmt: skip
def test_reading_backwards_raises(vlm, prompt, first, second, clean):
    with pytest.raises(OutOfOrderError, match="already ran past it"), torch.no_grad(), vlm.trace(prompt):
        vlm.sites[first].read().save()
        vlm.sites[second].bound().save()


# -- views -------------------------------------------------------------------------------------------


def test_views_answer_what_they_have_without_running(vlm):
    """Part of a name is there or not; looking asks the model for nothing."""
    assert hasattr(vlm.text[0], "attn")
    assert hasattr(vlm.text[0], "mlp")
    assert not hasattr(vlm.text[0], "cross_attn")
    assert not hasattr(vlm.projector, "middle")
    assert {*dir(vlm.text)} == {"embed", "0", "1", "2", "3", "norm"}
    assert {*dir(vlm.vision)} == {"embed", "0", "1", "2"}
    assert "resid_pre" in dir(vlm.text[0])
    assert "attn" in repr(vlm.text[0])
    assert "norm" in repr(vlm.text)


def test_a_name_is_there_in_a_trace(vlm, prompt):
    found = []
    with torch.no_grad(), vlm.trace(prompt):
        found += [hasattr(vlm.text[0], "resid_post"), hasattr(vlm.text[0], "resid_end")]
        logits = vlm.logits.save()
    assert found == [True, False]
    assert torch.equal(logits, vlm.cache(prompt, "logits")["logits"])
