"""The profiles that the paper published, by model id, so that its method runs without an annotated sample.

*Seeing but Not Believing* (Liu et al., ICLR 2026, arXiv 2510.17771) profiles six models on annotated samples
and names the ⌈10 %⌉ of layers that see the evidence best, with their mean AUROC. A published profile stands
wherever layers are said: ``vea(published(vlm))``, ``E.seen(layers=published(vlm))``. It belongs to that
checkpoint: a model tuned on from it, or read with another prompt, is better profiled anew (`profile`).
"""

from __future__ import annotations

from dataclasses import dataclass

from seeing.edits.layers import OfStack
from seeing.vlm import VLM

SOURCE = "Liu et al., ICLR 2026, arXiv 2510.17771"


@dataclass(frozen=True)
class Published:
    """A published profile.

    Attributes:
        model: the id on the Hugging Face hub.
        layers: L_VG, counted from 0, ascending.
        n_layers: how many the model's text stack has.
        auroc: mean AUROC at ``layers``, 0–1.
        auroc_all: mean AUROC over all layers.
        source: where it was published.
    """

    model: str
    layers: tuple[int, ...]
    n_layers: int
    auroc: float
    auroc_all: float
    source: str = SOURCE

    def __post_init__(self):
        object.__setattr__(self, "layers", OfStack.of(self.layers, self.n_layers))

    def check(self, vlm: VLM) -> None:
        """Raise ValueError for a model with another number of layers: their numbers say nothing there."""
        if vlm.cfg.n_layers != self.n_layers:
            raise ValueError(
                f"the published profile of {self.model} names layers of a text stack of {self.n_layers}, "
                f"this model has {vlm.cfg.n_layers}; profile it: probes.profile(vlm, samples)"
            )


#: By model id.
PROFILES: dict[str, Published] = {
    one.model: one
    for one in (
        Published("llava-hf/llava-1.5-7b-hf", (14, 15, 17, 19), 32, 0.921, 0.840),
        Published("llava-hf/llava-1.5-13b-hf", (13, 14, 15, 16), 40, 0.922, 0.860),
        Published("Qwen/Qwen2.5-VL-7B-Instruct", (18, 22, 24), 28, 0.891, 0.801),
        Published("Qwen/Qwen2.5-VL-32B-Instruct", (49, 50, 51, 52, 53, 55, 56), 64, 0.882, 0.731),
        Published("google/gemma-3-4b-it", (17, 19, 21, 23), 34, 0.803, 0.654),
        Published("google/gemma-3-27b-it", (35, 37, 40, 41, 47, 53, 58), 62, 0.847, 0.690),
    )
}


def published(model: str | VLM) -> Published:
    """The paper's profile of a model: by its hub id, or of the VLM at hand, by the id it was loaded from.

    Raises ValueError for a model without one (the message lists those that have one), and for a VLM whose
    number of layers is another.
    """
    name = model if isinstance(model, str) else model._module.config.name_or_path
    known = {key.lower(): one for key, one in PROFILES.items()}
    found = known.get(name.strip("/").lower())
    if found is None:
        raise ValueError(
            f"no published profile of {name!r}; there are profiles of {', '.join(PROFILES)}. Name one of "
            f"these where the model is a copy of it, or profile your own: probes.profile(vlm, samples)"
        )
    if not isinstance(model, str):
        found.check(model)
    return found
