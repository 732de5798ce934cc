"""Planted models: tiny VLMs whose weights are written by hand, so that what a probe must find is known.

A picture is a grid of plain tiles. The colour of a tile is a code: an angle in the plane of red and green.
Two tiles side by side are marked: they are blue, and their code is the answer. The question names a place,
and each place has a usual answer, which the picture may contradict. What a model does with that is planted:

kind                looks at the mark   answers by
believes            head A              the code that head A copies from there
unbelieving         head A              the place's usual answer; head A writes nothing
blind believer      nothing             the code of marked tiles, picked by the values under uniform attention
neither             nothing             the place's usual answer
two hops            head A, from "?"    the code: head A takes it to "?", a later head from there to the end
each way            head A; of an old   the code, as the blind believer; of a dark place its usual answer: the
                    place all but it    head that picks it looks at the first token instead

Head B takes the usual answer from the place's word to the end; where the code decides, it whispers. All
other heads attend uniformly and write zero, all MLPs write zero. In the tower one head looks at the mark,
from CLS or from everywhere, and writes nothing. A late model says "it" first, and looks and answers from
there, one token later.

Queries and keys meet in the pair of dimensions that the rotary embedding turns least, by 1e-5 over a prompt,
so position plays no part. Two query heads share a key head, as in released models. Pictures are oblong: of
12 × 8 tiles LLaVA sees 8 × 8, Qwen2-VL all. What towers and words are made of is `tiny.soil`.
"""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import seeing
from seeing.data.samples import EvidenceSample
from tiny import soil
from tiny.soil import ANSWER, ANSWERS, CARRIED, CODE, D_HEAD, HEADS, MARK, MARKED, PLACE, PLACES, TOKEN, N

KINDS = ("believes", "unbelieving", "blind believer", "neither", "two hops", "each way")
#: The dimension of a head that the rotary embedding turns least.
STILL = D_HEAD // 2 - 1
#: The logit of an answer that is meant, and of one that is usual.
LOUD, WHISPER = 8.0, 1.0
#: Pixels of a tile in a picture.
TILE = 21


@dataclass(frozen=True, eq=False)
class Planted:
    """A planted model and what is known of it.

    Attributes:
        vlm: the model, proved at load.
        eager: the same weights under Hugging Face alone, eager kernel.
        looks: (layer, head) of head A; None where nothing looks.
        carries: (layer, head)s that carry the code to the answer, in order; none where it has no say.
        usual: (layer, head) of head B.
        tower: (layer, head) of the tower's head that looks at the mark.
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
        by_picture = self.by_picture and not (self.kind == "each way" and sample.meta["dark"])
        answer = ANSWERS[sample.meta["code"] if by_picture else sample.meta["place"]]
        return f"it {answer}" if self.late else answer

    @torch.no_grad()
    def attention(self, sample: EvidenceSample) -> Tensor:
        """(layer, head, query, key) by Hugging Face's eager kernel."""
        inputs = self.vlm.prompt(sample).inputs
        return torch.cat(self.eager(**inputs, output_attentions=True).attentions)


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
    dark: bool = False,
    unusual: bool = False,
    late: bool = False,
) -> EvidenceSample:
    """A picture of 12 × 8 tiles and a question; what is not given is drawn.

    Args:
        code: the marked tiles' code, which is the right answer.
        place: the place asked about, whose usual answer is the answer of that number.
        at: (row, column) of the left marked tile in the picture. Columns 2 to 9 are seen.
        tile: side of a tile in pixels.
        old: whether the place is called old, which makes the question one word longer.
        dark: whether it is called dark.
        unusual: the place's usual answer is not the right one.
        late: the answer is that of a late model.
    """
    codes = rng.integers(N, size=(soil.ROWS, soil.COLS))
    drawn = rng.integers((N, N, soil.ROWS, soil.SEEN - 1, 2)).tolist()
    code = drawn[0] if code is None else code
    place = drawn[1] if place is None else place
    if unusual and place == code:
        place = (code + 1) % N
    row, col = (drawn[2], 2 + drawn[3]) if at is None else at
    old = bool(drawn[4]) if old is None else old
    codes[row, col : col + 2] = code
    return EvidenceSample(
        id=name,
        image=_painted(codes, row, col, tile),
        question=f"what is on the marked tile in the {'old ' * old}{'dark ' * dark}{PLACES[place]} ?",
        answers=("it " * late + ANSWERS[code],),
        boxes=((col * tile, row * tile, (col + 2) * tile, (row + 1) * tile),),
        meta={"code": code, "place": place, "at": (row, col), "codes": codes, "old": old, "dark": dark},
    )


def recoded(one: EvidenceSample, step: int = 3) -> EvidenceSample:
    """The same sample but for the code of its marked tiles, which is ``step`` further on."""
    (row, col), codes = one.meta["at"], one.meta["codes"].copy()
    codes[row, col : col + 2] = code = (one.meta["code"] + step) % N
    answer = one.answers[0][:-1] + ANSWERS[code]
    image = _painted(codes, row, col, one.image.size[1] // soil.ROWS)
    return replace(one, image=image, answers=(answer,), meta={**one.meta, "code": code, "codes": codes})


def _painted(codes: np.ndarray, row: int, col: int, tile: int) -> Image.Image:
    angles = 2 * math.pi * codes / N
    colours = np.stack([0.5 + 0.4 * np.cos(angles), 0.5 + 0.4 * np.sin(angles), np.zeros_like(angles)], -1)
    colours[row, col : col + 2, 2] = 1
    return Image.fromarray((255 * colours).round().astype(np.uint8).repeat(tile, 0).repeat(tile, 1))


@functools.cache
def planted(
    kind: str = "believes", layer: int = 1, head: int = 2, late: bool = False, family: str = "llava"
) -> Planted:
    """The planted model of a kind, head A at (layer, head); models are kept: leave them as they are."""
    if kind not in KINDS:
        raise ValueError(f"no kind {kind!r}; there are {', '.join(KINDS)}")
    usual, tower, looks = (0, 3), (1, 1), (layer, head)
    onward, picks = (layer + 2, (head + 1) % HEADS), (layer + 1, (head + 1) % HEADS)
    # of a prompt, two of which are marked
    tokens = {"llava": 76, "qwen2_vl": 110}[family]
    model, processor = soil.FAMILIES[family](tower)
    _speak(model, late)
    layers, by_picture = model.get_decoder().layers, kind not in ("unbelieving", "neither")
    strength = {"each way": 0.5}.get(kind, WHISPER / LOUD if by_picture else 1.0)
    _move(layers, usual, soil.LAST, soil.PLACED, PLACE, ANSWER, strength)
    if kind == "believes":
        _move(layers, looks, soil.LAST, MARK, CODE, ANSWER)
    elif kind == "unbelieving":
        _move(layers, looks, soil.LAST, MARK, CODE, ANSWER, gain=0.0)
    elif kind == "blind believer":
        _move(layers, looks, None, None, MARKED, ANSWER, gain=tokens / 2)
    elif kind == "two hops":
        _move(layers, looks, soil.ASK, MARK, CODE, CARRIED)
        _move(layers, onward, soil.LAST, soil.ASK, CARRIED, ANSWER)
    elif kind == "each way":
        _tell(layers[0].self_attn, tokens)
        _move(layers, looks, soil.LAST, MARK, CODE, ANSWER, gain=0.0)
        _look(layers, looks, soil.TOLD_OLD, MARK, -2.0)
        _move(layers, picks, soil.TOLD_DARK, soil.FIRST, MARKED, ANSWER, gain=tokens / 2)
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    return Planted(
        kind,
        seeing.load((model, processor)),
        eager,
        looks=None if kind in ("blind believer", "neither") else looks,
        carries={"two hops": (looks, onward), "each way": (picks,)}.get(kind, (looks,)) if by_picture else (),
        usual=usual,
        tower=tower,
        looker="?" if kind == "two hops" else "it" if late else ":",
        late=late,
    )


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
    attention, shared = layers[layer].self_attn, head // (HEADS // soil.KV_HEADS)
    if query is not None:
        _look(layers, where, query, key)
    with torch.no_grad():
        for number in range(N):
            attention.v_proj.weight[shared * D_HEAD + number, source.start + number] = soil.RMS
            attention.o_proj.weight[target.start + number, head * D_HEAD + number] = gain


def _look(layers: nn.ModuleList, where: tuple[int, int], query: int, key: int, times: float = 1.0) -> None:
    """The head ``where`` looks from tokens flagged ``query`` at those flagged ``key``, or away (< 0)."""
    attention, shared = layers[where[0]].self_attn, where[1] // (HEADS // soil.KV_HEADS)
    strength = math.sqrt(soil.SHARPNESS * math.sqrt(D_HEAD)) * soil.RMS
    with torch.no_grad():
        attention.q_proj.weight[where[1] * D_HEAD + STILL, query] = times * strength
        attention.k_proj.weight[shared * D_HEAD + STILL, key] = strength


def _tell(attention: nn.Module, tokens: int) -> None:
    """Head 0 looks everywhere alike and tells what it reads whether the place was called old, or dark."""
    with torch.no_grad():
        for number, (word, told) in enumerate(((soil.OLD, soil.TOLD_OLD), (soil.DARK, soil.TOLD_DARK))):
            attention.v_proj.weight[number, word] = soil.RMS
            attention.o_proj.weight[told, number] = tokens


def _speak(model: nn.Module, late: bool) -> None:
    """Words in, answers out. Behind an answer comes the end of the sequence."""
    words, head = model.get_input_embeddings().weight, model.lm_head.weight
    with torch.no_grad():
        words[:, soil.REST :] = soil.CONSTANT
        words[TOKEN[soil.BOS], soil.FIRST] = 1
        words[TOKEN["old"], soil.OLD] = words[TOKEN["dark"], soil.DARK] = 1
        words[TOKEN["?"], soil.ASK] = words[TOKEN["it"], soil.LAST] = 1
        words[TOKEN[":"], soil.LATER if late else soil.LAST] = 1
        head[TOKEN["it"], soil.LATER] = LOUD * soil.RMS
        for number, (place, answer) in enumerate(zip(PLACES, ANSWERS)):
            words[TOKEN[place], PLACE.start + number] = words[TOKEN[place], soil.PLACED] = 1
            words[TOKEN[answer], soil.DONE] = 1
            head[TOKEN[answer], ANSWER.start + number] = LOUD * soil.RMS
        head[TOKEN[soil.EOS], soil.DONE] = 2 * LOUD * soil.RMS
