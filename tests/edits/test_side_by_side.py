"""Edits of one prompt are nothing to the others of its batch, and edits know rows that run several times."""

import copy

import pytest
import torch

from seeing import edits as E

CUT = E.Knockout(keys="image")
PATTERN, SCORES, RESULT = "text.2.attn.pattern", "text.2.attn.scores", "text.2.attn.result"


def value(vlm, prompt, name):
    return vlm.cache(prompt, name)[name]


@pytest.mark.parametrize("edited_first", [True, False])
@pytest.mark.parametrize("name", [PATTERN, SCORES, "logits"])
def test_an_invoke_is_shown_its_own_rows_where_another_is_edited(random, crowded, name, edited_first):
    one, other = (random.prompt(sample) for sample in crowded[:2])

    with random.trace() as tracer:
        for prompt in (one, other) if edited_first else (other, one):
            with tracer.invoke(prompt):
                if prompt is one:
                    CUT.apply(random)
                if name == PATTERN:
                    found = random.text[2].attn.pattern.save() if prompt is other else None
                elif name == SCORES:
                    found = random.text[2].attn.scores.save() if prompt is other else None
                else:
                    found = random.logits.save() if prompt is other else None
        del tracer
    expected = random.cache(other, name, queries="all")[name]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [PATTERN, SCORES])
@pytest.mark.parametrize("own", [None, E.Knockout(keys="question")])
def test_a_run_is_shown_its_own_rows_beside_one_whose_rows_are_edited(random, crowded, name, own):
    prompt = random.prompts(crowded[:2])
    contrast = E.Contrast(CUT, 1.0)
    vlm = random if own is None else random.with_edits(own)
    torch.testing.assert_close(
        value(vlm.with_edits(contrast), prompt, name), value(vlm, prompt, name), rtol=0, atol=1e-4
    )


def test_heads_results_are_shown_to_their_own_run(random, crowded):
    prompt = random.prompts(crowded[:2])
    other = E.Steer(RESULT, torch.ones(random.cfg.d_model), positions="all")
    beside = random.with_edits(E.Contrast(other, 0.5))
    torch.testing.assert_close(
        value(beside, prompt, RESULT), value(random, prompt, RESULT), rtol=0, atol=1e-4
    )


def test_rows_edited_by_a_copy_and_in_its_trace_are_refused(random, crowded):
    edited = random.with_edits(CUT)
    with pytest.raises(E.BadEdit, match="edited twice"):  # noqa: SIM117
        with edited.trace(random.prompt(crowded[0])):
            E.Bias(keys="question", value=1.0).apply(edited)


# -- rows that run several times -----------------------------------------------------------------------


SEVERAL = [
    E.ScaleAttention(keys="evidence", gain=9.0),
    E.ScaleAttention(keys=E.seen(layers=[1]), gain=9.0, layers=[3, 4]),
    E.AblateHeads({1: [0, 2]}, to="mean"),
    E.Knockout(queries="question", keys="image"),
]


@pytest.mark.parametrize("edit", SEVERAL, ids=lambda edit: repr(edit)[:30])
def test_beams_of_a_batch_are_those_of_its_prompts_apart(random, crowded, edit):
    edited = random.with_edits(edit)
    settings = dict(max_new_tokens=3, min_new_tokens=3, num_beams=3, do_sample=False)
    with edited.generate(random.prompts(crowded[:3]), **settings) as tracer:
        together = tracer.result.save()
    plain = []
    for row in range(3):
        with edited.generate(random.prompt(crowded[row]), **settings) as tracer:
            apart = tracer.result.save()
        assert torch.equal(together[row], apart[0])
        with random.generate(random.prompt(crowded[row]), **settings) as tracer:
            plain.append(tracer.result.save())
    assert not torch.equal(together, torch.cat(plain))


def test_sampled_sequences_of_a_batch_are_edited_like_the_prompt_they_are_of(random, crowded):
    prompt = random.prompts(crowded[:2])
    edited = random.with_edits(SEVERAL[0])
    settings = dict(max_new_tokens=1, do_sample=True, num_return_sequences=3)
    with edited.generate(prompt, **settings):
        logits = edited.logits[:, -1].save()
    expected = value(edited, prompt, "logits")[:, -1].repeat_interleave(3, 0)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_resampling_from_the_next_row_needs_another_prompt(random, crowded):
    edited = random.with_edits(E.AblateHeads({1: [0]}, to="resample"))
    with pytest.raises(E.BadEdit, match="there is one row"):  # noqa: SIM117
        with edited.generate(random.prompt(crowded[0]), max_new_tokens=2, num_beams=2):
            pass


@pytest.mark.parametrize(
    "settings", [{"do_sample": True}, {"num_beams": 2}, {"return_dict_in_generate": True}]
)
def test_a_contrast_decodes_one_greedy_sequence(random, crowded, settings):
    edited = random.with_edits(E.Contrast(CUT, 0.5))
    with pytest.raises(ValueError, match="contrast"):  # noqa: SIM117
        with edited.generate(random.prompt(crowded[0]), max_new_tokens=2, **settings):
            pass


def test_what_a_trace_of_invokes_is_told_counts_too(random, crowded):
    edited = random.with_edits(E.Contrast(CUT, 0.5))
    with pytest.raises(ValueError, match="do_sample"):  # noqa: PT012, SIM117
        with edited.generate(max_new_tokens=2, do_sample=True) as tracer:
            with tracer.invoke(random.prompt(crowded[0])):
                pass


def test_a_key_that_a_bias_made_faint_is_no_key_that_is_hidden(random, crowded):
    prompt = random.prompt(crowded[0])
    faint = E.Bias(keys="image", value=-1e9) + E.Temperature(value=0.01) + E.SetPattern(0.01, keys="image")
    pattern = value(random.with_edits(faint), prompt, PATTERN)
    image = pattern[0, :, 0, prompt.spans.mask("image")[0]]
    torch.testing.assert_close(image, torch.full_like(image, 0.01))


# -- behind the KV cache -------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["k", "v"])
@pytest.mark.parametrize(
    ("positions", "when"), [("image", "prompt"), ("image", "both"), ("last", "both"), ("last", "decode")]
)
def test_keys_and_values_stay_edited_as_in_a_hook_before_the_cache(
    random, pair, crowded, part, positions, when
):
    """Against a hook on the projection of a bare model; rotary embedding leaves zeros as they are."""
    prompt = random.prompt(crowded[0])
    bare = copy.deepcopy(pair[0])
    proj = getattr(bare.model.language_model.layers[1].self_attn, f"{part}_proj")
    image, steps = prompt.spans.mask("image")[0], iter(range(9))

    def hook(module, args, out):
        step, out = next(steps), out.clone()
        if when == "both" or (when == "prompt") == (step == 0):
            if positions == "last":
                out[:, -1] = 0.0
            elif step == 0:
                out[:, image] = 0.0
        return out

    proj.register_forward_hook(hook)
    settings = dict(max_new_tokens=5, min_new_tokens=5, do_sample=False)
    with torch.no_grad():
        ids = bare.generate(**prompt.inputs, **settings, return_dict_in_generate=True, output_logits=True)
    edit = E.SetResidual(f"text.1.attn.{part}", 0.0, positions, when)
    answer = random.with_edits(edit).answer(prompt, 5, min_new_tokens=5)
    assert torch.equal(answer.ids, ids.sequences[0, -5:])
    logprobs = torch.stack([step[0].log_softmax(-1) for step in ids.logits])
    torch.testing.assert_close(
        answer.token_logprobs, logprobs.gather(1, answer.ids[:, None])[:, 0], rtol=0, atol=1e-4
    )


def test_values_edited_for_beams_are_refused(random, crowded):
    edited = random.with_edits(E.SetResidual("text.1.attn.v", 0.0, "image"))
    with pytest.raises(E.BadEdit, match="change places"):  # noqa: SIM117
        with edited.generate(random.prompt(crowded[0]), max_new_tokens=3, min_new_tokens=3, num_beams=2):
            pass


# -- decoded tokens alone ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "edit",
    [
        E.Knockout(queries="question", keys="image", when="decode"),
        E.Steer("text.1.resid_post", torch.ones(128), positions="image", when="decode"),
        E.ScaleHeads({1: [0]}, 0.0, positions=[3], when=2),
    ],
)
def test_an_edit_of_decoded_tokens_that_selects_none_of_them_is_no_silent_nothing(random, crowded, edit):
    with pytest.raises(E.EmptySelection, match="no token that is decoded"):
        random.with_edits(edit).answer(random.prompt(crowded[0]), 4, min_new_tokens=4)


def test_a_pattern_set_by_a_tensor_keeps_its_places_beside_a_longer_run(random, crowded):
    prompt = random.prompt(crowded[0])
    weights = torch.zeros(prompt.length)
    weights[5:9] = 0.25
    edit = E.SetPattern(weights, layers=2)
    longer = E.Contrast(E.Crop((0, 0, 60, 60), append=True), 0.0)
    found = value(random.with_edits(edit + longer), prompt, PATTERN)
    torch.testing.assert_close(found[0, 0, 0, -prompt.length :], weights)


@pytest.mark.parametrize(
    "edit",
    [
        E.Steer("text.1.attn.v", torch.full((32,), 9.0), positions="all", when="decode"),
        E.Steer("text.1.attn.v", torch.full((32,), 9.0), positions="last", when=range(2, 4)),
    ],
)
def test_values_of_tokens_that_are_not_new_are_not_edited(random, crowded, edit):
    """In a step the edit adds one token's value, whenever it begins."""
    prompt = random.prompt(crowded[0])
    touched = []
    ids = random.answer(prompt, 5, min_new_tokens=5).ids
    forced = lambda seen, scores: torch.full_like(scores, -1e9).index_fill(  # noqa: E731
        1, ids[seen.shape[1] - prompt.length], 0.0
    )
    settings = dict(max_new_tokens=5, min_new_tokens=5, do_sample=False, logits_processor=[forced])
    runs = []
    for vlm in (random, random.with_edits(edit)):
        steps = []
        with vlm.generate(prompt, **settings) as tracer:
            for _ in tracer.iter[:5]:
                steps.append(vlm.text[1].attn.v.clone())
        runs.append(steps)
    # The first layer is not edited, so what enters layer 1 differs by no token's value there.
    for plain, edited in zip(*runs):
        moved = (edited - plain - 9.0).abs().amax((0, 2, 3)) < 1e-3
        touched.append(moved.nonzero()[:, 0].tolist())
    n = prompt.length
    expected = [[], [n], [n, n + 1], [n, n + 1, n + 2], [n, n + 1, n + 2, n + 3]]
    if edit.when != "decode":
        expected = [[], [], [n + 1], [n + 1, n + 2], [n + 1, n + 2]]
    assert touched == expected


def test_keys_of_the_picture_edited_while_decoding_alone_are_no_silent_nothing(random, crowded):
    edit = E.Steer("text.1.attn.v", torch.ones(32), positions="image", when="decode")
    with pytest.raises(E.EmptySelection, match="no token that is decoded"):
        random.with_edits(edit).answer(random.prompt(crowded[0]), 3, min_new_tokens=3)


def test_what_is_given_row_by_row_goes_to_every_sequence_of_its_row(random, crowded):
    prompt, other = random.prompts(crowded[:2]), random.prompts(crowded[2:4])
    cache = random.cache(other, ["text.1.resid_post", "text.*.attn.z", "text.2.attn.pattern"])
    mask = prompt.spans.mask("image").clone()
    mask[0, 20:] = False
    several = [
        E.Patch("text.1.resid_post", cache, "image"),
        E.Patch("text.2.attn.pattern", cache),
        E.AblateHeads({1: [0]}, "resample", cache),
        E.Knockout(keys=mask),
        E.SetHeads({1: [0]}, torch.tensor([0.5, -0.5])[:, None, None, None]),
    ]
    for edit in several:
        edited = random.with_edits(edit)
        with edited.generate(prompt, max_new_tokens=1, do_sample=True, num_return_sequences=2):
            logits = edited.logits[:, -1].save()
        expected = value(edited, prompt, "logits")[:, -1].repeat_interleave(2, 0)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
