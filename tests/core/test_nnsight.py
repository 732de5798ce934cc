"""What meets nnsight in less usual ways: several writers, loops of writes, copies of copies, and answers."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from nnsight.intervention.interleaver import OutOfOrderError

import seeing
from seeing import edits as E

QUESTION = "what digit is on the red square ?"


def close(found, expected, atol=1e-5):
    scale = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=atol * scale)


# -- one pass ----------------------------------------------------------------------------------------


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


def test_an_answer_goes_on_from_a_kept_cache_without_looking_again(vlm, picture):
    """All of the prompt but its last token is kept, padded rows and all; the tower does not run."""
    batch = vlm.prompts([(picture(), "what ?"), (picture(50, 90, 1), QUESTION)])
    whole = vlm.answer(batch, max_new_tokens=4)
    kept = vlm.prefill(batch, "text.1.resid_post")
    kept.past_key_values.crop(-1)
    looked = []
    hook = vlm._module.model.vision_tower.register_forward_pre_hook(lambda *_: looked.append(1))
    again = vlm.answer(batch, max_new_tokens=4, past_key_values=kept.past_key_values)
    hook.remove()
    assert not looked
    for one, other in zip(again, whole):
        assert one.ids.tolist() == other.ids.tolist()
        close(one.token_logprobs, other.token_logprobs)


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
