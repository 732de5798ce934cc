"""Two runs side by side in one batch, each under its own edits: own rows are shown, both decode one token."""

import pytest
import torch

from seeing import edits as E
from seeing.zoo.build import TOKEN

BOOST = E.ScaleAttention(keys="image", gain=6.0) + E.AblateHeads({2: [1]})
BLIND = E.Knockout(queries="all", keys="image")


def logprobs(vlm, prompt):
    return vlm.cache(prompt, "logits")["logits"][:, -1].log_softmax(-1)


@pytest.mark.parametrize("other", [E.Edits(), BLIND, E.Noise(0.4, seed=2), E.Crop((0, 0, 70, 112))])
def test_the_mix_is_that_of_two_runs_apart(random, mixed, other):
    prompt = random.prompts(mixed[:3])
    own, theirs = random.with_edits(BOOST), random.with_edits(other) if other != E.Edits() else random
    p, q = logprobs(own, prompt), logprobs(theirs, prompt)
    weight, share = 0.7, 0.05
    expected = (1 + weight) * p - weight * q
    implausible = p < p.max(-1, keepdim=True).values + torch.tensor(share).log()
    assert implausible.any()
    expected[implausible] = float("-inf")
    # Wherever the contrast is written among the other edits.
    for edits in (BOOST + E.Contrast(other, weight, share), E.Contrast(other, weight, share) + BOOST):
        found = logprobs(random.with_edits(edits), prompt)
        torch.testing.assert_close(found, expected.log_softmax(-1), rtol=0, atol=1e-4)


def test_every_token_is_decoded_from_the_mix(random, crowded):
    """Step by step: the tokens so far are put behind the question of both prompts, apart."""
    prompt = random.prompts(crowded[:2])
    edited = random.with_edits(BOOST + E.Contrast(BLIND, 1.5, decay=0.3))
    answers = edited.answer(prompt, 4, min_new_tokens=4)
    own, blind = (random.with_edits(one) for one in (BOOST, BLIND))
    for row, answer in enumerate(answers):
        runs = []
        for vlm in (own, blind):
            # The same ids, forced: a processor of logits that leaves one token.
            ids = answer.ids
            forced = lambda seen, scores, ids=ids: torch.full_like(scores, -1e9).index_fill(  # noqa: E731
                1, ids[seen.shape[1] - prompt.length], 0.0
            )
            with vlm.generate(
                random.prompts(crowded[row : row + 1]),
                max_new_tokens=4,
                min_new_tokens=4,
                do_sample=False,
                logits_processor=[forced],
            ) as tracer:
                steps = list().save()
                for _ in tracer.iter[:4]:
                    steps.append(vlm.logits[0, -1].log_softmax(-1))
            runs.append(torch.stack(steps))
        weights = torch.expm1(0.3 * torch.arange(1, 5))[:, None] * 1.5
        expected = ((1 + weights) * runs[0] - weights * runs[1]).log_softmax(-1)
        chosen = expected.gather(1, answer.ids[:, None])[:, 0]
        torch.testing.assert_close(answer.token_logprobs, chosen, rtol=0, atol=2e-4)
        # min_new_tokens forbids the end of the sequence, which the mix may like best.
        expected[:, TOKEN["<eos>"]] = float("-inf")
        assert torch.equal(expected.argmax(1), answer.ids)


def test_a_trace_shows_its_own_rows(random, mixed):
    prompt = random.prompts(mixed[:3])
    own = random.with_edits(BOOST)
    both = random.with_edits(BOOST + E.Contrast(E.Noise(0.4), 0.5))
    names = ["text.*.attn.pattern", "text.3.attn.z", "text.5.resid_post"]
    apart, beside = (vlm.cache(prompt, names, queries="question") for vlm in (own, both))
    for name in apart:
        assert beside[name].shape == apart[name].shape
        torch.testing.assert_close(beside[name], apart[name], rtol=0, atol=1e-4)
    with both.trace() as tracer:
        with tracer.invoke(random.prompt(mixed[0])):
            first = both.text[3].attn.z.save()
        with tracer.invoke(random.prompt(mixed[1])):
            second = both.text[3].attn.z.save()
    assert len(first) == len(second) == 1
    torch.testing.assert_close(torch.cat([first, second]), apart["text.3.attn.z"][:2], rtol=0, atol=1e-4)


def test_rows_padded_beside_a_longer_run_keep_their_positions(random, crowded):
    """A crop added as a second picture makes the other run 64 tokens longer."""
    prompt = random.prompt(crowded[0])
    edit = E.Knockout(keys=[3, 4, 5], queries=[70, -1])
    longer = E.Contrast(E.Crop((0, 0, 60, 60), append=True), 0.0)
    found = random.with_edits(edit + longer).cache(prompt, "text.2.attn.pattern")["text.2.attn.pattern"]
    apart = random.with_edits(edit).cache(prompt, "text.2.attn.pattern")["text.2.attn.pattern"]
    assert found.shape[-1] > apart.shape[-1]
    assert float(apart[..., 3:6].abs().max()) == 0
    torch.testing.assert_close(found[..., -prompt.length :], apart, rtol=0, atol=1e-4)


def test_a_weight_of_nothing_changes_nothing(random, crowded):
    prompt = random.prompts(crowded[:2])
    neutral = random.with_edits(E.Contrast(BLIND, 0.0))
    torch.testing.assert_close(logprobs(neutral, prompt), logprobs(random, prompt), rtol=0, atol=1e-5)
    assert torch.equal(logprobs(random, prompt), logprobs(random, prompt))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: E.Contrast("blind", 0.5), "under edits"),
        (lambda: E.Contrast(BLIND, float("nan")), "weight is a finite number"),
        (lambda: E.Contrast(BLIND, 0.5, plausibility=0.0), "plausibility"),
        (lambda: E.Contrast(BLIND, 0.5, decay=-1.0), "decay"),
        (lambda: E.Contrast(BLIND, 1.0) + E.Contrast(BLIND, 1.0), "one other, these edits ask for 2"),
        (lambda: E.Contrast(E.Contrast(BLIND, 1.0), 1.0), "can't be contrasted itself"),
        (lambda: E.Contrast(E.AblateHeads({9: [0]}), 1.0), "no layer 9"),
        (
            lambda: E.Contrast(E.Steer("vision.0.resid_post", torch.ones(96), positions="all"), 1.0),
            "the pictures of both runs",
        ),
    ],
)
def test_a_contrast_that_can_not_be_is_refused(random, make, message):
    with pytest.raises(E.BadEdit, match=message):
        random.with_edits(make())


def test_a_contrast_goes_on_from_no_cache(random, crowded):
    prompt = random.prompt(crowded[0])
    kept = random.prefill(prompt, "logits").past_key_values
    edited = random.with_edits(E.Contrast(BLIND, 0.5))
    with pytest.raises(ValueError, match="no KV cache"):
        edited.answer(prompt, past_key_values=kept)
    with pytest.raises(ValueError, match="no one KV cache"):
        edited.prefill(prompt, "logits")
