"""nnsight underneath: its traces, invokes, loops, edits and gradients, by name and by module."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from nnsight.intervention.interleaver import OutOfOrderError

import seeing
from seeing import edits as E
from seeing.prompt import BadPrompt

QUESTION = "what digit is on the red square ?"


def close(found, expected, atol=1e-5):
    scale = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=atol * scale)


# -- one pass ----------------------------------------------------------------------------------------


def test_modules_are_there_beside_the_names(vlm, prompt, clean):
    with torch.no_grad(), vlm.trace(prompt):
        by_module = vlm.model.language_model.layers[1].output.clone().save()
        by_name = vlm.text[2].resid_pre.clone().save()
        head = vlm.lm_head.output.save()
    found = vlm.cache(prompt, ["text.1.resid_post", "logits"])
    assert torch.equal(by_module, found["text.1.resid_post"])
    assert torch.equal(by_name, by_module)
    assert torch.equal(head, found["logits"])


def test_a_trace_takes_the_bare_models_own_inputs(tiny, vlm, prompt):
    """`prompt.inputs` are what the untouched model takes, and a trace takes them as they are."""
    with torch.no_grad(), vlm.trace(**prompt.inputs):
        logits = vlm.logits.save()
    with torch.no_grad():
        assert torch.equal(logits, tiny().twin("sdpa")(**prompt.inputs).logits)


def test_a_forward_without_a_block(tiny, vlm, prompt):
    with torch.no_grad():
        expected = tiny().twin("sdpa")(**prompt.inputs).logits
        assert torch.equal(vlm.trace(prompt, trace=False).logits, expected)
        assert torch.equal(vlm(**prompt.inputs).logits, expected)


def test_a_module_may_be_called_inside_a_trace(vlm, prompt):
    """The logit lens, by nnsight's own means."""
    with torch.no_grad(), vlm.trace(prompt):
        lens = vlm.lm_head(vlm.model.language_model.norm(vlm.text[3].resid_post)).save()
        logits = vlm.logits.save()
    close(lens, logits)


def test_names_are_asked_for_in_the_order_of_the_pass(vlm, prompt, clean):
    with pytest.raises(OutOfOrderError), torch.no_grad(), vlm.trace(prompt):
        vlm.text[2].attn.pattern.sum()
        vlm.text[1].attn.pattern.sum()
    with pytest.raises(OutOfOrderError), torch.no_grad(), vlm.trace(prompt):
        vlm.text[2].attn.pattern[:] = 0
        vlm.text[2].attn.q.sum()


def test_an_error_in_a_block_comes_out_and_leaves_the_model_as_it_was(vlm, prompt, clean):
    class Mine(Exception):
        pass

    for edited in (vlm, vlm.with_edits(E.Knockout(keys="image"))):
        before = edited.cache(prompt, "logits")["logits"]
        with pytest.raises(Mine), torch.no_grad(), edited.trace(prompt):
            edited.text[1].attn.pattern[:] = 0
            edited.text[2].attn.z.sum()
            raise Mine
        assert torch.equal(edited.cache(prompt, "logits")["logits"], before)


def test_an_error_in_the_model_leaves_it_as_it_was(vlm, prompt, clean):
    broken = replace(prompt, inputs=dict(prompt.inputs, input_ids=prompt.inputs["input_ids"][:, :5]))
    for edited in (vlm, vlm.with_edits(E.AblateHeads({0: [0]}))):
        with pytest.raises(ValueError, match="do not match"), torch.no_grad(), edited.trace(broken):
            edited.text[1].attn.pattern.sum()


def test_a_trace_may_be_stopped(vlm, prompt, clean):
    edited = vlm.with_edits(E.Knockout(keys="image") + E.AblateHeads({3: [0]}))
    ran = []
    for one in (vlm, edited):
        hook = vlm._module.lm_head.register_forward_hook(lambda *_: ran.append(1))
        with torch.no_grad(), one.trace(prompt) as tracer:
            kept = one.text[1].resid_post.save()
            tracer.stop()
        hook.remove()
        assert kept.shape == (1, 25, 32)
        assert not ran
    assert torch.equal(kept, edited.cache(prompt, "text.1.resid_post")["text.1.resid_post"])


# -- several prompts in one trace --------------------------------------------------------------------


def test_invokes_of_prompts_become_one_padded_batch(vlm, picture, clean):
    """nnsight alone refuses several pictures; each block sees its own rows."""
    prompts = [vlm.prompt(picture(), "what ?"), vlm.prompt(picture(50, 90, 1), QUESTION)]
    with torch.no_grad(), vlm.trace() as tracer:
        with tracer.invoke(prompts[0]):
            p0 = vlm.text[1].attn.pattern[:, :, -1].clone().save()
            l0 = vlm.logits[:, -1].save()
        with tracer.invoke(prompts[1]):
            p1 = vlm.text[1].attn.pattern[:, :, -1].clone().save()
            l1 = vlm.logits[:, -1].save()
    for prompt, pattern, logits in zip(prompts, (p0, p1), (l0, l1)):
        alone = vlm.cache(prompt, ["text.1.attn.pattern", "logits"])
        close(pattern[..., -prompt.length :], alone["text.1.attn.pattern"][:, :, 0])
        close(logits, alone["logits"][:, -1])


def test_a_write_in_one_invoke_stays_in_its_rows(vlm, picture, clean):
    """Of a value that the model holds and of a computed one, beside a block that only reads it."""
    prompts = [vlm.prompt(picture(), QUESTION), vlm.prompt(picture(50, 90, 1), QUESTION)]
    before = [vlm.cache(prompt, "logits")["logits"] for prompt in prompts]
    with torch.no_grad(), vlm.trace() as tracer:
        with tracer.invoke(prompts[0]):
            vlm.text[1].attn.pattern[:, 2] = 0
            vlm.text[2].attn.z[:, :, 0] = 0
            edited = vlm.logits.save()
        with tracer.invoke(prompts[1]):
            vlm.text[1].attn.pattern.sum()
            untouched = vlm.logits.save()
    close(untouched, before[1])
    with torch.no_grad(), vlm.trace(prompts[0]):
        vlm.text[1].attn.pattern[:, 2] = 0
        vlm.text[2].attn.z[:, :, 0] = 0
        alone = vlm.logits.save()
    close(edited, alone)
    assert (edited - before[0]).abs().max() > 0.01


def test_both_invokes_may_write_the_same_name(vlm, picture):
    prompts = [vlm.prompt(picture(), QUESTION), vlm.prompt(picture(50, 90, 1), QUESTION)]
    with torch.no_grad(), vlm.trace() as tracer:
        with tracer.invoke(prompts[0]):
            vlm.text[1].attn.pattern[:, 0] = 0
            l0 = vlm.logits.save()
        with tracer.invoke(prompts[1]):
            vlm.text[1].attn.pattern = vlm.text[1].attn.pattern * 0.5
            l1 = vlm.logits.save()
    with torch.no_grad(), vlm.trace(prompts[0]):
        vlm.text[1].attn.pattern[:, 0] = 0
        e0 = vlm.logits.save()
    with torch.no_grad(), vlm.trace(prompts[1]):
        vlm.text[1].attn.pattern = vlm.text[1].attn.pattern * 0.5
        e1 = vlm.logits.save()
    close(l0, e0)
    close(l1, e1)


def test_an_edited_model_takes_several_invokes(vlm, picture):
    """Each prompt with its own selection; each block is shown its own edited rows."""
    prompts = [vlm.prompt(picture(), "what ?"), vlm.prompt(picture(50, 90, 1), QUESTION)]
    edited = vlm.with_edits(E.ScaleAttention(keys="question", gain=4.0))
    with torch.no_grad(), edited.trace() as tracer:
        with tracer.invoke(prompts[0]):
            p0 = edited.text[2].attn.pattern[:, :, -1].clone().save()
            l0 = edited.logits[:, -1].save()
        with tracer.invoke(prompts[1]):
            p1 = edited.text[2].attn.pattern[:, :, -1].clone().save()
            l1 = edited.logits[:, -1].save()
    for prompt, pattern, logits in zip(prompts, (p0, p1), (l0, l1)):
        alone = edited.cache(prompt, ["text.2.attn.pattern", "logits"])
        close(pattern[..., -prompt.length :], alone["text.2.attn.pattern"][:, :, 0])
        close(logits, alone["logits"][:, -1])


def test_prompts_and_bare_inputs_are_not_mixed(vlm, prompt):
    with pytest.raises(BadPrompt, match="in all of its invokes, or in none"), vlm.trace() as tracer:
        with tracer.invoke(prompt):
            vlm.logits.sum()
        with tracer.invoke(**prompt.inputs):
            vlm.logits.sum()


def test_batches_may_be_invoked_too(vlm, batch, prompt):
    with torch.no_grad(), vlm.trace() as tracer:
        with tracer.invoke(batch):
            two = vlm.logits[:, -1].save()
        with tracer.invoke(prompt):
            one = vlm.logits[:, -1].save()
    assert (two.shape, one.shape) == ((2, 31), (1, 31))
    close(two, vlm.cache(batch, "logits")["logits"][:, -1])
    close(one, vlm.cache(prompt, "logits")["logits"][:, -1])


# -- decoding ----------------------------------------------------------------------------------------


def rerun(tiny, prompt, ids, upto, edits):
    """The bare model over prompt and answer, the names of ``edits`` edited by hand."""
    ids = ids[:, :upto]
    inputs = dict(prompt.inputs, input_ids=ids, attention_mask=torch.ones_like(ids))
    with torch.no_grad():
        return tiny().reference(SimpleNamespace(inputs=inputs), edits)


def test_generating_in_a_trace_is_generating(tiny, vlm, prompt, clean):
    with torch.no_grad(), vlm.generate(prompt, max_new_tokens=5) as tracer:
        ids = tracer.result.save()
    expected = tiny().twin("sdpa").generate(**prompt.inputs, max_new_tokens=5)
    assert torch.equal(ids, expected)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_write_in_one_step_edits_that_step(tiny, vlm, prompt, step):
    """The rows of the newest token, at the step chosen; earlier keys and values are what they were."""
    logits = []
    with torch.no_grad(), vlm.generate(prompt, max_new_tokens=4, min_new_tokens=4) as tracer:
        for now in tracer.iter[:4]:
            if now == step:
                vlm.text[2].attn.pattern[:, 1, -1] = 0
            logits.append(vlm.logits[:, -1].clone())
        ids = tracer.result.save()

    def edit(pattern):
        pattern = pattern.clone()
        pattern[:, 1, prompt.length - 1 + step] = 0
        return pattern

    for now in range(4):
        edits = {"text.2.attn.pattern": edit} if now >= step else {}
        expected = rerun(tiny, prompt, ids, prompt.length + now, edits)["logits"][:, -1]
        close(logits[now], expected)
    plain = rerun(tiny, prompt, ids, prompt.length + step, {})["logits"][:, -1]
    assert (logits[step] - plain).abs().max() > 1e-3


def test_a_write_in_every_step_edits_every_step(tiny, vlm, prompt):
    """By assignment, of a computed value that is read in each step."""
    logits = []
    with torch.no_grad(), vlm.generate(prompt, max_new_tokens=3, min_new_tokens=3) as tracer:
        for _step in tracer.iter[:3]:
            vlm.text[1].attn.result = vlm.text[1].attn.result * 0.5
            logits.append(vlm.logits[:, -1].clone())
        ids = tracer.result.save()
    half = {"text.1.attn.result": lambda value: value * 0.5}
    for now in range(3):
        close(logits[now], rerun(tiny, prompt, ids, prompt.length + now, half)["logits"][:, -1])


def test_a_read_left_over_from_one_step_does_not_steer_the_write_of_the_next(tiny, vlm, prompt):
    """The last thing read in step 0 is what step 1 assigns first."""
    with torch.no_grad(), vlm.generate(prompt, max_new_tokens=3, min_new_tokens=3) as tracer:
        for step in tracer.iter[:2]:
            if step == 0:
                vlm.text[3].attn.pattern.sum()
            else:
                flat = torch.full((1, 4, 1, prompt.length + 1), 1 / (prompt.length + 1))
                vlm.text[3].attn.pattern = flat
                logits = vlm.logits[:, -1].save()
        ids = tracer.result.save()

    def edit(pattern):
        pattern = pattern.clone()
        pattern[:, :, -1] = 1 / pattern.shape[-1]
        return pattern

    expected = rerun(tiny, prompt, ids, prompt.length + 1, {"text.3.attn.pattern": edit})
    close(logits, expected["logits"][:, -1])


# -- answers -----------------------------------------------------------------------------------------


def test_an_answer_is_greedy_decoding_of_the_bare_model(tiny, vlm, prompt):
    answer = vlm.answer(prompt, max_new_tokens=6)
    ids = tiny().twin("sdpa").generate(**prompt.inputs, max_new_tokens=6)[0, prompt.length :]
    assert answer.ids.tolist() == ids.tolist()
    assert answer == vlm.processor.tokenizer.decode(ids, skip_special_tokens=True)
    whole = torch.cat([prompt.inputs["input_ids"][0], ids])[None]
    inputs = {**prompt.inputs, "input_ids": whole, "attention_mask": torch.ones_like(whole)}
    with torch.no_grad():
        logits = tiny().twin("sdpa")(**inputs).logits[0, prompt.length - 1 : -1]
    expected = logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    close(answer.token_logprobs, expected)
    assert answer.logprob == pytest.approx(float(expected.sum()), abs=1e-4)


def test_a_batch_answers_a_list_and_each_as_if_alone(vlm, batch):
    """An answer that ends early ends at its end-of-sequence, whatever its neighbour still says."""
    answers = vlm.answer(batch, max_new_tokens=8)
    assert isinstance(answers, list)
    for row, answer in enumerate(answers):
        alone = vlm.answer(batch.row(row), max_new_tokens=8)
        assert isinstance(alone, str)
        assert answer == alone
        assert answer.ids.tolist() == alone.ids.tolist()
        close(answer.token_logprobs, alone.token_logprobs)


def test_an_answer_stops_behind_end_of_sequence(vlm, prompt):
    """Forced by a bias on the logits of the second token."""
    tokenizer = vlm.processor.tokenizer
    push = torch.zeros(31)
    push[tokenizer.eos_token_id] = 1e4
    ending = vlm.with_edits(E.Steer("logits", push, when="decode"))
    answer = ending.answer(prompt, max_new_tokens=6)
    assert len(answer.ids) == 2
    assert int(answer.ids[-1]) == tokenizer.eos_token_id
    assert tokenizer.eos_token not in answer


def test_a_batch_of_one_still_answers_a_list(vlm, picture):
    one = vlm.prompts([(picture(), QUESTION)])
    assert isinstance(vlm.answer(one, max_new_tokens=2), list)


# -- nnsight's own edits -----------------------------------------------------------------------------


def test_nnsights_edits_are_kept_beside_ours(vlm, prompt, clean):
    """Whichever is made first, and when more of ours are added."""
    ours = E.Knockout(keys="image", layers=1)
    with vlm.edit() as (_, theirs):
        theirs.text[2].attn.z[:, :, 1] = 0
    with torch.no_grad(), vlm.with_edits(ours).trace(prompt):
        vlm.text[2].attn.z[:, :, 1] = 0
        expected = vlm.logits.save()
    close(theirs.with_edits(ours).cache(prompt, "logits")["logits"], expected)
    edited = vlm.with_edits(ours)
    with edited.edit() as (_, other):
        other.text[2].attn.z[:, :, 1] = 0
    close(other.cache(prompt, "logits")["logits"], expected)
    more = other.with_edits(E.AblateHeads({3: [0]}))
    once = vlm.with_edits(ours + E.AblateHeads({3: [0]}))
    with torch.no_grad(), once.trace(prompt):
        once.text[2].attn.z[:, :, 1] = 0
        expected = once.logits.save()
    close(more.cache(prompt, "logits")["logits"], expected)
    without = once.cache(prompt, "logits")["logits"]
    assert (without - expected).abs().max() > 1e-3


def test_a_copy_resolves_selectors_against_its_own_prompt(vlm, prompt, picture):
    edited = vlm.with_edits(E.Knockout(keys="question"))
    longer = vlm.prompt(picture(), QUESTION + " what digit is on ?")
    expected = edited.cache(longer, "logits")["logits"]
    edited.cache(prompt, "logits")
    with edited.edit() as (_, copy):
        copy.text[0].resid_pre.sum()
    close(copy.cache(longer, "logits")["logits"], expected)


def test_two_models_loaded_from_one_do_not_disturb_each_other(tiny, prompt):
    model, processor = tiny().pair()
    one, two = (seeing.load((model, processor), check=False) for _ in range(2))
    edited = one.with_edits(E.AblateHeads({1: [0, 1]}))
    before = two.cache(prompt, "logits")["logits"]
    assert not torch.equal(edited.cache(prompt, "logits")["logits"], before)
    assert torch.equal(two.cache(prompt, "logits")["logits"], before)
    assert torch.equal(one.cache(prompt, "logits")["logits"], before)


# -- gradients ---------------------------------------------------------------------------------------


def loss_of(logits):
    return logits[0, -1, 7] - logits[0, -1, 11]


def keeping(kept):
    """An edit that changes nothing and keeps the value's gradient."""

    def watch(value):
        value.retain_grad()
        kept.append(value)
        return value

    return watch


@pytest.mark.parametrize(
    "name", ["text.1.resid_mid", "text.2.attn.z", "vision.1.resid_post", "projector.out"]
)
def test_gradients_are_those_of_autograd_on_the_bare_model(tiny, vlm, prompt, name):
    with vlm.trace(prompt):
        value = vlm.sites[name].bound()
        value.retain_grad()
        loss_of(vlm.logits).backward()
        found = value.grad.clone().save()
    kept = []
    loss_of(tiny().reference(prompt, {name: keeping(kept)})["logits"]).backward()
    assert kept[0].grad.abs().max() > 1e-4
    close(found, kept[0].grad)


def test_the_gradient_of_a_pattern_that_is_put_back_is_the_eager_one(tiny, vlm, prompt):
    """The pattern is no part of the fused kernel's graph; assigned, it is."""
    with vlm.trace(prompt):
        pattern = vlm.text[2].attn.pattern
        pattern.retain_grad()
        vlm.text[2].attn.pattern = pattern
        loss_of(vlm.logits).backward()
        found = pattern.grad.clone().save()
    kept = []
    loss_of(tiny().reference(prompt, {"text.2.attn.pattern": keeping(kept)})["logits"]).backward()
    assert kept[0].grad.abs().max() > 1e-4
    close(found, kept[0].grad)


def test_gradients_flow_through_edits(vlm, prompt):
    """A learnt steering vector: the gradient is the slope of the loss."""
    torch.manual_seed(0)
    vector = torch.randn(32, requires_grad=True)
    boost = E.ScaleAttention(keys="image", gain=3.0) + E.AblateHeads({2: [1]})

    def loss(vector):
        edited = vlm.with_edits(boost + E.Steer("text.0.resid_post", vector, 0.5))
        return loss_of(edited.cache(prompt, "logits", grad=True)["logits"])

    loss(vector).backward()
    direction = torch.randn(32)
    direction /= direction.norm()
    with torch.no_grad():
        step = 1e-2
        slope = (loss(vector + step * direction) - loss(vector - step * direction)) / (2 * step)
    assert vector.grad.abs().max() > 1e-3
    assert float(vector.grad @ direction) == pytest.approx(float(slope), rel=0.02, abs=1e-3)
