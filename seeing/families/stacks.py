"""The stacks that many families share: a decoder in Llama's spelling, a CLIP or SigLIP tower."""

from __future__ import annotations

from typing import Any

from torch import nn

from seeing.families.family import Family, Stack


def decoder_stack(decoder: nn.Module, **parts: Any) -> Stack:
    """The text stack of a decoder whose layers are spelled as Llama's (Mistral, Qwen and Gemma do so too).

    ``parts`` override what `Stack` takes.
    """
    config = decoder.config
    n_heads = config.num_attention_heads
    if "d_head" not in parts:
        parts["d_head"] = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    if "n_kv_heads" not in parts:
        parts["n_kv_heads"] = getattr(config, "num_key_value_heads", None) or n_heads
    return Stack(
        **dict(
            name="text",
            layers=tuple(decoder.layers),
            n_heads=n_heads,
            d_model=config.hidden_size,
            norm=decoder.norm,
        )
        | parts
    )


def raster_tower(tower: nn.Module, **parts: Any) -> Stack:
    """The vision stack of a CLIP or SigLIP tower, or of one spelled like them."""
    config = tower.config
    return Stack(
        **dict(
            name="vision",
            layers=tuple(tower.encoder.layers),
            n_heads=config.num_attention_heads,
            n_kv_heads=config.num_attention_heads,
            d_head=config.hidden_size // config.num_attention_heads,
            d_model=config.hidden_size,
            out="out_proj",
            down="fc2",
        )
        | parts
    )


class DecoderAndTower(Family):
    """A family of these two stacks, with a ``multi_modal_projector`` between them."""

    def text(self, model: nn.Module) -> Stack:
        return decoder_stack(model.get_decoder())

    def vision(self, model: nn.Module) -> Stack:
        return raster_tower(model.get_encoder(modality="image"))

    def projector(self, model: nn.Module) -> nn.Module:
        return model.model.multi_modal_projector
