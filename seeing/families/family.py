"""What a family must say, and nothing more.

A vision-language model is two transformer stacks and a bridge. For everything above this floor to
be written once, a family says three things: where the modules of the two stacks are (`Stack`), how
``input_ids`` hold the image tokens, and how pixels of the original image map to visual tokens. What a
layer does with its parts (norms on a branch's output, gates, parallel branches) is read from its forward,
not said here. The load proof then holds the family to its word on the model at hand.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Int
from PIL import Image
from torch import Tensor, nn

from seeing.families.patches import Patches, class_tokens, split
from seeing.grid import VisualGrid


class UnknownFamily(ValueError):
    """A model that no family of the registry speaks for."""


class FamilyContractError(RuntimeError):
    """The view that a family gives of a model does not hold on the model at hand."""


@dataclass(frozen=True)
class Stack:
    """One transformer stack: its layers, and what the parts of a layer are called.

    ``attn``, ``out``, ``mlp`` and ``down`` are attribute names: the attention module of a layer, its
    output projection inside it, the MLP of a layer, and its last linear map inside it. Where layers
    differ, ``attn`` lists the names to try in order; a layer that has none of them has no softmax
    attention. ``out`` and ``down`` may be dotted, and ``down`` is None where the MLP has no single last map.

    ``n_heads``, ``n_kv_heads`` and ``d_head`` are the sizes that most layers have. ``packed`` is for
    towers whose layers take all patches of all pictures in one row without a batch axis, and call the
    kernel once a block. ``lacks`` maps a site to the reason why no layer of the stack has it.
    """

    name: str
    layers: Sequence[nn.Module]
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_model: int
    attn: str | tuple[str, ...] = "self_attn"
    out: str = "o_proj"
    mlp: str = "mlp"
    down: str | None = "down_proj"
    norm: nn.Module | None = None
    packed: bool = False
    lacks: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        attns = [attn for layer in range(len(self)) if (attn := self.attention(layer)) is not None]
        mlps = [part for layer in self.layers if (part := getattr(layer, self.mlp, None)) is not None]
        # A mixture of experts has a last map an expert, and none of the whole.
        ends = [part for part in mlps if not self.down or dotted(part, self.down) or hasattr(part, "experts")]
        for found, owners, name in (
            (attns, self.layers, self.attn if isinstance(self.attn, str) else " or ".join(self.attn)),
            (mlps, self.layers, self.mlp),
            ([part for part in attns if dotted(part, self.out)], attns, self.out),
            (ends, mlps, self.down),
        ):
            if not found:
                children = ", ".join(child for child, _ in owners[0].named_children())
                raise FamilyContractError(
                    f"the {self.name} stack says {name!r}, which no {type(owners[0]).__name__} has; it "
                    f"holds: {children}"
                )

    def __len__(self) -> int:
        return len(self.layers)

    def attention(self, layer: int) -> nn.Module | None:
        """The attention module of a layer, or None for one without softmax attention."""
        for name in (self.attn,) if isinstance(self.attn, str) else self.attn:
            if (module := getattr(self.layers[layer], name, None)) is not None:
                return module
        return None


def dotted(module: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted path below ``module``, or None."""
    for part in path.split("."):
        if (module := getattr(module, part, None)) is None:
            return None
    return module


class Family(ABC):
    """How one family of models is put together. Stateless: one instance serves every checkpoint."""

    #: What the family is called in errors and tables.
    name: str
    #: The ``config.model_type`` values it speaks for.
    model_types: frozenset[str]
    #: Keyword tensors without which the model runs, but wrongly: the processor must give them.
    required: tuple[str, ...] = ()
    #: Whether features are left out or repeated between the projector and the image tokens (padding of tiles,
    #: row ends): then tokens and features correspond through the grid only.
    packs: bool = False
    #: Keyword tensors that hold pixels, left out where a run goes on from a KV cache behind the pictures.
    pixels: tuple[str, ...] = ("pixel_values",)
    #: Whether a generation's prompt pass leaves rows out of the last layers that no logits are asked of.
    skips_rows: bool = False
    #: What ``token_type_ids`` say of a token of the answer.
    answer_type: int = 0

    def speaks_for(self, config: Any) -> bool:
        """Whether this family reads a model of this configuration."""
        return config.model_type in self.model_types

    @abstractmethod
    def text(self, model: nn.Module) -> Stack:
        """The language model's stack."""

    @abstractmethod
    def vision(self, model: nn.Module) -> Stack:
        """The vision tower's stack."""

    @abstractmethod
    def projector(self, model: nn.Module) -> nn.Module:
        """The module between the tower and the language model."""

    def among(self, n_images: int) -> Family:
        """The family as it reads a row of so many pictures: some treat one picture alone in another way."""
        return self

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

    def cross_grid(
        self, model: nn.Module, processor: Any, image_size: tuple[int, int], index: int
    ) -> VisualGrid | None:
        """The places of one image's keys in cross-attention layers, where the family has such layers.

        ``index`` counts the row's images; ``positions`` of the grid count keys.
        """
        return None

    def image_token_id(self, model: nn.Module) -> int:
        """The id that stands for an image token in ``input_ids``."""
        return model.config.image_token_id

    def head(self, model: nn.Module) -> nn.Module:
        """The unembedding, whose output is the logits."""
        return model.get_output_embeddings()

    def placeholder(self, processor: Any) -> str:
        """What stands for one picture in the text that the processor takes."""
        return processor.image_token

    def plain(self, processor: Any, n_images: int, instruction: str) -> str:
        """The text of one row where the processor has no chat template."""
        return self.placeholder(processor) * n_images + "\n" + instruction

    def tokenized(self, processor: Any, text: str) -> str:
        """The text that the processor hands to its tokenizer for ``text``, pictures not yet expanded."""
        return text

    def pictures(self, rows: Sequence[Sequence[Image.Image]]) -> Any:
        """The pictures of a batch as the processor takes them: one list a row."""
        return [list(row) for row in rows]

    def cleaned(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The processor's tensors without those that a forward pass should not get."""
        return inputs

    def positions(self, attention_mask: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"] | None:
        """The position of every token of a left-padded batch, padding not counted.

        Generation counts so; a plain forward counts the padding in unless it is told, and then keys and
        queries of a row are not those of the same prompt alone. None where the model counts by itself.
        """
        return (attention_mask.cumsum(1) - 1).clamp(min=0)

    def patches(self, model: nn.Module, processor: Any, grid: VisualGrid, length: int) -> tuple[Patches, ...]:
        """The tower's patches of one picture, one `Patches` a row of its batch, in order.

        Each level of ``grid``, the places of the picture's tokens, is one such row: perhaps a class token,
        then in reading order the patches, of which k × k are one token. ``length`` is how many tokens a row
        has. Raises `FamilyContractError` where that can't be, ValueError where it is not known.
        """
        cls = class_tokens(model.get_encoder(modality="image"))
        found = []
        for level in grid.levels:
            tokens = level.rows * level.cols
            merge = math.isqrt((length - cls) // tokens)
            if tokens * merge**2 + cls != length:
                raise FamilyContractError(
                    f"{self.name}: the tower has rows of {length} tokens, {cls} of them a class token; "
                    f"{level.rows}×{level.cols} image tokens of k×k patches each can't be that"
                )
            found.append(Patches(split(grid, level, merge, cls), tuple(range(cls))))
        return tuple(found)

    def patch_order(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Int[Tensor, " patch"] | None:
        """For a packed tower: the tower's slot of each patch, pictures in order and each in reading order.

        None where the tower works in reading order already.
        """
        return None

    def feature_order(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Int[Tensor, " token"] | None:
        """The projector's slot of each image token, where it does not work in their order; else None."""
        return None
