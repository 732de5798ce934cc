"""Reading attention rows over a data set: the one loop that all probes of attention share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from seeing.data.samples import EvidenceSample
from seeing.prompt import Prompt, Template
from seeing.vlm import VLM, Queries

#: Told how many samples are done, after each batch.
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Reading:
    """Rows of one batch, with the prompt that says what the keys are.

    Attributes:
        rows: (batch, layer, head, query, key) over the tokens of the sequence. NaN in layers that have
            no attention over them (linear layers, cross-attention layers).
        cross: the same over the image's keys of cross-attention layers, NaN in all others; None for a
            model without such layers.
    """

    prompt: Prompt
    rows: Float[Tensor, "batch layer head query key"]
    cross: Float[Tensor, "batch layer head query image_key"] | None = None

    @property
    def over_images(self) -> Float[Tensor, "batch layer head query image_key"]:
        """The rows whose keys ``prompt.keys`` describes: those that see the image's tokens one by one."""
        return self.rows if self.cross is None else self.cross


def read_rows(
    vlm: VLM, prompt: Prompt, queries: Queries = "last", layers: Iterable[int] | None = None
) -> Reading:
    """The rows of ``queries`` in all text layers (or in ``layers``), one forward pass, any kernel."""
    layers = range(vlm.cfg.n_layers) if layers is None else layers
    kernels = vlm.sites.kernels["text"]
    names = {layer: f"text.{layer}.attn.pattern" for layer in layers if layer in kernels}
    cache = vlm.cache(prompt, list(names.values()), queries)
    found = {layer: cache[name].cpu() for layer, name in names.items()}

    def stacked(cross: bool) -> Tensor | None:
        own = {layer: rows for layer, rows in found.items() if kernels[layer].cross == cross}
        if not own:
            return None
        absent = torch.full_like(next(iter(own.values())), torch.nan)
        return torch.stack([own.get(layer, absent) for layer in layers], dim=1)

    cross, rows = stacked(True), stacked(False)
    if rows is None:
        shape = (*cross.shape[:-1], prompt.length)
        rows = cross.new_full(shape, torch.nan)
    return Reading(prompt, rows, cross)


def read_samples(
    vlm: VLM,
    samples: Iterable[EvidenceSample],
    *,
    template: Template | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Iterator[tuple[list[EvidenceSample], Reading]]:
    """Each batch of samples with the rows of its last prompt tokens. Memory holds one batch at a time."""
    done = 0
    for batch in batched(samples, batch_size):
        for sample in batch:
            if not isinstance(sample, EvidenceSample):
                raise TypeError(f"a probe takes EvidenceSamples, got {type(sample).__name__}")
        yield batch, read_rows(vlm, vlm.prompts(batch, template=template))
        done += len(batch)
        if progress is not None:
            progress(done)


def batched(samples: Iterable, size: int) -> Iterator[list]:
    """Lists of ``size`` consecutive samples; the last one may be shorter."""
    if size < 1:
        raise ValueError(f"a batch holds at least one sample, got batch_size={size}")
    samples = iter(samples)
    while batch := list(islice(samples, size)):
        yield batch


def checked(samples: Iterable[EvidenceSample] | EvidenceSample) -> Sequence[EvidenceSample] | Iterable:
    """``samples`` as an iterable of samples; one sample stands for a list of one."""
    if isinstance(samples, EvidenceSample):
        return [samples]
    if isinstance(samples, (str, bytes)) or not isinstance(samples, Iterable):
        raise TypeError(f"a probe takes EvidenceSamples, got {type(samples).__name__}")
    return samples
