"""Reading with `cache`: rows of attention in whole models, in batches, behind a KV cache, and what it costs.

The truth is the eager kernel's own attention weights, on an untouched model of the same weights.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from seeing import edits as E
from seeing.names import UnknownName
from seeing.prompt import BadPrompt

QUESTION = "what digit is on the red square ?"
PATTERNS = [f"text.{layer}.attn.pattern" for layer in range(4)]


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


# -- rows against eager ------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_rows_are_the_eager_kernels_attention_weights(tiny, picture, kernel, kv_heads):
    one = tiny(kernel, kv_heads=kv_heads)
    prompt = one.vlm.prompt(picture(), QUESTION)
    expected = one.eager(prompt).attentions
    # A row that is all but uniform, and heads that differ: else a wrong row or head could pass.
    assert expected[1][0, :, -1].max() > 0.3
    assert (expected[1][0, 0] - expected[1][0, 1]).abs().max() > 0.1
    last = one.vlm.cache(prompt, "text.*.attn.pattern")
    assert list(last) == PATTERNS
    whole = one.vlm.cache(prompt, "text.*.attn.pattern", queries="all")
    for name, weights in zip(PATTERNS, expected):
        close(last[name], weights[:, :, -1:])
        close(whole[name], weights)


def test_rows_of_the_tower_are_the_eager_kernels_too(tiny, vlm, prompt):
    captured = {}
    tower = tiny().twin("eager").model.vision_tower
    hooks = [
        layer.self_attn.register_forward_hook(lambda _, args, out, i=i: captured.update({i: out[1]}))
        for i, layer in enumerate(tower.encoder.layers)
    ]
    tiny().eager(prompt)
    for hook in hooks:
        hook.remove()
    found = vlm.cache(prompt, "vision.*.attn.pattern", queries="all")
    assert len(found) == 3
    for layer, value in enumerate(found.values()):
        close(value, captured[layer])
        close(value.sum(-1), torch.ones(1, 3, 17))


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_rows_of_a_padded_batch_are_the_eager_kernels(tiny, picture, kernel):
    """Two prompts of different length: the shorter one is padded on the left, and padding gets no weight."""
    one = tiny(kernel)
    batch = one.vlm.prompts([(picture(), QUESTION), (picture(50, 90, 1), QUESTION + " what ?")])
    padding = ~batch.inputs["attention_mask"].bool()
    assert padding.sum(1).tolist() == [2, 0]
    found = one.vlm.cache(batch, "text.*.attn.pattern", queries="all")
    for name, weights in zip(PATTERNS, one.eager(batch).attentions):
        close(found[name][0, :, 2:], weights[0, :, 2:])
        close(found[name][1], weights[1])
        assert (found[name][0, :, 2:, :2] == 0).all()


def test_masked_keys_have_no_weight_and_rows_sum_to_one(vlm, prompt):
    whole = vlm.cache(prompt, ["text.*.attn.pattern", "text.*.attn.scores"], queries="all")
    above = torch.ones(prompt.length, prompt.length).triu(1).bool()
    for name in PATTERNS:
        assert (whole[name][..., above] == 0).all()
        assert (whole[name.replace("pattern", "scores")][..., above] == float("-inf")).all()
        close(whole[name].sum(-1), torch.ones(1, 4, prompt.length))


# -- which rows --------------------------------------------------------------------------------------


def row_choices(prompt):
    question = prompt.spans["question"][0]
    return [
        ("last", [prompt.length - 1]),
        ("all", list(range(prompt.length))),
        ("question", question.tolist()),
        ("image", prompt.spans["image"][0].tolist()),
        (3, [3]),
        (-2, [prompt.length - 2]),
        ([5, 1, 5], [5, 1, 5]),
        (torch.tensor([2, -1]), [2, prompt.length - 1]),
        (slice(-3, None), list(range(prompt.length - 3, prompt.length))),
        (prompt.spans.mask("question")[0], question.tolist()),
        (prompt.spans.mask("question"), question.tolist()),
        (torch.tensor([[4, 6]]), [4, 6]),
    ]


@pytest.mark.parametrize("choice", range(12))
def test_queries_choose_the_rows_of_scores_and_pattern_and_cut_nothing_else(vlm, prompt, choice):
    queries, expected = row_choices(prompt)[choice]
    names = [
        "text.2.attn.scores",
        "text.2.attn.pattern",
        "text.2.resid_post",
        "text.2.attn.z",
        "text.2.attn.k",
    ]
    whole = vlm.cache(prompt, names, queries="all")
    found = vlm.cache(prompt, names, queries=queries)
    for name in names[:2]:
        torch.testing.assert_close(found[name], whole[name][:, :, expected], rtol=0, atol=1e-5)
    for name in names[2:]:
        assert torch.equal(found[name], whole[name])


def test_each_item_of_a_batch_may_have_rows_of_its_own(vlm, batch):
    whole = vlm.cache(batch, "text.1.attn.pattern", queries="all")["text.1.attn.pattern"]
    found = vlm.cache(batch, "text.1.attn.pattern", queries=torch.tensor([[10, 20], [28, 3]]))
    close(found["text.1.attn.pattern"][0], whole[0][:, [10, 20]])
    close(found["text.1.attn.pattern"][1], whole[1][:, [28, 3]])
    image = vlm.cache(batch, "text.1.attn.pattern", queries="image")["text.1.attn.pattern"]
    for row in range(2):
        close(image[row], whole[row][:, batch.spans["image"][row]])


def test_rows_that_hold_different_numbers_of_a_span_are_refused(vlm, batch):
    with pytest.raises(BadPrompt, match=r"\[8, 12\]"):
        vlm.cache(batch, "text.0.attn.pattern", queries="question")


@pytest.mark.parametrize(
    ("queries", "error"),
    [([99], IndexError), ([-26], IndexError), (torch.ones(3, dtype=torch.bool), IndexError),
     ([], ValueError), (slice(9, 9), ValueError), ("nothing", KeyError), ([1.5], TypeError)],
)  # fmt: skip
def test_rows_that_are_not_there_are_refused(vlm, prompt, queries, error, clean):
    with pytest.raises(error):
        vlm.cache(prompt, "text.0.attn.pattern", queries=queries)


def test_the_tower_counts_its_own_tokens(vlm, prompt):
    """17 patches under a prompt of 25 tokens: 'last' is the tower's last, a span is the text's."""
    whole = vlm.cache(prompt, "vision.1.attn.pattern", queries="all")["vision.1.attn.pattern"]
    assert whole.shape == (1, 3, 17, 17)
    close(vlm.cache(prompt, "vision.1.attn.pattern")["vision.1.attn.pattern"], whole[:, :, -1:])
    close(
        vlm.cache(prompt, "vision.1.attn.pattern", queries=[0, 4])["vision.1.attn.pattern"],
        whole[:, :, [0, 4]],
    )
    with pytest.raises(BadPrompt, match="positions of the text"):
        vlm.cache(prompt, ["text.1.attn.pattern", "vision.1.attn.pattern"], queries="question")


# -- batches and single prompts ----------------------------------------------------------------------


def test_a_batch_reads_as_its_prompts_do_one_by_one(vlm, picture):
    """Behind the padding every number is the same, to rounding."""
    questions = [QUESTION, "what ?", QUESTION + " what digit is on ?"]
    singles = [vlm.prompt(picture(70 + 20 * i, 60, i), question) for i, question in enumerate(questions)]
    batch = vlm.prompts([(picture(70 + 20 * i, 60, i), question) for i, question in enumerate(questions)])
    names = ["text.*.attn.pattern", "text.*.resid_post", "text.*.attn.result", "projector.out", "logits"]
    together = vlm.cache(batch, names)
    for row, single in enumerate(singles):
        alone = vlm.cache(single, names)
        shift = batch.length - single.length
        for name, value in alone.items():
            theirs = together[name][row]
            if name.endswith("pattern"):
                assert (theirs[..., :shift] == 0).all()
                theirs = theirs[..., shift:]
            elif not name.startswith("projector"):
                theirs = theirs[shift:]
            scale = max(1.0, float(value.abs().max()))
            close(theirs, value[0], atol=1e-5 * scale)


# -- behind a KV cache -------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_rows_of_decoded_tokens_are_those_of_a_full_run(tiny, picture, kernel):
    """Each step sees one query and every key so far; a run over prompt and answer has the same last row."""
    one = tiny(kernel)
    prompt = one.vlm.prompt(picture(), QUESTION)
    rows, streams = [], []
    with torch.no_grad(), one.vlm.generate(prompt, max_new_tokens=4, min_new_tokens=4) as tracer:
        for _step in tracer.iter[:4]:
            rows.append([layer.attn.pattern[:, :, -1:].clone() for layer in one.vlm.text])
            streams.append(one.vlm.text[3].resid_post[:, -1].clone())
        ids = tracer.result.save()
    assert ids.shape[1] == prompt.length + 4
    expected = one.twin("eager")
    for step in range(4):
        longer = dict(prompt.inputs, input_ids=ids[:, : prompt.length + step])
        longer["attention_mask"] = torch.ones_like(longer["input_ids"])
        with torch.no_grad():
            full = expected(**longer, output_attentions=True, output_hidden_states=True)
        for row, weights in zip(rows[step], full.attentions):
            assert row.shape == (1, 4, 1, prompt.length + step)
            close(row, weights[:, :, -1:])


def test_a_prefill_keeps_keys_and_values_to_go_on_from(tiny, vlm, prompt):
    """One more token on the kept cache is the last row of the whole sequence."""
    kept = vlm.prefill(prompt, ["text.1.attn.pattern", "text.3.resid_post"])
    whole = vlm.cache(prompt, ["text.1.attn.pattern", "text.3.resid_post", "logits"])
    close(kept.activations["text.1.attn.pattern"], whole["text.1.attn.pattern"])
    close(kept.logits, whole["logits"][:, -1])
    assert kept.past_key_values.get_seq_length() == prompt.length
    token = kept.logits.argmax(-1, keepdim=True)
    ids = torch.cat([prompt.inputs["input_ids"], token], 1)
    model = tiny().twin("sdpa")
    with torch.no_grad():
        step = model(input_ids=token, past_key_values=kept.past_key_values).logits[:, -1]
        full = model(**{**prompt.inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits[
            :, -1
        ]
    close(step, full)


# -- what is kept, and for how long ------------------------------------------------------------------


def test_values_are_copies_without_a_graph_unless_asked_for(vlm, prompt):
    plain = vlm.cache(prompt, "text.1.resid_post")["text.1.resid_post"]
    graph = vlm.cache(prompt, "text.1.resid_post", grad=True)["text.1.resid_post"]
    assert not plain.requires_grad
    assert graph.requires_grad
    assert torch.is_grad_enabled()
    assert torch.equal(plain, graph)
    plain.zero_()
    assert torch.equal(vlm.cache(prompt, "text.1.resid_post")["text.1.resid_post"], graph)


def test_values_are_kept_as_asked(vlm, prompt):
    found = vlm.cache(prompt, ["text.1.resid_post", "text.1.attn.pattern"], dtype=torch.float16, device="cpu")
    assert {value.dtype for value in found.values()} == {torch.float16}


def test_layers_behind_the_last_name_do_not_run(vlm, prompt):
    ran = []
    hooks = [
        layer.register_forward_pre_hook(lambda *_, i=i: ran.append(i))
        for i, layer in enumerate(vlm._module.model.language_model.layers)
    ]
    vlm.cache(prompt, "text.1.attn.pattern")
    for hook in hooks:
        hook.remove()
    assert ran == [0, 1]


def test_the_model_is_as_it_was(vlm, prompt, clean):
    vlm.cache(prompt, vlm.names())
    vlm.cache(prompt, "vision.0.attn.pattern")


def test_unknown_names_raise_before_anything_runs(vlm, prompt):
    with pytest.raises(UnknownName, match="layers 0-3"):
        vlm.cache(prompt, ["text.0.attn.pattern", "text.9.attn.pattern"])


def test_old_spellings_come_back_under_the_new_name(vlm, prompt):
    assert list(vlm.cache(prompt, "blocks.1.attn.hook_pattern")) == ["text.1.attn.pattern"]


def test_edits_are_seen_by_what_is_read(vlm, prompt):
    """A cached pattern is the one the model uses, not the one it would have used."""
    edited = vlm.with_edits(
        E.Knockout(keys="image", layers=2) + E.ScaleAttention(keys=[0], gain=3.0, layers=2, heads=1)
    )
    names = ["text.2.attn.scores", "text.2.attn.pattern", "text.2.attn.v", "text.2.attn.z"]
    cases = [("last", 0), ("all", 24), ([3, 24], 1), (torch.tensor([[24, 0]]), 0)]
    for queries, at in cases:
        found = edited.cache(prompt, names, queries=queries)
        plain = vlm.cache(prompt, names, queries=queries)
        pattern = found["text.2.attn.pattern"]
        others = [row for row in range(pattern.shape[2]) if row != at]
        image = prompt.grids[0].positions
        assert (pattern[:, :, at][..., image] == 0).all()
        assert (found["text.2.attn.scores"][:, :, at][..., image] == float("-inf")).all()
        close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))
        assert torch.equal(pattern[:, :, others], plain["text.2.attn.pattern"][:, :, others])
        v = found["text.2.attn.v"].repeat_interleave(2, 2)
        close(torch.einsum("bhk,bkhd->bhd", pattern[:, :, at], v), found["text.2.attn.z"][:, -1])


# -- what it costs -----------------------------------------------------------------------------------


class Sizes(TorchDispatchMode):
    """Shapes of every tensor that any operation of a run makes."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.shapes.add(tuple(tensor.shape))
        return out

    def square(self, n: int) -> set:
        return {shape for shape in self.shapes if sum(size == n for size in shape) >= 2}


def test_the_last_row_of_every_layer_never_makes_a_square(vlm, prompt):
    """Not even a mask: a prompt without padding needs none. Asked for all rows, the guard does see them."""
    n = prompt.length
    assert n not in (4, 8, 16, 17, 24, 31, 32, 48, 56), "the length must be no other size of the model"
    with Sizes() as plain:
        vlm.cache(prompt, ["text.*.attn.pattern", "text.*.attn.scores", "text.*.resid_post", "logits"])
    assert plain.square(n) == set()
    with Sizes() as whole:
        vlm.cache(prompt, "text.0.attn.pattern", queries="all")
    assert whole.square(n)


def test_an_edit_of_the_last_row_never_makes_a_square(vlm, prompt):
    edited = vlm.with_edits(E.ScaleAttention(keys="image", gain=2.0) + E.AblateHeads({1: [0]}))
    with Sizes() as sizes:
        edited.cache(prompt, "logits")
    assert sizes.square(prompt.length) == set()


# -- which names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("text.1-2.resid_post", ["text.1.resid_post", "text.2.resid_post"]),
        ("vision.*.attn.z", [f"vision.{layer}.attn.z" for layer in range(3)]),
        (["text.3.attn.q", "blocks.0.hook_resid_post"], ["text.3.attn.q", "text.0.resid_post"]),
        (["logits", "text.2.attn.pattern", "text.2.attn.*"], None),
    ],
)
def test_names_are_given_in_any_order_and_read_in_the_order_of_the_pass(vlm, prompt, names, expected):
    """Each once, and what is read later in the pass is not read too early or missed."""
    found = vlm.cache(prompt, names)
    everything = vlm.cache(prompt, vlm.names())
    if expected is None:
        parts = ("q", "k", "v", "scores", "pattern", "z", "result")
        expected = [f"text.2.attn.{part}" for part in parts] + ["logits"]
    assert set(found) == set(expected)
    assert list(found) == [name for name in vlm.names() if name in found]
    for name, value in found.items():
        assert torch.equal(value, everything[name])


def test_gradients_run_from_what_the_cache_hands_out(vlm, prompt):
    cache = vlm.cache(prompt, ["text.1.resid_post", "logits"], grad=True)
    (gradient,) = torch.autograd.grad(cache["logits"][0, -1].max(), cache["text.1.resid_post"])
    assert gradient.shape == cache["text.1.resid_post"].shape
    assert gradient.abs().sum() > 0


def test_what_is_no_prompt_is_refused_by_name(vlm, unchecked):
    for run in (vlm.cache, vlm.answer):
        with pytest.raises(BadPrompt, match=r"vlm\.prompt"):
            run("hi")


@pytest.mark.parametrize("setting", [{"num_beams": 3}, {"do_sample": True}, {"num_return_sequences": 2}])
def test_an_answer_is_greedy(vlm, prompt, setting):
    with pytest.raises(ValueError, match=r"vlm\.generate"):
        vlm.answer(prompt, **setting)
    with pytest.raises(ValueError, match="at least one token"):
        vlm.answer(prompt, max_new_tokens=0)


def test_what_has_no_prompt_pass_or_is_not_greedy_gives_no_answer_with_cache(vlm, prompt):
    kept = vlm.prefill(prompt, "text.0.resid_pre").past_key_values
    with pytest.raises(ValueError, match="use answer"):
        vlm.answer_with_cache(prompt, "text.0.resid_pre", past_key_values=kept)
    with pytest.raises(ValueError, match="greedily"):
        vlm.answer_with_cache(prompt, "text.0.resid_pre", num_beams=2)
    with pytest.raises(ValueError, match="at least one token"):
        vlm.answer_with_cache(prompt, "text.0.resid_pre", max_new_tokens=0)
    with pytest.raises(UnknownName, match="no name"):
        vlm.answer_with_cache(prompt, [])
