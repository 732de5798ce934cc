"""Tiny random LLaVA models, each beside an untouched twin of the same weights.

What the library says is held against the twin: a bare Hugging Face model that nnsight never wrapped,
run with the eager kernel (which hands out its attention weights) and torch's own hooks. Weights are
drawn so that attention is far from uniform and biases are not zero, under which a wrong mask, a wrong
head order or a forgotten bias would hardly show.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import seeing
from seeing.zoo.build import TOKEN, WORDS, build_processor

LAYERS, HEADS, WIDTH, VISION_LAYERS, VISION_WIDTH = 4, 4, 32, 3, 24
QUESTION = "what digit is on the red square ?"
LONGER = "what digit is on the red square on the blue circle ?"


class Reference:
    """A forward pass of the bare model in which every named value is read, and may be edited, by hand.

    It knows the Hugging Face modules and nothing of the library under test: torch's module hooks, and an
    attention function of its own that writes the textbook formula out. ``edits`` are functions by name.
    """

    def __init__(self, model: LlavaForConditionalGeneration, edits: dict[str, Callable] | None = None):
        self.model, self.edits, self.values = model, edits or {}, {}

    def at(self, name: str, value: torch.Tensor) -> torch.Tensor:
        value = self.edits[name](value) if name in self.edits else value
        self.values[name] = value
        return value

    def attend(self, module, q, k, v, mask, scaling=None, **kwargs):
        """softmax(q·kᵀ·scaling + mask)·v."""
        name = self.names[module]
        q, k, v = (
            self.at(f"{name}.attn.{part}", value.transpose(1, 2)).transpose(1, 2)
            for part, value in zip("qkv", (q, k, v))
        )
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = q @ k.transpose(-1, -2) * scaling
        scores = scores if mask is None else scores + mask
        pattern = self.at(f"{name}.attn.pattern", self.at(f"{name}.attn.scores", scores).softmax(-1))
        return self.at(f"{name}.attn.z", (pattern @ v).transpose(1, 2)), pattern

    def run(self, **inputs: Any) -> dict[str, torch.Tensor]:
        model, undo = self.model, []
        self.names = {}
        text, tower = model.model.language_model, model.model.vision_tower
        tower = getattr(tower, "vision_model", tower)

        def hook(module, fn, before=False):
            """A pre-hook gets the first input, whether it came by position or by name."""
            if not before:
                undo.append(module.register_forward_hook(lambda _, args, output: fn(output), prepend=True))
                return

            def pre(_, args, kwargs):
                if args:
                    return (fn(args[0]), *args[1:]), kwargs
                first = next(iter(kwargs))
                return args, {**kwargs, first: fn(kwargs[first])}

            undo.append(module.register_forward_pre_hook(pre, with_kwargs=True))

        def keep(name):
            return lambda value: self.at(name, value)

        stacks = (
            ("text", text.layers, "o_proj", "post_attention_layernorm", "down_proj"),
            ("vision", tower.encoder.layers, "out_proj", "layer_norm2", "fc2"),
        )
        for stack, layers, out, norm, down in stacks:
            for number, layer in enumerate(layers):
                name = f"{stack}.{number}"
                attn = layer.self_attn
                self.names[attn] = name
                hook(layer, keep(f"{name}.resid_pre"), before=True)
                hook(getattr(attn, out), self._projected(name, attn, getattr(attn, out)))
                hook(getattr(layer, norm), keep(f"{name}.resid_mid.read"), before=True)
                hook(getattr(layer.mlp, down), keep(f"{name}.mlp.post"), before=True)
                hook(layer.mlp, keep(f"{name}.mlp_out"))
                hook(layer, keep(f"{name}.resid_post"))
        hook(tower.encoder, keep("vision.embed"), before=True)
        hook(model.model.multi_modal_projector, keep("projector.in"), before=True)
        hook(model.model.multi_modal_projector, keep("projector.out"))
        hook(text.norm, keep("text.norm"))
        hook(model.lm_head, keep("logits"))
        undo.append(
            text.register_forward_pre_hook(
                lambda _, args, kwargs: (
                    args,
                    {**kwargs, "inputs_embeds": self.at("text.embed", kwargs["inputs_embeds"])},
                ),
                with_kwargs=True,
            )
        )
        AttentionInterface.register("by_hand", self.attend)
        AttentionMaskInterface.register("by_hand", eager_mask)
        before = model.config._attn_implementation
        model.set_attn_implementation("by_hand")
        try:
            model(**inputs)
        finally:
            model.set_attn_implementation(before)
            for handle in undo:
                handle.remove()
        for name in [name for name in self.values if name.endswith(".read")]:
            self.values[name.removesuffix(".read")] = self.values.pop(name)
        return self.values

    def _projected(self, name: str, attn, out) -> Callable:
        """The output projection head by head, and the residual stream behind it.

        The stream after attention is resid_pre + attn_out, so an edit of it is an edit of attn_out.
        """

        def fn(output):
            z = self.values[f"{name}.attn.z"]
            size = z.shape[-1]
            parts = [
                z[:, :, head] @ out.weight[:, head * size : (head + 1) * size].T for head in range(z.shape[2])
            ]
            result = self.at(f"{name}.attn.result", torch.stack(parts, dim=2))
            if f"{name}.attn.result" in self.edits:
                output = result.sum(2) + out.bias
            output = self.at(f"{name}.attn_out", output)
            if f"{name}.resid_mid" in self.edits:
                before = self.values[f"{name}.resid_pre"]
                output = self.edits[f"{name}.resid_mid"](before + output) - before
            return output

        return fn


class Tiny:
    """One tiny model: the `vlm`, and `twin(kernel)`, the bare model of the same weights."""

    def __init__(self, model: LlavaForConditionalGeneration, processor: LlavaProcessor, kernel: str):
        self.processor = processor
        self._bare = copy.deepcopy(model)
        model.set_attn_implementation(kernel)
        self.vlm = seeing.load((model, processor), check=False)

    @functools.cache  # noqa: B019 - lives as long as the session's models
    def twin(self, kernel: str = "eager") -> LlavaForConditionalGeneration:
        """A bare copy with this kernel. Leave it as it is: others read it too."""
        model = copy.deepcopy(self._bare).eval()
        model.set_attn_implementation(kernel)
        return model

    def pair(self) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
        """A fresh bare model and the processor, to be loaded or spoilt."""
        return copy.deepcopy(self._bare), self.processor

    def reference(self, prompt: Any, edits: dict[str, Callable] | None = None) -> dict[str, torch.Tensor]:
        """Every named value of a pass of the bare model, with edits made by hand."""
        return Reference(self._hooked(), edits).run(**prompt.inputs)

    @functools.cache  # noqa: B019
    def _hooked(self) -> LlavaForConditionalGeneration:
        return copy.deepcopy(self._bare).eval()

    @torch.no_grad()
    def eager(self, prompt: Any, **kwargs: Any) -> Any:
        """What the bare eager model makes of the prompt, attention weights included."""
        return self.twin("eager")(
            **prompt.inputs, output_attentions=True, output_hidden_states=True, **kwargs
        )


def make_config(
    *, kv_heads: int, feature_layer: int, strategy: str, tower: str, side: int, patch: int, vocab: int
) -> LlavaConfig:
    vision = dict(
        image_size=side,
        patch_size=patch,
        hidden_size=VISION_WIDTH,
        intermediate_size=40,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=3,
    )
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**vision) if tower == "siglip" else CLIPVisionConfig(**vision),
        text_config=LlamaConfig(
            vocab_size=vocab,
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=kv_heads,
            max_position_embeddings=1024,
            attention_bias=True,
            pad_token_id=TOKEN["<pad>"],
            bos_token_id=TOKEN["<bos>"],
            eos_token_id=TOKEN["<eos>"],
            tie_word_embeddings=False,
        ),
        image_token_index=TOKEN["<image>"],
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=False,
        pad_token_id=TOKEN["<pad>"],
        bos_token_id=TOKEN["<bos>"],
        eos_token_id=TOKEN["<eos>"],
    )
    if vocab == len(WORDS):
        config.seeing_templates = {"qa": "what is {question}", "vea": "is the {question}"}
    return config


def make_processor(*, strategy: str, tower: str, side: int, patch: int, words: bool) -> LlavaProcessor:
    processor = build_processor()
    if tower == "siglip":
        processor.image_processor = SiglipImageProcessorPil(size={"height": side, "width": side})
    else:
        processor.image_processor.size = {"shortest_edge": side}
        processor.image_processor.crop_size = {"height": side, "width": side}
    processor.patch_size = patch
    processor.vision_feature_select_strategy = strategy
    processor.num_additional_image_tokens = int(tower == "clip")
    if not words:
        processor.tokenizer = byte_tokenizer()
        processor.chat_template = (
            "{{ bos_token }}{% for message in messages %}USER: {% for item in message['content'] %}"
            "{% if item['type'] == 'image' %}<image>\n{% else %}{{ item['text'] }}{% endif %}"
            "{% endfor %} ASSISTANT:{% endfor %}"
        )
    return processor


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Any text, a token a byte: the paper's templates have words that the word tokenizer lacks."""
    special = [word for word in TOKEN if word.startswith("<")]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: i for i, word in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def sharpen(model: LlavaForConditionalGeneration, seed: int) -> None:
    """Weights under which attention is uneven, biases count and the answer is not always the same token."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(0.2 * noise + ("norm" in name and name.endswith("weight")))
            else:
                scale = 1.0 if "embed" in name else 1.5 * weight[0].numel() ** -0.5
                weight.copy_(scale * torch.randn(weight.shape, generator=generator))


@functools.cache
def make(
    kernel: str = "sdpa",
    *,
    kv_heads: int = 2,
    feature_layer: int = -1,
    strategy: str = "default",
    tower: str = "clip",
    side: int = 56,
    patch: int = 14,
    words: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Tiny:
    vocab = len(WORDS) if words else 5 + 256
    config = make_config(
        kv_heads=kv_heads,
        feature_layer=feature_layer,
        strategy=strategy,
        tower=tower,
        side=side,
        patch=patch,
        vocab=vocab,
    )
    model = LlavaForConditionalGeneration(config).eval()
    sharpen(model, seed=0)
    model.generation_config = GenerationConfig(
        do_sample=False,
        pad_token_id=TOKEN["<pad>"],
        bos_token_id=TOKEN["<bos>"],
        eos_token_id=TOKEN["<eos>"],
    )
    processor = make_processor(strategy=strategy, tower=tower, side=side, patch=patch, words=words)
    return Tiny(model.to(dtype), processor, kernel)


def paint(width: int = 80, height: int = 60, seed: int = 0) -> Image.Image:
    """A picture of smooth noise: crops and shifts of it all differ."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Tiny]:
    """``tiny(kernel, kv_heads=…, feature_layer=…, …)``: the model of these settings, built once."""
    return make


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """``picture(width, height, seed)``: a picture of smooth noise."""
    return paint


@pytest.fixture(scope="session")
def vlm(tiny):
    """The plain case: CLIP tower, two key/value heads for four query heads, sdpa."""
    return tiny().vlm


@pytest.fixture(scope="session")
def prompt(vlm, picture):
    """One oblong picture and a question."""
    return vlm.prompt(picture(), QUESTION, boxes=[(20, 10, 45, 40)])


@pytest.fixture(scope="session")
def batch(vlm, picture):
    """Two rows of different length, so that the first is padded on the left."""
    return vlm.prompts([(picture(), QUESTION), (picture(50, 90, seed=1), LONGER)])


@pytest.fixture
def unchecked(monkeypatch):
    """Signatures are not checked, as with a user: what our own checks say is heard."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def clean(vlm, prompt, tiny):
    """Proves behind the test that the model is as it was: the same logits, bit for bit."""
    yield
    with torch.no_grad():
        assert torch.equal(vlm.cache(prompt, "logits")["logits"], tiny().twin("sdpa")(**prompt.inputs).logits)
