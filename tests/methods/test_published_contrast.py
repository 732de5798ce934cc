"""Methods that decode from two runs: the mix of two log-softmaxes of the bare model, at every decoded token.

Both runs are done apart, each in a pass of its own over its own prompt and the tokens that were decoded.
"""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from tiny.eager import agree, case_of

from seeing import edits as E
from seeing import methods
from seeing.edits import BadEdit
from seeing.prompt import BadPrompt

FAMILIES = ("llava", "llava_next-llama", "qwen2_5_vl")


@pytest.fixture(params=FAMILIES, scope="module")
def case(request):
    return case_of(request.param)


def plausible(mixed, p, beta):
    """The mix, over the tokens with at least ``beta`` of the best one's probability."""
    bar = p.exp() < beta * p.exp().amax(-1, keepdim=True)
    return mixed.masked_fill(bar, -torch.inf).log_softmax(-1)


def unseen(case, prompt, answers):
    """Log-probabilities where no position attends to the image's tokens."""
    image = case.rows(prompt, "image")[:, None, None, :]
    return case.by_hand(prompt, answers, scores=lambda layer, z, visible: z.masked_fill(image, -torch.inf))


def shown(case, prompt, answers, picture):
    """Log-probabilities of the prompt with its pictures changed."""
    return case.logprobs(prompt.with_images(picture), answers)


# ---- another picture ----------------------------------------------------------------------------


def diffused(turn, step):
    """The picture under VCD's noise, whose size is that of the authors' schedule."""
    betas = torch.sigmoid(torch.linspace(-6, 6, 1000, dtype=torch.float64)) * (0.5e-2 - 1e-5) + 1e-5
    kept = float((1 - betas).cumprod(0)[step])
    edit = E.Noise.diffused(step)
    assert edit.keep == pytest.approx(math.sqrt(kept))
    assert edit.sigma == pytest.approx(math.sqrt(1 - kept) / 4)
    return edit.turn(0, turn).images[0]


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.1), (1.5, None)])
def test_vcd_mixes_the_picture_with_itself_under_noise(case, alpha, beta):
    prompt = case.batch
    answers = methods.vcd(alpha, 700, beta).answer(case.vlm, prompt)
    p = case.logprobs(prompt, answers)
    noisy = shown(case, prompt, answers, lambda row, _: diffused(prompt.turns[row], 700))
    mixed = (1 + alpha) * p - alpha * noisy
    agree(answers, plausible(mixed, p, beta or 0))


def black(boxes):
    def painted(picture):
        pixels = np.array(picture)
        for x0, y0, x1, y1 in boxes:
            pixels[int(y0) : int(y1), int(x0) : int(x1)] = 0
        return Image.fromarray(pixels)

    return painted


def test_crg_mixes_the_picture_with_itself_without_its_evidence(case):
    prompt = case.batch
    answers = methods.crg(alpha=0.8).answer(case.vlm, prompt)
    p = case.logprobs(prompt, answers)
    without = shown(case, prompt, answers, lambda row, one: black(prompt.turns[row].boxes)(one))
    assert (p - without).abs().max() > 1e-3
    agree(answers, (1.8 * p - 0.8 * without).log_softmax(-1))


def test_crg_takes_boxes_of_its_own_and_asks_for_those_that_are_not_there(case):
    prompt = case.batch
    answers = methods.crg([(2, 3, 30, 40)], 0.8).answer(case.vlm, prompt)
    p = case.logprobs(prompt, answers)
    without = shown(case, prompt, answers, lambda _, one: black([(2, 3, 30, 40)])(one))
    agree(answers, (1.8 * p - 0.8 * without).log_softmax(-1))
    bare = case.vlm.prompt(prompt.turns[0].images[0], prompt.turns[0].question)
    with pytest.raises(BadPrompt, match="evidence"):
        methods.crg().answer(case.vlm, bare)


def ramp(vlm, prompt):
    sizes = [turn.images[0].size for turn in prompt.turns]
    return [np.tile(np.linspace(0, 1, width), (height, 1)) for width, height in sizes]


@pytest.mark.parametrize("keep", [None, 0.25])
def test_agla_adds_the_salient_part_of_the_picture(case, keep):
    prompt = case.batch
    answers = methods.agla(ramp, 0.7, plausibility=0.5, keep=keep).answer(case.vlm, prompt)
    p = case.logprobs(prompt, answers)

    def salient(row, picture):
        weight = np.linspace(0, 1, picture.width)[None, :, None]
        if keep is not None:
            weight = (weight >= np.quantile(weight, 1 - keep)).astype(float)
        return Image.fromarray(np.rint(np.asarray(picture) * weight).astype(np.uint8))

    part = shown(case, prompt, answers, salient)
    assert (p - part).abs().max() > 1e-3
    agree(answers, plausible(p + 0.7 * part, p, 0.5))


def test_the_map_of_vea_is_a_saliency(case):
    maps = methods.vea((1,)).maps(case.vlm, case.batch)
    given = methods.agla(maps).answer(case.vlm, case.batch)
    found = methods.agla(methods.vea((1,)).maps).answer(case.vlm, case.batch)
    assert [one.logprob for one in given] == [one.logprob for one in found]


# ---- no picture ---------------------------------------------------------------------------------


def test_m3id_counts_the_picture_more_from_token_to_token(case):
    prompt = case.batch
    answers = methods.m3id(0.4, 0.1).answer(case.vlm, prompt)
    p, without = case.logprobs(prompt, answers), unseen(case, prompt, answers)
    gamma = torch.exp(-0.4 * torch.arange(1, p.shape[1] + 1))[None, :, None]
    agree(answers, plausible(p + (1 - gamma) / gamma * (p - without), p, 0.1))


def test_pai_guides_the_pushed_run_by_the_one_without_picture_and_push(case):
    prompt, image = case.batch, case.rows(case.batch, "image")[:, None, None, :]
    answers = methods.pai(0.5, 1.6, layers="all", plausibility=0.2).answer(case.vlm, prompt)

    def push(layer, z, visible):
        newest = (torch.arange(z.shape[2]) >= prompt.length - 1)[None, None, :, None]
        return torch.where(newest & image, z + 0.5 * z.abs(), z)

    p, without = case.by_hand(prompt, answers, scores=push), unseen(case, prompt, answers)
    agree(answers, plausible(1.6 * p - 0.6 * without, p, 0.2))


def test_a_blind_prompt_is_one_whose_picture_does_not_matter(case):
    blind = case.vlm.with_edits(methods.blind())
    prompt = case.batch
    other = prompt.with_images(lambda _, picture: picture.transpose(Image.Transpose.ROTATE_180))
    first, second = (blind.cache(one, "logits")["logits"][:, -1] for one in (prompt, other))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)
    plain, turned = (case.vlm.cache(one, "logits")["logits"][:, -1] for one in (prompt, other))
    assert (plain - turned).abs().max() > 1e-3


def test_two_contrasts_in_one_run_are_refused(case):
    with pytest.raises(BadEdit, match="contrasts with one other"):
        case.vlm.with_edits(methods.vcd().edits + methods.crg().edits)
    with pytest.raises(BadEdit, match="share of the pixels"):
        methods.agla(ramp, keep=0)
