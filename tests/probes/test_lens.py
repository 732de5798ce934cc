"""The logit lens: at which places, of which tokens, and the layer where a planted answer is made."""

import copy

import numpy as np
import pytest
import torch
from tiny import planted as garden

import seeing
from seeing import edits as E
from seeing import probes
from seeing.data.samples import EvidenceSample
from seeing.edits import BadEdit, EmptySelection
from seeing.families import FamilyContractError
from seeing.names import UnknownName
from seeing.probes.lens import decoding
from seeing.prompt import BadPrompt
from seeing.zoo.build import TOKEN

LONGER = "what digit is on the red square on the blue circle ?"


def by_hand(bare, sample, layer):
    """(pos, d_vocab) log-probabilities of Hugging Face's hidden states, through its norm and head."""
    inputs = bare.inputs((sample.image, sample.question))
    with torch.no_grad():
        hidden = bare.model(**inputs, output_hidden_states=True).hidden_states
        # The last of Hugging Face's hidden states is normed already.
        layers = bare.model.config.text_config.num_hidden_layers
        normed = (
            hidden[-1] if layer == layers - 1 else bare.model.model.language_model.norm(hidden[layer + 1])
        )
        return bare.model.lm_head(normed)[0].log_softmax(-1)


@pytest.fixture(scope="module")
def asked(crowded):
    """Two lengths of question, so that a batch is padded."""
    longer = EvidenceSample("longer", crowded[1].image, LONGER, ("4",), crowded[1].boxes)
    return [crowded[0], longer, crowded[2]]


@pytest.fixture(scope="module")
def found(random, asked):
    return probes.logit_lens(random, asked, k=3)


def test_each_sample_is_read_at_its_last_token_and_followed_by_its_first_answer(found, bare, asked):
    assert found.ids == tuple(sample.id for sample in asked)
    assert found.item.tolist() == [0, 1, 2]
    assert found.position.tolist() == [72, 76, 72]
    assert found.targets[:, 0].tolist() == [TOKEN[sample.answers[0]] for sample in asked]
    for place, sample in enumerate(asked):
        for layer in range(6):
            logp = by_hand(bare, sample, layer)[-1]
            said = found.logprobs[place, layer, 0]
            torch.testing.assert_close(said, logp[found.targets[place, 0]], atol=1e-4, rtol=1e-5)
            assert found.top[place, layer].tolist() == logp.topk(3).indices.tolist()
            torch.testing.assert_close(found.probs[place, layer], logp.exp().topk(3).values)
            assert found.ranks[place, layer, 0] == (logp > logp[found.targets[place, 0]]).sum()


def test_the_places_differ_so_that_a_wrong_one_would_show(found):
    assert (found.logprobs[0] - found.logprobs[1]).abs().min() > 1e-3
    assert found.kl[:, :-1].min() > 0.01
    assert found.kl[:, -1].abs().max() < 1e-5


def test_the_entropy_of_a_uniform_answer_is_that_of_the_vocabulary(random, asked):
    blank = random.with_edits(E.SetResidual("text.2.resid_post", torch.zeros(128)))
    found = probes.logit_lens(blank, asked[0], layers=[2])
    torch.testing.assert_close(found.entropy[0, 0], torch.tensor(float(np.log(random.cfg.d_vocab))))
    assert found.ranks[0, 0, 0] == 0, "a tie with all others has nothing above it"


def test_a_batch_says_what_each_sample_says_alone(random, asked, found):
    for place, sample in enumerate(asked):
        alone = probes.logit_lens(random, sample, k=3)
        assert alone.position.item() == found.position[place].item()
        torch.testing.assert_close(alone.logprobs[0], found.logprobs[place], atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(alone.kl[0], found.kl[place], atol=1e-4, rtol=1e-4)


def test_batches_and_a_few_places_at_a_time_change_nothing(random, asked, found, monkeypatch):
    monkeypatch.setattr(decoding, "_HELD", 1)
    other = probes.logit_lens(random, iter(asked), k=3, batch_size=2)
    assert other.ids == found.ids
    for name in ("top", "targets", "ranks", "position", "item"):
        assert torch.equal(getattr(other, name), getattr(found, name))
    torch.testing.assert_close(other.entropy, found.entropy, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("positions", "first", "second"),
    [
        ("question", range(65, 73), range(65, 77)),
        ([3, -2], [3, 71], [3, 75]),
        (0, [0], [0]),
        (-73, [0], [4]),
        (E.Span("question") & ~E.Span("last"), range(65, 72), range(65, 76)),
        ([(0, 0, 14, 14)], [1], [1]),
    ],
)
def test_positions_are_those_of_each_sample_by_itself(random, bare, asked, positions, first, second):
    found = probes.logit_lens(random, asked[:2], positions, layers=[1, 4])
    assert found.layers == (1, 4)
    for number, expected in enumerate((first, second)):
        mine = found.item == number
        assert found.position[mine].tolist() == list(expected)
        logp = by_hand(bare, asked[number], 4)[list(expected)]
        assert found.top[mine, 1].tolist() == logp.topk(5).indices.tolist()
        ids = random.prompt(asked[number]).inputs["input_ids"][0]
        assert found.standing[mine].tolist() == ids[list(expected)].tolist()


def test_a_prompt_is_followed_by_what_it_says_in_the_end(random, asked):
    prompt = random.prompts(asked)
    found = probes.logit_lens(random, prompt)
    assert found.ids == ("row 0", "row 1", "row 2")
    assert found.position.tolist() == [prompt.length - 1] * 3
    assert (found.ranks[:, -1, 0] == 0).all()
    answers = random.answer(prompt, 1)
    assert found.targets[:, 0].tolist() == [int(answer.ids[0]) for answer in answers]
    assert torch.equal(found.targets[:, 0], found.top[:, -1, 0])


def test_an_answer_of_several_tokens_is_followed_token_by_token(random, asked):
    said = ["7 red", "the blue circle", "3"]
    prompt = random.prompts(asked).with_answer(said)
    found = probes.logit_lens(random, prompt, "answer")
    assert found.item.tolist() == [0, 0, 1, 1, 1, 2]
    assert [found.words[one] for one in found.targets[:, 0].tolist()] == " ".join(said).split()
    score = random.score(prompt)
    for row in range(3):
        total = found.logprobs[found.item == row, -1, 0].sum()
        torch.testing.assert_close(total, score.logprob[row].cpu().float(), atol=1e-4, rtol=1e-5)
    first = probes.logit_lens(random, prompt, "last")
    torch.testing.assert_close(first.logprobs, found.logprobs[[0, 2, 5]], atol=1e-5, rtol=0)
    samples = [
        EvidenceSample(f"{n}", s.image, s.question, (a,), s.boxes)
        for n, (s, a) in enumerate(zip(asked, said))
    ]
    same = probes.logit_lens(random, samples, "answer")
    torch.testing.assert_close(same.logprobs, found.logprobs, atol=1e-4, rtol=1e-4)


def test_tokens_are_ids_or_texts(random, asked):
    found = probes.logit_lens(random, asked[:2], tokens=["red", TOKEN["7"], "7 red"])
    assert found.targets.tolist() == [[TOKEN["red"], TOKEN["7"], TOKEN["7"]]] * 2
    assert torch.equal(found.logprobs[..., 1], found.logprobs[..., 2])
    with pytest.raises(ValueError, match="ids from 0 to"):
        probes.logit_lens(random, asked, tokens=10**6)
    with pytest.raises(ValueError, match="texts or ids"):
        probes.logit_lens(random, asked, tokens=[])
    assert "violin" in probes_error(random, asked[0], tokens="violin")


def probes_error(vlm, sample, **asked) -> str:
    with pytest.raises(ValueError) as error:
        probes.logit_lens(vlm, sample, **asked)
    return str(error.value)


def test_a_branch_and_the_stream_before_it_are_decoded_too(random, bare, asked):
    before = probes.logit_lens(random, asked[0], layers=[3], site="resid_pre")
    behind = probes.logit_lens(random, asked[0], layers=[2])
    assert torch.equal(before.top, behind.top)
    branch = probes.logit_lens(random, asked[0], layers=[3], site="mlp_out")
    mlp = []
    layer = bare.model.model.language_model.layers[3]
    handle = layer.mlp.register_forward_hook(lambda module, args, out: mlp.append(out[:, -1]))
    by_hand(bare, asked[0], 3)
    handle.remove()
    with torch.no_grad():
        logits = bare.model.lm_head(bare.model.model.language_model.norm(mlp[0]))
    assert branch.top[0, 0].tolist() == logits[0].topk(5).indices.tolist()


# ---- what is planted is found ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "layer", "appears"), [("believes", 1, 1), ("believes", 2, 2), ("two hops", 1, 3)]
)
def test_the_layer_where_the_answer_is_made_is_named(plant, planted_samples, kind, layer, appears):
    model = plant(kind, layer=layer)
    samples = planted_samples(6, unusual=True)
    found = probes.logit_lens(model.vlm, samples)
    on_top = found.ranks[:, :, 0] == 0
    assert not on_top[:, :appears].any()
    assert on_top[:, appears:].all()
    usual = [garden.ANSWERS[sample.meta["place"]] for sample in samples]
    assert [found.said(place)[appears - 1][0] for place in range(6)] == usual, "head B's word stands before"


def test_a_later_token_is_made_at_its_own_position(plant, planted_samples):
    model = plant(layer=2, late=True)
    found = probes.logit_lens(model.vlm, planted_samples(4, late=True, unusual=True), "answer")
    first, second = found.ranks[::2, :, 0], found.ranks[1::2, :, 0]
    assert (first == 0).all(), "'it' is there from the start"
    assert (second[:, 2:] == 0).all()
    assert not (second[:, :2] == 0).any()


def test_an_edited_model_is_read_as_edited(plant, planted_samples):
    model = plant()
    samples = planted_samples(4, unusual=True)
    cut = model.vlm.with_edits(E.Knockout(keys="evidence"))
    found = probes.logit_lens(cut, samples)
    assert not (found.ranks[:, :, 0] == 0).any()


def test_positions_are_those_of_the_picture_that_is_shown(random, asked):
    """A crop appended behind the picture moves all that follows by its tokens."""
    window = E.Crop((0, 0, 56, 56), append=True)
    found = probes.logit_lens(random.with_edits(window), asked[:2])
    assert found.position.tolist() == [72 + 64, 76 + 64]
    for place, sample in enumerate(asked[:2]):
        both = [sample.image, sample.image.crop((0, 0, 56, 56))]
        alone = probes.logit_lens(random, random.prompt(both, sample.question), tokens=sample.answers[0])
        torch.testing.assert_close(found.logprobs[place], alone.logprobs[0], atol=1e-4, rtol=1e-5)


# ---- what can't be read ------------------------------------------------------------------------------------


def test_a_lens_that_is_not_the_models_last_step_is_refused(random, asked):
    turned = random.with_edits(E.Steer("text.norm", torch.ones(128), 3.0, positions="all"))
    with pytest.raises(FamilyContractError, match=r"off by .* at text.norm .*Steer"):
        probes.logit_lens(turned, asked[0])
    mixed = random.with_edits(E.MixLayers([1], weight=0.5))
    with pytest.raises(FamilyContractError, match="at logits"):
        probes.logit_lens(mixed, asked[0])


@pytest.mark.parametrize("positions", ["answer", "last", "question"])
def test_a_given_answers_logits_are_held_to_the_lens_too(random, asked, positions):
    """The last position of all predicts no token of the answer; those that do are held."""
    steered = random.with_edits(E.Steer("logits", torch.arange(float(random.cfg.d_vocab)), 2.0))
    forced = random.prompts(asked[:2]).with_answer(["7 red blue", "3"])
    with pytest.raises(FamilyContractError, match=r"at logits .*Steer"):
        probes.logit_lens(steered, forced, positions)


def test_an_edited_models_logits_are_held_to_the_lens_wherever_it_reads(random, asked, monkeypatch):
    steered = random.with_edits(E.Steer("logits", torch.ones(random.cfg.d_vocab).cumsum(0), positions=[3]))
    prompt = random.prompt(asked[0])
    monkeypatch.setattr(decoding, "_HELD", 1)
    with pytest.raises(FamilyContractError, match="at logits"):
        probes.logit_lens(steered, prompt, [2, 3, 4])
    found, plain = (probes.logit_lens(vlm, prompt, [2, 4]) for vlm in (steered, random))
    assert torch.equal(found.logprobs, plain.logprobs)


def test_samples_without_such_a_position_are_left_out(random, asked):
    bald = EvidenceSample("bald", asked[0].image, asked[0].question, ("7",), ())
    strange = EvidenceSample("strange", asked[0].image, "what violin ?", ("7",), asked[0].boxes)
    found = probes.logit_lens(random, [asked[0], bald, strange, asked[2]], "evidence", layers=[5])
    assert found.ids == (asked[0].id, asked[2].id)
    assert found.n == 2
    assert [one.id for one in found.left_out] == ["strange", "bald"]
    assert "violin" in found.left_out[0].reason
    assert "boxes" in found.left_out[1].reason
    assert set(found.item.tolist()) == {0, 1}
    longer = EvidenceSample("longer", asked[1].image, LONGER, ("4",), asked[1].boxes)
    found = probes.logit_lens(random, [asked[0], longer], 75, layers=[5])
    assert found.ids == ("longer",)
    assert "outside" in found.left_out[0].reason
    with pytest.raises(ValueError, match="bald"):
        probes.logit_lens(random, bald, "evidence")


def test_what_the_model_lacks_is_named(random, asked):
    with pytest.raises(BadEdit, match="no layer 6"):
        probes.logit_lens(random, asked, layers=[2, 6])
    with pytest.raises(UnknownName, match="resid_pst"):
        probes.logit_lens(random, asked, site="resid_pst")
    with pytest.raises(UnknownName, match="unembedded"):
        probes.logit_lens(random, asked, site="attn.z")
    with pytest.raises(ValueError, match="k is"):
        probes.logit_lens(random, asked, k=0)
    with pytest.raises(BadEdit, match="while the model runs"):
        probes.logit_lens(random, asked, E.seen(layers=[2]))
    with pytest.raises(ValueError, match="no positions are called 'questoin'"):
        probes.logit_lens(random, asked, "questoin")
    with pytest.raises(BadEdit, match="this prompt has") as error:
        probes.logit_lens(random, random.prompt(asked[0]).with_answer("7"), "questoin")
    assert str(error.value).count("answer") == 1
    with pytest.raises(BadPrompt, match="with_answer"):
        probes.logit_lens(random, random.prompts(asked), "answer")
    with pytest.raises(EmptySelection):
        probes.logit_lens(random, random.prompts(asked), E.Span("image") & E.Span("question"))


# ---- frame and figure --------------------------------------------------------------------------------------


def test_frames_hold_what_the_arrays_hold(random, asked):
    found = probes.logit_lens(random, asked, "question", layers=[2, 5], tokens=["7", "red"], k=2)
    frame = found.to_frame()
    assert len(frame) == found.ranks.numel()
    at = frame.set_index(["sample", "position", "layer", "target"]).loc[("longer", 70, 5, "red")]
    place = int(((found.item == 1) & (found.position == 70)).nonzero())
    assert at["logprob"] == found.logprobs[place, 1, 1].item()
    assert at["rank"] == found.ranks[place, 1, 1].item()
    assert at["token"] == "red"
    assert at["top"] == found.said(place)[1][0]
    assert at["kl"] == found.kl[place, 1].item()
    tops = found.top_frame()
    assert len(tops) == found.top.numel()
    row = tops.set_index(["sample", "position", "layer", "k"]).loc[("longer", 70, 2, 1)]
    assert row["word"] == found.said(place)[0][1]
    assert row["prob"] == found.probs[place, 0, 1].item()


def test_one_sample_is_drawn_as_a_grid_of_words(random, asked):
    found = probes.logit_lens(random, asked, "question", k=2)
    (grid,) = found.figure(1).data
    mine = found.item == 1
    np.testing.assert_array_equal(grid.z, found.probs[mine, :, 0].T.numpy())
    assert grid.text.shape == (6, 12)
    place = int(mine.nonzero()[3, 0])
    word = found.said(place)[2][0]
    assert grid.text[2, 3] == word.replace("<", "&lt;").replace(">", "&gt;")
    assert grid.customdata[2, 3].startswith(f"{grid.text[2, 3]}  {found.probs[place, 2, 0]:.3f}")
    with pytest.raises(ValueError, match="3 samples"):
        found.figure(3)


def test_several_samples_are_drawn_by_depth(found):
    top, prob = (trace for trace in found.figure(dark=True).data if trace.mode == "lines+markers")
    np.testing.assert_allclose(top.y, (found.ranks[..., 0] == 0).double().mean(0))
    np.testing.assert_allclose(prob.y, found.logprobs[..., 0].double().exp().mean(0), rtol=1e-6)


def test_the_embedded_model_makes_its_answers_in_its_last_layers(trained, crowded):
    found = probes.logit_lens(trained, crowded)
    right = found.ranks[:, -1, 0] == 0
    answers = trained.answer(trained.prompts(crowded))
    assert right.tolist() == [str(a) == s.answers[0] for a, s in zip(answers, crowded)]
    assert 0 < right.sum() < len(crowded)


def test_half_precision_is_read_and_held_to_its_own_rounding(pair, crowded):
    model, processor = pair
    half = seeing.load((copy.deepcopy(model).to(torch.bfloat16), processor), check=False)
    found = probes.logit_lens(half, crowded[:2])
    assert found.logprobs.dtype == torch.float32
    assert found.logprobs.isfinite().all()
