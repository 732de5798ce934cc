"""The sizes of a model: what TransformerLens users look for in ``cfg``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from seeing.families import Family


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
    """The sizes of a model: the text stack's own, ``d_vocab``, and ``vision``."""

    d_vocab: int
    vision: StackConfig
    family: str


def config_of(family: Family, model: nn.Module) -> Config:
    """Read the sizes off a model."""

    def sizes(stack, config) -> dict[str, int]:
        d_head = getattr(config, "head_dim", None) or config.hidden_size // stack.n_heads
        return dict(
            n_layers=len(stack),
            n_heads=stack.n_heads,
            n_kv_heads=stack.n_kv_heads,
            d_head=d_head,
            d_model=config.hidden_size,
        )

    text = model.get_decoder().config
    vision = sizes(family.vision(model), model.get_encoder(modality="image").config)
    return Config(
        **sizes(family.text(model), text),
        d_vocab=text.vocab_size,
        vision=StackConfig(**vision),
        family=family.name,
    )
