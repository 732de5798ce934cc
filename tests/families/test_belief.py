"""The belief probe in every family, against edges cut by hand in the twin."""

import pytest
import torch
from tiny.hand import rows_by_hand

from seeing import probes
from seeing.data.samples import EvidenceSample
from seeing.probes.believing.elsewhere import elsewhere, generator

BOXES = [((4.0, 4.0, 24.0, 20.0),), ((30.0, 40.0, 50.0, 70.0),)]


@pytest.fixture
def asked(picture):
    sizes, questions = ((76, 52), (60, 80)), ("what digit is on the red square ?", "what digit ?")
    return [
        EvidenceSample(str(seed), picture(*size, seed), question, ("7",), boxes)
        for seed, (size, question, boxes) in enumerate(zip(sizes, questions, BOXES))
    ]


def logprob(case, prompt, tokens=None):
    """The answer's log-probability in the twin, no text token attending to some of the picture's."""
    edits, (ids,) = {}, prompt.answers
    if tokens is not None:
        keys = torch.zeros(1, prompt.keys.spans.shape[1], dtype=torch.bool)
        keys[0, prompt.keys.grids[0].positions[tokens]] = True
        queries = prompt.spans.mask("text") | prompt.spans.mask("answer")
        cut = rows_by_hand("scores", lambda s, k, _: s.masked_fill(k, -torch.inf), queries, keys)
        kernels = case.vlm.sites.kernels["text"]
        crosses = any(kernel.cross for kernel in kernels.values())
        layers = [layer for layer, kernel in kernels.items() if kernel.cross == crosses]
        edits = {case.attention(layer): cut for layer in layers}
    logits = case.twin.run(prompt.inputs, edits=edits)[0, prompt.n_asked - 1 : -1]
    return float(logits.log_softmax(-1)[torch.arange(len(ids)), ids].sum())


def test_what_hiding_costs_is_what_it_costs_by_hand(case, asked):
    vlm, draws = case.vlm, 2
    found = probes.belief(vlm, asked, answers="given", draws=draws, batch_size=2)
    assert found.n == 2
    for number, sample in enumerate(asked):
        prompt = vlm.prompt(sample).with_answer("7")
        grid = prompt.keys.grids[0]
        evidence = grid.labels(sample.boxes) & grid.placed
        random = generator(0, sample.id)
        regions = [evidence, *(elsewhere(grid, sample.boxes, evidence, random)[0] for _ in range(draws))]
        plain, *hidden = (logprob(case, prompt, tokens) for tokens in (None, *regions))
        drops = torch.tensor([plain - one for one in hidden], dtype=torch.float64)
        ours = torch.cat([found.evidence_drop[number, None], found.control_drop[number]])
        torch.testing.assert_close(ours, drops, rtol=0, atol=1e-3)
        assert float(found.logprob[number]) == pytest.approx(plain, abs=1e-3)
        assert drops.abs().max() > 1e-5
