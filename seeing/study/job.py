"""What a worker is told: one model, and all that it is asked about and under.

A job travels to other processes and machines as it is, so it holds names and numbers and no open model,
but for one that somebody made by hand, which stays in its process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from seeing import loading
from seeing.data.dataset import Dataset
from seeing.methods.named import Named
from seeing.vlm import VLM
from seeing.zoo import ZOO


@dataclass(frozen=True)
class Job:
    """One model's part of a study.

    Attributes:
        name: what the model is called in the rows.
        model: what `seeing.load` takes, or a VLM.
        load: keyword arguments for it.
        data: the data sets, by the numbers that units have.
        methods: in the order of the rows.
        profile: the model's profile, as `Profile.save` writes it; None for none.
        calibration: samples for methods that look for something in the model before they answer.
        prompt, max_new_tokens, rows, tokens, seed: as in `Settings`.
    """

    name: str
    model: Any
    data: tuple[Dataset, ...]
    methods: tuple[Named, ...]
    load: Mapping[str, Any] = field(default_factory=dict)
    profile: str | None = None
    calibration: Dataset | None = None
    prompt: str = "qa"
    max_new_tokens: int | None = None
    rows: int = 32
    tokens: int = 32_768
    seed: int = 0

    @property
    def travels(self) -> bool:
        """Whether another process can open the model."""
        return not isinstance(self.model, VLM)

    def open(self) -> VLM:
        """The model. Raises what `seeing.load` raises."""
        if isinstance(self.model, VLM):
            return self.model
        if self.model in ZOO:
            import torch

            # The tensors of an embedded model are so small that a second thread mostly waits for the first.
            torch.set_num_threads(1)
        return loading.load(self.model, **self.load)
