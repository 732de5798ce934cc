"""Teacher forcing, in every family: one pass over a given answer tells what generation told step by step."""

import pytest
import torch

from seeing import edits as E
from seeing.prompt import BadPrompt

#: Forced and stepwise runs differ by rounding alone.
CLOSE = dict(rtol=0, atol=2e-4)


def sayable(case, answer):
    """The answer, cut where a random model says the token that stands for a picture."""
    image = case.vlm.family.image_token_id(case.model)
    held = (answer.ids == image).nonzero()[:, 0]
    stop = int(held[0]) if len(held) else len(answer.ids)
    if not stop:
        pytest.skip("this random model says a picture's token first")
    answer.ids, answer.token_logprobs = answer.ids[:stop], answer.token_logprobs[:stop]
    return answer


@pytest.fixture
def pair(case, picture):
    questions = ("what digit is on the red square ?", "what digit ?")
    return case.vlm.prompts([(picture(76, 52, 1), questions[0]), (picture(60, 80, 2), questions[1])])


def test_a_score_is_what_the_answer_had_when_it_was_generated(case):
    prompt = case.prompt()
    said = sayable(case, case.vlm.answer(prompt, max_new_tokens=4))
    score = case.vlm.score(prompt.with_answer(said))
    torch.testing.assert_close(score.token_logprobs[0].cpu(), said.token_logprobs, **CLOSE)
    assert float(score.logprob[0]) == pytest.approx(float(said.token_logprobs.sum()), abs=1e-3)


def test_answers_of_other_lengths_in_a_padded_batch_score_as_they_do_alone(case, pair):
    said = [sayable(case, one) for one in case.vlm.answer(pair, max_new_tokens=3)]
    said[1].ids, said[1].token_logprobs = said[1].ids[:1], said[1].token_logprobs[:1]
    forced = pair.with_answer(said)
    score = case.vlm.score(forced)
    for row, one in enumerate(said):
        n = len(one.ids)
        torch.testing.assert_close(score.token_logprobs[row, :n].cpu(), one.token_logprobs, **CLOSE)
        assert score.token_logprobs[row, n:].isnan().all()
        where = forced.spans.mask("answer")[row].nonzero()[:, 0]
        assert forced.inputs["input_ids"][row, where].tolist() == one.ids.tolist()
        assert forced.spans.mask("predicts")[row].nonzero()[:, 0].tolist() == (where - 1).tolist()


EDITS = {
    "last rows": lambda top: E.Temperature(value=2.0, layers=top),
    "image knocked out of the last row": lambda top: E.Knockout(queries="last", keys="image", layers=top),
    "the newest does not see itself": lambda top: E.Knockout(queries="last", keys="last", layers=top),
    "the prompt pass alone": lambda top: E.Bias(keys="question", value=2.0, layers=top, when="prompt"),
    "decoded tokens alone": lambda top: E.Bias(keys="question", value=3.0, layers=top, when="decode"),
    "one step": lambda top: E.Bias(keys="template", value=3.0, layers=top, when=2),
    "a head": lambda top: E.AblateHeads({top: [0]}),
    "a head's mean": lambda top: E.AblateHeads({top: [0]}, to="mean"),
    "a head while decoding": lambda top: E.ScaleHeads({top: [1]}, 3.0, when="decode"),
    "what decoded tokens see of the answer": lambda top: E.ScalePattern(
        keys=E.maybe("answer"), factor=0.25, layers=top
    ),
    "words of the prompt": lambda top: (
        E.Bias(keys="text", value=1.3, layers=top)
        + E.Temperature(value=2.0, queries=E.Span("text") | E.Span("answer"), layers=top)
    ),
    "counted from the end": lambda top: E.Bias(keys=[-1, -2], value=2.0, layers=top),
    "seen": lambda top: E.ScaleAttention(keys=E.seen([0]), gain=5.0, layers=top),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_run_scores_what_it_generates(case, pair, name):
    kernels = [layer for layer, kernel in case.vlm.sites.kernels["text"].items() if not kernel.cross]
    edits = EDITS[name](kernels[-1])
    if name == "last rows":
        edits = E.Bias(keys=E.maybe("last"), value=1.5, layers=kernels) + E.Temperature(
            value=2.0, layers=kernels
        )
    if name in ("seen", "image knocked out of the last row") and pair.cross is not None:
        pytest.skip("the picture has keys of its own")
    if name == "seen":
        if len(kernels) < 2:
            pytest.skip("one layer of attention over the sequence")
        edits = E.ScaleAttention(keys=E.seen([kernels[0]]), gain=5.0, layers=kernels[-1])
    edited = case.vlm.with_edits(edits)
    said = [sayable(case, one) for one in edited.answer(pair, max_new_tokens=3)]
    score = edited.score(pair.with_answer(said))
    for row, one in enumerate(said):
        found = score.token_logprobs[row, : len(one.ids)].cpu()
        torch.testing.assert_close(found, one.token_logprobs, **CLOSE)


def test_the_gradient_of_an_answer_reaches_what_it_hangs_on(case):
    prompt = case.prompt().with_answer(torch.tensor([9, 8]))
    layer = max(layer for layer, kernel in case.vlm.sites.kernels["text"].items())
    name = f"text.{layer}.attn.z"
    cache = case.vlm.cache(prompt, [name, "logits"], grad=True)
    logprobs = cache["logits"][:, prompt.n_asked - 1 : -1].log_softmax(-1)
    torch.testing.assert_close(
        torch.stack([logprobs[0, 0, 9], logprobs[0, 1, 8]]).detach(),
        case.vlm.score(prompt).token_logprobs[0],
        **CLOSE,
    )
    (gradient,) = torch.autograd.grad(logprobs[0, 1, 8], cache[name])
    assert gradient[0, prompt.n_asked].abs().max() > 0
    assert gradient[0, prompt.n_asked + 1].abs().max() == 0


def test_an_answer_that_is_none_is_refused(case, pair):
    prompt = case.prompt()
    image = case.vlm.family.image_token_id(case.model)
    mark = case.processor.tokenizer.convert_ids_to_tokens(image)
    for wrong in ("", mark, [], torch.tensor([[3]]), torch.tensor([0.5]), [-1], [10**9], [image], None, b"7"):
        with pytest.raises(BadPrompt):
            prompt.with_answer(wrong)
    with pytest.raises(BadPrompt, match="as many answers"):
        pair.with_answer([[3]])
    with pytest.raises(BadPrompt, match="score"):
        case.vlm.score(prompt)
    with pytest.raises(BadPrompt, match="generate"):
        case.vlm.answer(prompt.with_answer([8]))


def test_invokes_of_forced_prompts_share_a_batch_and_keep_their_answers(case, picture):
    prompts = [
        case.vlm.prompt(picture(76, 52, seed), question).with_answer(ids)
        for seed, question, ids in (
            (1, "what digit is on the red square ?", [9, 8, 11]),
            (2, "what digit ?", [13]),
        )
    ]
    kept = []
    with torch.no_grad(), case.vlm.trace() as tracer:
        with tracer.invoke(prompts[0]):
            kept.append(case.vlm.logits.save())
        with tracer.invoke(prompts[1]):
            kept.append(case.vlm.logits.save())
    for logits, prompt, n_pad in zip(kept, prompts, (0, 2)):
        end = logits.shape[1] - n_pad
        found = logits[0, end - prompt.n_given - 1 : end - 1].log_softmax(-1)
        expected = case.vlm.score(prompt).logits[0].log_softmax(-1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    with pytest.raises(BadPrompt, match="all, or none"):
        case.vlm._join([prompts[0], case.prompt()])


def test_rows_by_themselves_score_as_in_their_batch(case, pair):
    forced = pair.with_answer([[9, 8], [13]])
    whole = case.vlm.score(forced).logprob
    for some in (forced.row(1), forced.only([1])):
        torch.testing.assert_close(case.vlm.score(some).logprob, whole[1:], rtol=0, atol=1e-3)
    with pytest.raises(BadPrompt, match="row"):
        case.vlm.score(forced.take([1]))
