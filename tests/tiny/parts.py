"""What all tiny models share: a byte tokenizer, a chat template, weights under which everything shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

_BASE = ("<pad>", "<bos>", "<eos>")


def tokenizer(specials: Mapping[str, str], extra: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """A token a byte, and one a special word; ``specials`` are also attributes (``image_token``)."""
    words = list(dict.fromkeys([*_BASE, *specials.values(), *extra]))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({word: i for i, word in enumerate([*words, *letters])}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(words)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens=dict(specials),
        padding_side="left",
    )


def chat_template(placeholder: str) -> str:
    """Turns in capitals, pictures as ``placeholder``."""
    return (
        "{{ bos_token }}{% for message in messages %}{{ message['role'] | upper }}: "
        "{% for item in message['content'] %}{% if item['type'] == 'image' %}" + placeholder + "{% else %}"
        "{{ item['text'] }}{% endif %}{% endfor %} {% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )


def generation_config(tokens: PreTrainedTokenizerFast) -> GenerationConfig:
    """Greedy, with the tokenizer's special ids."""
    return GenerationConfig(
        do_sample=False,
        pad_token_id=tokens.pad_token_id,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
    )


def sharpen(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights under which attention is uneven, and nothing is zero, one, or the same as its neighbour."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim <= 1:
                weight.copy_(0.2 * noise + ("norm" in name and name.endswith("weight")))
            else:
                weight.copy_((1.0 if "embed" in name else 1.5 * weight[0].numel() ** -0.5) * noise)
    return model.eval()


def offset_norms(model: torch.nn.Module) -> torch.nn.Module:
    """For text models whose norms are 1 + w: `sharpen` took w for the whole gain."""
    with torch.no_grad():
        for name, weight in model.get_decoder().named_parameters():
            if name.endswith("norm.weight") and "linear_attn" not in name:
                weight.sub_(1.0)
    return model
