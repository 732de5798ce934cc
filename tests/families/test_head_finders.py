"""Finders of heads in every family: padded batches, oblong pictures, tiles, layers that see no picture."""

import numpy as np
import pytest
import torch

from seeing import probes
from seeing.data.samples import EvidenceSample

SHORT, LONG = "what digit is on the red square ?", "what digit is on the red square on the blue circle ?"


@pytest.fixture(scope="module")
def samples(picture):
    return [
        EvidenceSample("wide", picture(120, 40), SHORT, ("1",), ((20, 12, 70, 40),)),
        EvidenceSample("tall", picture(50, 90, 1), LONG, ("2",), ((5, 40, 40, 60),)),
    ]


def test_gaze_scores_are_sums_over_the_rows_of_the_twin(case, samples):
    found = probes.gaze_heads(case.vlm, samples, progress=False)
    prompt = case.vlm.prompts(samples)
    case.twin.run(prompt.inputs)
    kernels = case.vlm.sites.kernels["text"]
    crossing = any(kernel.cross for kernel in kernels.values())
    for layer in range(case.vlm.cfg.n_layers):
        if layer not in kernels or kernels[layer].cross != crossing:
            assert found.scores[layer].isnan().all()
            continue
        rows = case.twin.calls[case.attention(layer)][-1]["pattern"][:, :, -1].double()
        on = [
            rows[row][:, grid.positions[grid.labels(sample.boxes)]].sum(-1)
            for row, (sample, grid) in enumerate(zip(samples, prompt.keys.grids))
        ]
        torch.testing.assert_close(found.scores[layer], torch.stack(on).mean(0), rtol=1e-4, atol=1e-6)
    table = found.top(2)
    assert set(table) <= set(kernels)


def test_localization_and_aurocs_have_numbers_in_the_layers_that_see_the_picture(case, samples):
    kernels = case.vlm.sites.kernels["text"]
    values = probes.aurocs(case.vlm, samples, progress=False)
    seen = ~values.layers.isnan()
    assert (seen == seen[0]).all()
    np.testing.assert_array_equal(~values.heads.isnan().any(-1), seen)
    # Of a few tokens each has more than the paper's 0.05 of the bottom row.
    found = probes.localization_heads(case.vlm, samples, best=2, bottom=1.0, progress=False)
    assert ((found.scores >= 0) & (found.scores <= 1)).any(1).tolist() == seen[0].tolist()
    assert found.scores.nansum() <= 2
    assert set(found.top(2)) <= set(kernels)
