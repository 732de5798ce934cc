"""Edits in a trace of one's own, gradients through them, and runs that end too early."""

import pytest
import torch

from seeing import edits as E
from seeing.edits.program import Program
from seeing.edits.visits import KernelVisit
from seeing.traced import RunEnded


def several(vlm):
    return (
        E.ScaleAttention(keys="image", gain=4.0)
        + E.AblateHeads({1: [1]})
        + E.Steer("text.2.resid_post", torch.ones(vlm.cfg.d_model))
    )


def test_applied_in_a_trace_they_do_what_an_edited_copy_does(random, crowded):
    prompt = random.prompts(crowded[:2])
    edits = several(random)
    with random.trace(prompt):
        edits.apply(random)
        logits = random.logits.save()
    assert torch.equal(logits, random.with_edits(edits).cache(prompt, "logits")["logits"])


def test_applied_in_a_generation_they_act_at_every_token(random, crowded):
    prompt = random.prompts(crowded[:2])
    edits = several(random)
    settings = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False)
    with random.generate(prompt, **settings) as tracer:
        edits.apply(random, tracer.iter[:4])
        applied = tracer.result.save()
    with random.with_edits(edits).generate(prompt, **settings) as tracer:
        edited = tracer.result.save()
    with random.generate(prompt, **settings) as tracer:
        bare = tracer.result.save()
    assert torch.equal(applied, edited)
    assert not torch.equal(applied, bare)


def test_in_one_of_several_invokes_they_edit_its_rows_only(random, crowded):
    first, second = (random.prompt(one) for one in crowded[:2])
    edit = E.ScaleAttention(keys="image", gain=4.0)
    with random.trace() as tracer:
        with tracer.invoke(first):
            edit.apply(random)
            edited = random.logits.save()
        with tracer.invoke(second):
            spared = random.logits.save()
    torch.testing.assert_close(
        edited, random.with_edits(edit).cache(first, "logits")["logits"], rtol=0, atol=1e-4
    )
    torch.testing.assert_close(spared, random.cache(second, "logits")["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("edit", [E.Noise(0.1), E.Contrast(E.Edits(), 0.5)])
def test_what_acts_before_the_run_is_no_part_of_a_trace(random, crowded, edit):
    prompt = random.prompt(crowded[0])
    with pytest.raises(E.BadEdit, match="acts before the run starts"):  # noqa: SIM117
        with random.trace(prompt):
            edit.apply(random)


def test_gradients_flow_through_edits_to_a_steering_vector_and_to_patterns(random, crowded):
    """Against finite differences of the edited model."""
    prompt = random.prompt(crowded[0])

    def edited(vector, pattern_scale=1.0):
        return random.with_edits(
            E.ScalePattern(keys="image", factor=pattern_scale, layers=0)
            + E.Steer("text.1.resid_post", vector)
            + E.ScaleAttention(keys="image", gain=3.0)
            + E.ScalePattern(keys="question", factor=0.5, layers=2)
        )

    def loss(logits):
        return logits[0, -1].log_softmax(-1)[7]

    def value(vector, scale=1.0):
        return float(loss(edited(vector, scale).cache(prompt, "logits")["logits"]).detach())

    zero = torch.zeros(random.cfg.d_model, requires_grad=True)
    names = ["text.0.attn.pattern", "logits"]
    cache = edited(zero).cache(prompt, names, grad=True)
    by_vector, by_pattern = torch.autograd.grad(loss(cache["logits"]), [zero, cache["text.0.attn.pattern"]])
    direction = torch.randn(random.cfg.d_model, generator=torch.Generator().manual_seed(0))
    step = 1e-2
    slope = (value(step * direction) - value(-step * direction)) / (2 * step)
    assert float(by_vector @ direction) == pytest.approx(slope, rel=0.02, abs=0.02)
    image = prompt.spans.mask("image")[0]
    pattern = cache["text.0.attn.pattern"].detach()
    slope = (value(zero.detach(), 1 + step) - value(zero.detach(), 1 - step)) / (2 * step)
    found = float((by_pattern * pattern)[..., image].sum())
    assert abs(found) > 1e-3
    assert found == pytest.approx(slope, rel=0.03, abs=0.02)


def test_a_run_that_ends_between_two_visits_of_a_step_is_no_silent_loss(random, crowded):
    class Visit(KernelVisit):
        stop = 5

        def __init__(self, ends: bool):
            self.ends, self.kernel = ends, random.sites.kernels["text"][3]

        def due(self, step, looks):
            return True

        def run(self, at):
            if self.ends and at.step == 1:
                raise RunEnded

    def run(*visits):
        prompt = random.prompt(crowded[0])
        with random.trace(prompt):
            Program([], list(visits)).run(random, range(3))

    run(Visit(True), Visit(False))  # the run made no such step: that is how it ends
    with pytest.raises(E.BadEdit, match=r"ended in step 1 before it reached text\.3\.attn\.pattern"):
        run(Visit(False), Visit(True))


@pytest.mark.parametrize(
    "edits",
    [E.ScaleAttention(keys="image", gain=4.0), E.Noise(0.4), E.Contrast(E.Noise(0.4), 0.5)],
    ids=["rows", "picture", "contrast"],
)
def test_a_copy_whose_edits_were_cleared_is_the_model_as_it_is(random, crowded, edits):
    prompt = random.prompts(crowded[:2])
    edited = random.with_edits(edits)
    logits = edited.cache(prompt, "logits")["logits"]
    bare = random.cache(prompt, "logits")["logits"]
    assert not torch.equal(logits, bare)
    edited.clear_edits()
    assert edited.edits is None
    assert torch.equal(edited.cache(prompt, "logits")["logits"], bare)
    assert edited.answer(prompt, 3) == random.answer(prompt, 3)
