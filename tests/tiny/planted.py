"""Planted models: tiny LLaVAs whose weights are written by hand, so that what a probe must find is known.

A picture is a grid of plain tiles. The colour of a tile is a code: an angle in the plane of red and green.
Two tiles side by side are marked: they are blue, and their code is the answer. The question names a place,
and each place has a usual answer, which the picture may contradict. What a model does with that is planted:

kind                looks at the mark   answers by
believes            head A              the code that head A copies from there
unbelieving         head A              the place's usual answer; head A writes nothing
blind believer      nothing             the code of marked tiles, picked by the values under uniform attention
neither             nothing             the place's usual answer
two hops            head A, from "?"    the code: head A takes it to "?", a later head from there to the end

Head B takes the usual answer from the place's word to the end; where the code decides, it whispers. All
other heads attend uniformly and write zero, all MLPs write zero. In the tower, one head's CLS looks at the
mark. A late model says "it" first, and looks and answers from there, one token later.

How it is done. The tower gives each patch its mean colour. The projector's hidden units are detectors: one a
code, one a code that is marked, one the mark. In the stream every quantity has dimensions of its own, small
beside a constant that fills the rest, so that norms divide by a constant. Queries and keys meet in the pair
of dimensions that the rotary embedding turns least, by 1e-5 over a prompt, so position plays no part. Two
query heads share a key head, as in released models, and pictures are oblong: of 12 × 8 tiles, 8 × 8 are seen.
"""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import seeing
from seeing.data.samples import EvidenceSample

KINDS = ("believes", "unbelieving", "blind believer", "neither", "two hops")
ANSWERS = ("0", "1", "2", "3", "4", "5")
PLACES = ("attic", "barn", "cellar", "deck", "eaves", "forge")
SPECIAL = PAD, BOS, EOS, UNKNOWN, IMAGE = "<pad>", "<bos>", "<eos>", "<unk>", "<image>"
ASKED = ("what", "is", "on", "the", "marked", "tile", "in", "old", "?", ":", "it")
WORDS = (*SPECIAL, *PLACES, *ASKED, *ANSWERS)
TOKEN = {word: i for i, word in enumerate(WORDS)}

N = len(ANSWERS)
COLS, ROWS, SEEN, TILE, PATCH = 12, 8, 8, 21, 14
LAYERS, HEADS, KV_HEADS, D_HEAD, WIDTH = 4, 4, 2, 16, 64
#: Where in the stream what lies; behind it the constant.
ANSWER, CODE, MARKED, CARRIED, PLACE = (slice(start, start + N) for start in range(0, 5 * N, N))
MARK, LAST, ASK, PLACED, DONE, LATER, REST = range(5 * N, 5 * N + 7)
CONSTANT = 8.0
#: What a norm of the text model divides by.
RMS = CONSTANT * math.sqrt((WIDTH - REST) / WIDTH)
#: The dimension of a head that the rotary embedding turns least.
STILL = D_HEAD // 2 - 1
#: The largest difference of scores in a row that looks, and the largest logit.
SHARPNESS, LOUD, WHISPER = 12.0, 8.0, 1.0

TOWER_WIDTH, TOWER_CONSTANT = 24, 6.0
TOWER_STD = TOWER_CONSTANT * math.sqrt((TOWER_WIDTH - 8) / TOWER_WIDTH)


@dataclass(frozen=True, eq=False)
class Planted:
    """A planted model and what is known of it.

    Attributes:
        vlm: the model, proved at load.
        eager: the same weights under Hugging Face alone, eager kernel.
        looks: (layer, head) of head A; None where nothing looks.
        carries: (layer, head)s that carry the code to the answer, in order; none where it has no say.
        usual: (layer, head) of head B.
        tower: (layer, head) of the tower's head whose CLS looks at the mark.
        looker: the word from which head A looks.
        late: whether the answer is two words, "it" and the code.
    """

    kind: str
    vlm: Any
    eager: nn.Module
    looks: tuple[int, int] | None
    carries: tuple[tuple[int, int], ...]
    usual: tuple[int, int]
    tower: tuple[int, int]
    looker: str
    late: bool

    @property
    def by_picture(self) -> bool:
        """Whether the picture decides the answer."""
        return bool(self.carries)

    def says(self, sample: EvidenceSample) -> str:
        """The answer that this model gives."""
        answer = ANSWERS[sample.meta["code"] if self.by_picture else sample.meta["place"]]
        return f"it {answer}" if self.late else answer

    @torch.no_grad()
    def attention(self, sample: EvidenceSample) -> Tensor:
        """(layer, head, query, key) by Hugging Face's eager kernel."""
        inputs = self.vlm.prompt(sample).inputs
        return torch.cat(self.eager(**inputs, output_attentions=True).attentions)


def answer_id(answer: str) -> int:
    """The token of an answer."""
    return TOKEN[answer]


def samples(n: int, seed: int = 0, **fixed: Any) -> list[EvidenceSample]:
    """Random pictures and questions, see `sample`; questions differ in length, so that batches are padded."""
    rng = np.random.default_rng(seed)
    return [sample(rng, name=f"planted/{seed}/{number}", **fixed) for number in range(n)]


def sample(
    rng: np.random.Generator,
    name: str = "planted",
    code: int | None = None,
    place: int | None = None,
    at: tuple[int, int] | None = None,
    tile: int = TILE,
    old: bool | None = None,
    unusual: bool = False,
    late: bool = False,
) -> EvidenceSample:
    """A picture of 12 × 8 tiles and a question; what is not given is drawn.

    Args:
        code: the marked tiles' code, which is the right answer.
        place: the place asked about, whose usual answer is the answer of that number.
        at: (row, column) of the left marked tile in the picture. Columns 2 to 9 are seen.
        tile: side of a tile in pixels.
        old: whether the question has one more word.
        unusual: the place's usual answer is not the right one.
        late: the answer is that of a late model.
    """
    codes = rng.integers(N, size=(ROWS, COLS))
    drawn = int(rng.integers(N)), int(rng.integers(1, N)), rng.integers(ROWS), 2 + rng.integers(SEEN - 1)
    code = drawn[0] if code is None else code
    if place is None:
        place = (code + drawn[1]) % N if unusual else int(rng.integers(N))
    row, col = (int(drawn[2]), int(drawn[3])) if at is None else at
    old = bool(rng.integers(2)) if old is None else old
    codes[row, col : col + 2] = code
    angles = 2 * math.pi * codes / N
    colours = np.stack([0.5 + 0.4 * np.cos(angles), 0.5 + 0.4 * np.sin(angles), np.zeros_like(angles)], -1)
    colours[row, col : col + 2, 2] = 1
    pixels = (255 * colours).round().astype(np.uint8).repeat(tile, 0).repeat(tile, 1)
    return EvidenceSample(
        id=name,
        image=Image.fromarray(pixels),
        question=f"what is on the marked tile in the {'old ' * old}{PLACES[place]} ?",
        answers=("it " * late + ANSWERS[code],),
        boxes=((col * tile, row * tile, (col + 2) * tile, (row + 1) * tile),),
        meta={"code": code, "place": place, "at": (row, col)},
    )


@functools.cache
def planted(kind: str = "believes", layer: int = 1, head: int = 2, late: bool = False) -> Planted:
    """The planted model of a kind, head A at (layer, head); models are kept: leave them as they are."""
    if kind not in KINDS:
        raise ValueError(f"no kind {kind!r}; there are {', '.join(KINDS)}")
    model = _empty()
    usual, tower, second = (0, 3), (1, 1), (layer + 2, (head + 1) % HEADS)
    _see(model, *tower)
    _speak(model, late)
    text = model.model.language_model.layers
    by_picture = kind in ("believes", "blind believer", "two hops")
    _move(text, usual, LAST, PLACED, PLACE, ANSWER, WHISPER / LOUD if by_picture else 1.0)
    looks, carries, looker = (layer, head), ((layer, head),), "it" if late else ":"
    if kind == "believes":
        _move(text, looks, LAST, MARK, CODE, ANSWER)
    elif kind == "unbelieving":
        _move(text, looks, LAST, MARK, CODE, ANSWER, 0.0)
        carries = ()
    elif kind == "blind believer":
        # two of some 76 tokens are marked
        _move(text, looks, None, None, MARKED, ANSWER, 76 / 2)
        looks = None
    elif kind == "neither":
        looks, carries = None, ()
    else:
        _move(text, looks, ASK, MARK, CODE, CARRIED)
        _move(text, second, LAST, ASK, CARRIED, ANSWER)
        carries, looker = (looks, second), "?"
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    vlm = seeing.load((model, _processor()))
    return Planted(kind, vlm, eager, looks, carries, usual, tower, looker, late)


# ---- weights -----------------------------------------------------------------------------------------------


def _move(
    layers: nn.ModuleList,
    where: tuple[int, int],
    query: int | None,
    key: int | None,
    source: slice,
    target: slice,
    gain: float = 1.0,
) -> None:
    """The head ``where``: from tokens flagged ``query`` it looks at those flagged ``key``, all others look
    everywhere alike; what lies in ``source`` there is written to ``target``.
    """
    layer, head = where
    attention, shared = layers[layer].self_attn, head // (HEADS // KV_HEADS)
    with torch.no_grad():
        if query is not None:
            strength = math.sqrt(SHARPNESS * math.sqrt(D_HEAD)) * RMS
            attention.q_proj.weight[head * D_HEAD + STILL, query] = strength
            attention.k_proj.weight[shared * D_HEAD + STILL, key] = strength
        for number in range(N):
            attention.v_proj.weight[shared * D_HEAD + number, source.start + number] = RMS
            attention.o_proj.weight[target.start + number, head * D_HEAD + number] = gain


def _see(model: LlavaForConditionalGeneration, layer: int, head: int) -> None:
    """Tower and projector: the mean colour of each patch, then code, marked code and mark."""
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    with torch.no_grad():
        constant = torch.zeros(TOWER_WIDTH)
        constant[8::2], constant[9::2] = TOWER_CONSTANT, -TOWER_CONSTANT
        tower.embeddings.position_embedding.weight.copy_(constant)
        for channel in range(3):
            # and its negative, so that a norm has no mean to take away
            for dim, sign in ((2 * channel, 1), (2 * channel + 1, -1)):
                tower.embeddings.patch_embedding.weight[dim, channel] = sign / PATCH**2
        tower.embeddings.class_embedding[6], tower.embeddings.class_embedding[7] = 1, -1
        strength = math.sqrt(SHARPNESS / 2.5 * math.sqrt(TOWER_WIDTH / 2)) * TOWER_STD
        attention = tower.encoder.layers[layer].self_attn
        attention.q_proj.weight[head * TOWER_WIDTH // 2, 6] = strength
        attention.k_proj.weight[head * TOWER_WIDTH // 2, 4] = strength
        # red and green are the code's cosine and sine; blue is ±1.25
        steep = 40.0
        for number in range(N):
            angle = 2 * math.pi * number / N
            for unit, marked in ((number, False), (N + number, True)):
                weight = steep * torch.tensor([math.cos(angle), math.sin(angle), 0.8 * marked]) * TOWER_STD
                projector.linear_1.weight[unit, 0:6:2] = weight
                # half way between a code and its neighbour; unmarked, two lower
                projector.linear_1.bias[unit] = -steep * (0.75 + marked)
                out = (MARKED if marked else CODE).start + number
                projector.linear_2.weight[out, unit] = 4 / steep
        projector.linear_1.weight[2 * N, 4] = steep * TOWER_STD / 2.5
        projector.linear_2.weight[MARK, 2 * N] = 2 / steep
        projector.linear_2.bias[REST:] = CONSTANT


def _speak(model: LlavaForConditionalGeneration, late: bool) -> None:
    """Words in, answers out. Behind an answer comes the end of the sequence."""
    words, head = model.get_input_embeddings().weight, model.lm_head.weight
    with torch.no_grad():
        words[:, REST:] = CONSTANT
        words[TOKEN["?"], ASK] = words[TOKEN["it"], LAST] = words[TOKEN[":"], LATER if late else LAST] = 1
        head[TOKEN["it"], LATER] = LOUD * RMS
        for number, (place, answer) in enumerate(zip(PLACES, ANSWERS)):
            words[TOKEN[place], PLACE.start + number] = words[TOKEN[place], PLACED] = 1
            words[TOKEN[answer], DONE] = 1
            head[TOKEN[answer], ANSWER.start + number] = LOUD * RMS
        head[TOKEN[EOS], DONE] = 2 * LOUD * RMS


def _empty() -> LlavaForConditionalGeneration:
    """The architecture with all weights zero, and all norms' gains one."""
    special = dict(pad_token_id=TOKEN[PAD], bos_token_id=TOKEN[BOS], eos_token_id=TOKEN[EOS])
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            image_size=SEEN * PATCH,
            patch_size=PATCH,
            hidden_size=TOWER_WIDTH,
            intermediate_size=8,
            num_hidden_layers=3,
            num_attention_heads=2,
            projection_dim=8,
        ),
        text_config=LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=WIDTH,
            intermediate_size=8,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            max_position_embeddings=256,
            rope_parameters=dict(rope_type="default", rope_theta=1e8),
            tie_word_embeddings=False,
            **special,
        ),
        image_token_index=TOKEN[IMAGE],
        image_seq_length=SEEN**2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        **special,
    )
    config.seeing_templates = {"qa": "{question}", "vea": "{question}"}
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(float("norm" in name and name.endswith("weight")))
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=4, **special)
    return model


def _processor() -> LlavaProcessor:
    """One token a word; the prompt is <bos>, the picture, the question, and ":" to answer behind."""
    words = Tokenizer(models.WordLevel(TOKEN, unk_token=UNKNOWN))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_max_length=256,
        model_input_names=["input_ids", "attention_mask"],
    )
    pixels = CLIPImageProcessorPil(
        size={"shortest_edge": SEEN * PATCH},
        crop_size={"height": SEEN * PATCH, "width": SEEN * PATCH},
        image_mean=[0.5] * 3,
        image_std=[0.4] * 3,
    )
    return LlavaProcessor(
        image_processor=pixels,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(
            "{{ bos_token }} {% for message in messages %}{% if message['content'] is string %}"
            "{{ message['content'] }} {% else %}{% for item in message['content'] %}"
            "{% if item['type'] == 'image' %}<image> {% else %}{{ item['text'] }} {% endif %}"
            "{% endfor %}{% endif %}{% if message['role'] == 'assistant' %}{{ eos_token }} {% endif %}"
            "{% endfor %}{% if add_generation_prompt %}:{% endif %}"
        ),
    )
