"""What a family must say, and nothing more.

A vision-language model is two transformer stacks and a bridge. For everything above this floor to
be written once, a family says three things: where the modules of the two stacks are (`Stack`), how
``input_ids`` hold the image tokens, and how pixels of the original image map to visual tokens. The
load proof then holds it to its word on the model at hand.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from seeing.grid import VisualGrid


class UnknownFamily(ValueError):
    """A model that no family of the registry speaks for."""


class FamilyContractError(RuntimeError):
    """The view that a family gives of a model does not hold on the model at hand."""


@dataclass(frozen=True)
class Stack:
    """One transformer stack: its layers, and what the parts of a layer are called.

    ``attn``, ``out``, ``mlp`` and ``down`` are attribute names: the attention module of a layer, its
    output projection inside it, the MLP of a layer, and its last linear map inside it.
    ``embed`` is the module whose first input (``embed_is_input``) or output enters layer 0, and
    ``norm`` the final norm, or None where nothing uses one.
    """

    name: str
    layers: Sequence[nn.Module]
    attn: str
    out: str
    mlp: str
    down: str
    embed: nn.Module
    embed_is_input: bool
    n_heads: int
    n_kv_heads: int
    norm: nn.Module | None = None

    def __post_init__(self):
        for part in (self.attn, self.mlp):
            if not hasattr(self.layers[0], part):
                children = ", ".join(name for name, _ in self.layers[0].named_children())
                raise FamilyContractError(
                    f"the {self.name} stack's layers have no {part!r}; "
                    f"{type(self.layers[0]).__name__} holds: {children}"
                )

    def __len__(self) -> int:
        return len(self.layers)


class Family(ABC):
    """How one family of models is put together. Stateless: one instance serves every checkpoint."""

    #: What the family is called in errors and tables.
    name: str
    #: The ``config.model_type`` values it speaks for.
    model_types: frozenset[str]

    @abstractmethod
    def text(self, model: nn.Module) -> Stack:
        """The language model's stack."""

    @abstractmethod
    def vision(self, model: nn.Module) -> Stack:
        """The vision tower's stack."""

    @abstractmethod
    def projector(self, model: nn.Module) -> nn.Module:
        """The module between the tower and the language model."""

    @abstractmethod
    def n_tokens(self, model: nn.Module, processor: Any, image_size: tuple[int, int]) -> int:
        """How many image tokens a picture of ``image_size`` (width, height) takes in ``input_ids``."""

    @abstractmethod
    def grid(
        self, model: nn.Module, processor: Any, image_size: tuple[int, int], positions: Tensor
    ) -> VisualGrid:
        """The places of one image's tokens.

        Args:
            image_size: (width, height) of the original image, in pixels.
            positions: (token,) the image's positions in the sequence, in order.
        """

    def image_token_id(self, model: nn.Module) -> int:
        """The id that stands for an image token in ``input_ids``."""
        return model.config.image_token_id

    def head(self, model: nn.Module) -> nn.Module:
        """The unembedding, whose output is the logits."""
        return model.get_output_embeddings()

    def positions(self, attention_mask: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"] | None:
        """The position of every token of a left-padded batch, padding not counted.

        Generation counts so; a plain forward counts the padding in unless it is told, and then keys and
        queries of a row are not those of the same prompt alone. None where the model counts by itself.
        """
        return (attention_mask.cumsum(1) - 1).clamp(min=0)
