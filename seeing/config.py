"""The sizes of a model: what TransformerLens users look for in ``cfg``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from seeing.families import Family, Stack


@dataclass(frozen=True)
class StackConfig:
    """The sizes of one stack."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_model: int


@dataclass(frozen=True)
class Config(StackConfig):
    """The sizes of a model: the text stack's own, ``d_vocab``, ``vision``, and the tokens of its context,
    ``n_ctx`` (None where its config names none)."""

    d_vocab: int
    n_ctx: int | None
    vision: StackConfig
    family: str


def config_of(family: Family, model: nn.Module) -> Config:
    """Read the sizes off a model."""

    def sizes(stack: Stack) -> dict[str, int]:
        return dict(
            n_layers=len(stack),
            n_heads=stack.n_heads,
            n_kv_heads=stack.n_kv_heads,
            d_head=stack.d_head,
            d_model=stack.d_model,
        )

    return Config(
        **sizes(family.text(model)),
        d_vocab=family.head(model).weight.shape[0],
        n_ctx=getattr(model.config.get_text_config(), "max_position_embeddings", None),
        vision=StackConfig(**sizes(family.vision(model))),
        family=family.name,
    )
