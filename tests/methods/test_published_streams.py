"""VAR, VISTA and ViCrop by hand: weight moved off sinks, the stream turned, a window cut out."""

import numpy as np
import pytest
import torch
from tiny.eager import agree, case_of, ids_of

from seeing import edits as E
from seeing import methods
from seeing.edits import BadEdit
from seeing.maps import Window
from seeing.methods.crop import best_box, sharpness
from seeing.methods.visual_sinks import SinkDims

FAMILIES = ("llava", "llava_next-llama", "qwen2_5_vl")


@pytest.fixture(params=FAMILIES, scope="module")
def case(request):
    return case_of(request.param)


def hooked(case, modules, fn, run):
    """``run()`` with fn(number, output) in place of what each of the modules gives."""

    def hook(number):
        def changed(module, args, output):
            if isinstance(output, tuple):
                return (fn(number, output[0]), *output[1:])
            return fn(number, output)

        return changed

    handles = [module.register_forward_hook(hook(number)) for number, module in modules]
    try:
        return run()
    finally:
        for handle in handles:
            handle.remove()


# ---- VAR ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("least", "rho"), [(0.05, 1.0), (0.3, 0.2)])
def test_var_moves_weight_from_sinks_to_the_rest_of_the_picture(case, least, rho):
    prompt, dims, tau, p = case.batch, (0, 3), 1.5, 0.4
    method = methods.var(dims, tau, rho, p, least=least, layers=slice(1, None))
    answers = method.answer(case.vlm, prompt)
    image, text = case.rows(prompt, "image"), case.rows(prompt, "text")
    text[:, prompt.length :] = True
    streams, changed = {}, []

    def keep(number, value):
        streams[number + 1] = value
        return value

    def moved(layer, a, visible):
        if layer < 1:
            return a
        x = streams[layer]
        sizes = x[..., list(dims)].abs().amax(-1) / x.pow(2).mean(-1).sqrt()
        sinks = sizes > tau
        sinks[:, prompt.length :] = False
        out = a.clone()
        for row in range(a.shape[0]):
            seen = a[row][..., image[row]].sum(-1)
            lost = a[row][..., image[row] & sinks[row]].sum(-1)
            good = (seen >= least) & (lost <= rho * seen) & text[row]
            to = image[row] & ~sinks[row]
            budget = (1 - p) * a[row][..., sinks[row]].sum(-1, keepdim=True)
            share = a[row][..., to] / a[row][..., to].sum(-1, keepdim=True)
            new = a[row].clone()
            new[..., sinks[row]] *= p
            new[..., to] += budget * share
            good = good & (a[row][..., to].sum(-1) > 0)
            out[row] = torch.where(good[..., None], new, a[row])
            changed.append(good)
        torch.testing.assert_close(out.sum(-1), a.sum(-1))
        return out

    layers = list(enumerate(case.eager.layers))
    logprobs = hooked(case, layers, keep, lambda: case.by_hand(prompt, answers, pattern=moved))
    agree(answers, logprobs)
    some = torch.cat([one.flatten() for one in changed])
    assert some.any()
    assert not some.all()


def test_sink_dimensions_are_those_that_are_huge_at_a_few_tokens():
    """Planted by an edit: behind layer 0 the first word of the question is huge in two dimensions."""
    case = case_of("llava")
    at = case.single.spans["question"][0, :1].tolist()
    big = torch.zeros(case.vlm.cfg.d_model)
    big[5], big[2] = 400.0, -300.0
    sunk = case.vlm.with_edits(E.Steer("text.0.resid_post", big, 1.0, at, when="prompt"))
    found = methods.sink_dims(sunk, case.single, tau=5)
    assert list(found) == [5, 2]
    # Two dimensions of 4 to 3 share the norm of the vector: 4/5 and 3/5 of the square root of its length.
    root = case.vlm.cfg.d_model**0.5
    np.testing.assert_allclose(found.ratios, (0.8 * root, 0.6 * root), rtol=0.05)
    assert f"5 ({found.ratios[0]:.1f})" in str(found)
    assert methods.sink_dims(sunk, case.single, k=1, tau=5) == (5,)
    sizes = methods.sink_sizes(sunk, case.single)
    assert sizes.shape == (case.single.length, case.vlm.cfg.d_model)
    assert int(sizes[:, 5].argmax()) == at[0]


def test_a_model_without_sinks_says_so_and_how_large_its_dimensions_get(case):
    with pytest.raises(BadEdit, match=r"makes sinks at tau=20.*× rms, where the median"):
        methods.sink_dims(case.vlm, case.batch)
    with pytest.raises(BadEdit, match="at least 1"):
        methods.sink_dims(case.vlm, case.batch, k=0)


def test_a_dimension_that_is_large_at_every_token_makes_no_sink():
    case = case_of("llava")
    big = torch.zeros(case.vlm.cfg.d_model)
    big[5] = 400.0
    bent = case.vlm.with_edits(E.Steer("text.0.resid_post", big, 1.0, "all"))
    with pytest.raises(BadEdit, match=r"makes sinks at tau=5. The largest: 5 \(\d"):
        methods.sink_dims(bent, case.single, tau=5)


def test_sink_dimensions_are_a_tuple_that_var_takes():
    found = SinkDims.of((7, 1), (30.0, 25.0), 3.0)
    assert found == (7, 1)
    assert str(found) == "7 (30.0), 1 (25.0) × rms, where the median dimension reaches 3.0"
    assert methods.var(found).edits.sinks.dims == (1, 7)


# ---- VISTA --------------------------------------------------------------------------------------


def turned(x, v, strength):
    """The formula, vector by vector."""
    unit = torch.nn.functional.normalize
    away = torch.cosine_similarity(x, -v.expand_as(x), dim=-1).clamp_min(0)[..., None]
    return x.norm(dim=-1, keepdim=True) * unit(
        unit(x, dim=-1) + strength * (1 + away) * unit(v, dim=-1), dim=-1
    )


def directions(case):
    return torch.randn(
        case.vlm.cfg.n_layers, case.vlm.cfg.d_model, generator=torch.Generator().manual_seed(3)
    )


@pytest.mark.parametrize("site", ["mlp_out", "resid_post"])
def test_vista_turns_every_token_and_keeps_its_length(case, site):
    prompt, vectors = case.batch, directions(case)
    answers = methods.vista(vectors, 0.4, weight=0, site=site).answer(case.vlm, prompt)
    layers = case.eager.layers
    modules = [(n, layer.mlp if site == "mlp_out" else layer) for n, layer in enumerate(layers)]
    plain = case.logprobs(prompt, answers)
    logprobs = hooked(
        case, modules, lambda n, x: turned(x, vectors[n], 0.4), lambda: case.logprobs(prompt, answers)
    )
    assert (logprobs - plain).abs().amax() > 1e-3
    agree(answers, logprobs)


def test_vista_mixes_what_early_layers_would_answer_into_the_logits(case):
    prompt = case.batch
    answers = methods.vista(directions(case), 0.0, window=(0, 1), weight=0.6).answer(case.vlm, prompt)
    streams = {}

    def keep(number, value):
        streams[number] = value
        return value

    ids = ids_of(answers)
    layers = list(enumerate(case.eager.layers))
    logits = hooked(case, layers, keep, lambda: case.eager.logits(prompt.inputs, ids))
    head = case.eager.model.get_output_embeddings().weight
    early = (streams[0] + streams[1])[:, -ids.shape[1] :] / 2 @ head.T
    agree(answers, (0.4 * logits + 0.6 * early).log_softmax(-1))


def test_vista_steers_by_the_mean_and_the_first_component_of_the_differences(case):
    """Against numpy: of centred differences, all layers in one vector, the leading eigenvector of XᵀX."""
    batch, n_layers = case.batch, case.vlm.cfg.n_layers
    vectors = methods.vista_vectors(case.vlm, batch)
    names = [f"text.{layer}.resid_post" for layer in range(n_layers)]
    blind = case.vlm.with_edits(methods.blind())
    with_, without = (
        np.stack([vlm.cache(batch, name)[name][:, -1].double().numpy() for name in names], 1)
        for vlm in (case.vlm, blind)
    )
    x = (with_ - without).reshape(len(batch), -1)
    centred = x - x.mean(0)
    first = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    first = first * np.sign(first @ x.mean(0))
    expected = (x.mean(0) + first).reshape(n_layers, -1)
    np.testing.assert_allclose(vectors.numpy(), expected, atol=1e-4)
    alone = methods.vista_vectors(case.vlm, batch.row(0), batch.row(1))
    one, other = (case.vlm.cache(batch.row(row), names[-1])[names[-1]][0, -1] for row in (0, 1))
    torch.testing.assert_close(alone[-1], one - other)
    with pytest.raises(BadEdit, match="of pairs"):
        methods.vista_vectors(case.vlm, batch, batch.row(1))


# ---- ViCrop -------------------------------------------------------------------------------------

GENERIC = "what is on the red square ?"


def test_vicrop_appends_a_crop_of_the_window_that_the_question_looks_at(case):
    prompt = case.batch
    method = methods.vicrop(1, generic=GENERIC, size=20)
    boxes = method.windows(case.vlm, prompt)
    for box, turn in zip(boxes, prompt.turns):
        assert 20 <= box[2] - box[0] <= 40
        assert box[2] - box[0] == pytest.approx(box[3] - box[1])
        assert box[0] >= 0
        assert box[2] <= turn.images[0].width
    answers = method.answer(case.vlm, prompt)
    pictures = []
    for (x0, y0, x1, y1), turn in zip(boxes, prompt.turns):
        cut = turn.images[0].crop((int(x0), int(y0), int(np.ceil(x1)), int(np.ceil(y1))))
        pictures.append(([turn.images[0], cut], turn.question))
    expected = case.vlm.answer(case.vlm.prompts(pictures))
    for answer, one in zip(answers, expected):
        torch.testing.assert_close(answer.token_logprobs, one.token_logprobs)


def test_relative_attention_is_that_of_the_question_over_that_of_the_generic_prompt(case):
    prompt = case.batch
    generic = case.vlm.prompts([(turn.images[0], GENERIC) for turn in prompt.turns])
    maps = methods.vicrop([0, 1], generic=GENERIC).maps(case.vlm, prompt)
    rows = []
    for asked in (prompt, generic):
        kept = {}

        def keep(layer, a, visible, kept=kept):
            kept[layer] = a
            return a

        case.eager.pattern = keep
        case.eager.logits(asked.inputs, torch.zeros(2, 1, dtype=torch.long))
        case.eager.pattern = None
        last = torch.stack([kept[layer][:, :, -1] for layer in (0, 1)]).mean((0, 2))
        rows.append([last[row, grid.positions].numpy() for row, grid in enumerate(asked.grids)])
    for found, over, under in zip(maps, *rows):
        np.testing.assert_allclose(found, over / under, rtol=1e-3)


def test_the_sharpest_window_is_found_wherever_it_is(random, crowded):
    """A hill of 3 × 3 tokens, of 14 pixels, on an 8 × 8 grid."""
    prompt = random.prompt(crowded[0])
    (grid,) = prompt.grids
    for row, col in ((0, 0), (2, 4), (5, 5), (3, 0)):
        scores = np.full((8, 8), 0.1)
        scores[row : row + 3, col : col + 3] = 1.0
        box = best_box(scores.ravel(), grid, size=28)
        assert box == pytest.approx((14 * col, 14 * row, 14 * col + 42, 14 * row + 42), abs=8)
        assert best_box(scores.ravel(), grid, 42, (1.0,)) == (
            14 * col,
            14 * row,
            14 * col + 42,
            14 * row + 42,
        )


def test_sharpness_is_a_window_above_its_neighbours():
    scores = np.zeros((4, 5))
    scores[1, 2] = 6.0
    assert sharpness(scores, Window(1, 2, 1, 1)) == 6.0
    # A window of two: beside it lie one that keeps the peak, and three without.
    assert sharpness(scores, Window(1, 2, 1, 2)) == pytest.approx((6 - (6 + 0 + 0 + 0) / 4) / 2)
    # In the corner there are two neighbours.
    scores[0, 0] = 2.0
    assert sharpness(scores, Window(0, 0, 1, 1)) == 2.0


def test_a_picture_that_is_no_larger_than_the_window_is_shown_again_whole(random, crowded):
    prompt = random.prompt(crowded[0])
    assert best_box(np.random.default_rng(0).random(64), prompt.grids[0], size=112) == (0, 0, 112, 112)


def test_windows_without_size_are_refused():
    with pytest.raises(BadEdit, match="positive"):
        methods.vicrop(1, size=0)
    with pytest.raises(BadEdit, match="positive"):
        methods.vicrop(1, ratios=())
