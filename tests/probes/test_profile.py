"""Profiles keep the ⌈share⌉ of layers that see the evidence best, and rank the heads."""

import pytest
import torch

from seeing import probes
from seeing.metrics import Locality
from seeing.probes.evidence import Evidence
from seeing.probes.profile import profile_of


def evidence_of(layers, heads=None):
    """An `Evidence` with these AUROCs and nothing else."""
    layers = torch.tensor(layers, dtype=torch.float64)
    heads = torch.tensor(heads, dtype=torch.float64) if heads else layers[:, None].expand(-1, 2)
    return Evidence(
        heads=Locality(*[heads] * 6),
        layers=Locality(*[layers] * 6),
        samples=Locality(*[layers[None]] * 6),
        ids=("one",),
        left_out=(),
    )


#: Layers of a model, and how many the paper keeps of them.
PUBLISHED = {32: 4, 40: 4, 28: 3, 64: 7, 34: 4, 62: 7}


@pytest.mark.parametrize(
    ("n_layers", "kept"), [*PUBLISHED.items(), (1, 1), (6, 1), (10, 1), (11, 2), (20, 2), (30, 3)]
)
def test_a_tenth_of_the_layers_rounded_up(n_layers, kept):
    auroc = [((7 * layer) % n_layers) / n_layers for layer in range(n_layers)]
    found = profile_of(evidence_of(auroc))
    assert len(found.layers) == kept
    best = sorted(range(n_layers), key=lambda layer: -auroc[layer])[:kept]
    assert found.layers == tuple(sorted(best))


@pytest.mark.parametrize(
    ("top", "n_layers", "kept"),
    [(0.07, 100, 7), (0.28, 25, 7), (0.5, 6, 3), (0.51, 6, 4), (1, 6, 6), (1e-9, 6, 1)],
)
def test_a_share_is_not_rounded_up_by_floating_point(top, n_layers, kept):
    assert len(profile_of(evidence_of([0.5 + layer / 1000 for layer in range(n_layers)]), top).layers) == kept


def test_of_equal_layers_the_first_is_kept():
    assert profile_of(evidence_of([0.5, 0.9, 0.9, 0.9, 0.2])).layers == (1,)


@pytest.mark.parametrize("top", [0, -0.1, 1.01, float("nan")])
def test_a_share_outside_0_to_1_is_refused(random, crowded, top):
    with pytest.raises(ValueError, match="share"):
        probes.profile(random, crowded[:1], top)


HEADS = [[0.6, 0.9, 0.1], [0.8, 0.2, 0.95], [0.7, 0.99, 0.5]]


def test_the_best_heads_by_layer():
    found = profile_of(evidence_of([0.6, 0.7, 0.8], HEADS))
    assert found.heads(1) == {2: [1]}
    assert found.heads(3) == {0: [1], 1: [2], 2: [1]}
    assert found.heads() == {0: [1], 1: [0, 2], 2: [1]}
    assert found.heads(9) == {0: [0, 1, 2], 1: [0, 1, 2], 2: [0, 1, 2]}


def test_the_best_heads_below_a_layer():
    found = profile_of(evidence_of([0.6, 0.7, 0.8], HEADS))
    assert found.heads(2, below=2) == {0: [1], 1: [2]}
    assert found.heads(1, below=1) == {0: [1]}


@pytest.mark.parametrize(("k", "below"), [(0, None), (10, None), (7, 2), (-1, None), (1, 0)])
def test_more_heads_than_there_are_is_an_error(k, below):
    with pytest.raises(ValueError, match="heads"):
        profile_of(evidence_of([0.6, 0.7, 0.8], HEADS)).heads(k, below)


def test_a_planted_head_makes_its_layer_the_profile(planted, squares):
    samples = squares(8)
    found = probes.profile(planted, samples)
    assert found.layers == (2,)
    assert found.heads(1) == {2: [1]}
    assert found.n == 8
    assert torch.equal(found.auroc_heads, probes.evidence(planted, samples).auroc)
    assert found.auroc_layers.argmax() == 2


def test_the_template_is_how_the_question_is_asked(random, crowded):
    found = probes.profile(random, crowded[:2], template="the {question} is")
    asked = probes.evidence(random, crowded[:2], template="the {question} is")
    assert torch.equal(found.auroc_heads, asked.auroc)
    assert not torch.equal(found.auroc_heads, probes.profile(random, crowded[:2]).auroc_heads)


def test_the_embedded_model_sees(trained, crowded):
    """Its middle layers look at the evidence of crowded scenes."""
    found = probes.profile(trained, crowded)
    assert (found.auroc_layers[1:5] > 0.85).any()
    assert 0 < found.layers[0] < 5
