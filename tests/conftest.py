"""Models and samples that the tests of probes, methods, the study and the command line share.

`random` has weights drawn so that attention is uneven and answers depend on the picture; `trained` is the
embedded model. Each comes with its twin, `bare` and `bare_trained`: the same weights under Hugging Face
alone, eager kernel, which is the independent truth. Nothing there goes through seeing: the text is put
together by hand, places are counted out by hand, and a boost is a hook on the attention mask.
"""

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import seeing
from seeing.data.plates import plates
from seeing.data.samples import EvidenceSample
from seeing.zoo import open_zoo
from seeing.zoo.build import TOKEN, build_model, build_processor

IMAGE, EOS = TOKEN["<image>"], TOKEN["<eos>"]


class Bare:
    """A LLaVA of the embedded kind without seeing: what Hugging Face makes of a picture and a question."""

    def __init__(self, model, processor):
        self.model = copy.deepcopy(model).eval()
        self.model.set_attn_implementation("eager")
        self.processor = processor

    def inputs(self, *asked: tuple[Image.Image, str]) -> Mapping[str, torch.Tensor]:
        """The model's tensors for (picture, question) pairs, padded on the left."""
        return self.processor(
            text=[f"<bos> <image> {question}" for _, question in asked],
            images=[picture for picture, _ in asked],
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )

    @torch.no_grad()
    def attention(self, picture: Image.Image, question: str) -> np.ndarray:
        """(layer, head, query, key), float64."""
        out = self.model(**self.inputs((picture, question)), output_attentions=True)
        return torch.cat(out.attentions).double().numpy()

    def image_rows(self, picture: Image.Image, question: str) -> np.ndarray:
        """(layer, head, token): the last prompt token's attention to the 64 image tokens, behind <bos>."""
        return self.attention(picture, question)[:, :, -1, 1:65]

    @torch.no_grad()
    def answers(self, *asked: tuple[Image.Image, str]) -> list[tuple[list[int], str, list[float]]]:
        """(ids up to end-of-sequence, text, log-probability of each id) of greedy decoding."""
        inputs = self.inputs(*asked)
        out = self.model.generate(**inputs, do_sample=False, return_dict_in_generate=True, output_logits=True)
        found = []
        for row, ids in enumerate(out.sequences[:, inputs["input_ids"].shape[1] :].tolist()):
            length = ids.index(EOS) + 1 if EOS in ids else len(ids)
            steps = [logits[row].log_softmax(-1) for logits in out.logits[:length]]
            text = self.processor.tokenizer.decode(ids[:length], skip_special_tokens=True).strip()
            found.append((ids[:length], text, [float(step[one]) for step, one in zip(steps, ids)]))
        return found

    @contextlib.contextmanager
    def boosted(self, keys: Sequence[Sequence[int]], gain: float, layers: Sequence[int]) -> Iterator[None]:
        """A bias of log gain on the newest token's scores at ``keys`` (positions, a list a row)."""

        def bias(module, args, kwargs):
            mask = kwargs["attention_mask"].clone()
            for row, positions in enumerate(keys):
                mask[row, :, -1, list(positions)] += math.log(gain)
            return args, {**kwargs, "attention_mask": mask}

        hooks = [
            self.model.model.language_model.layers[layer].self_attn.register_forward_pre_hook(
                bias, with_kwargs=True
            )
            for layer in layers
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def token_boxes(size: tuple[int, int]) -> list[tuple[float, ...]]:
    """Where each of the 8 × 8 image tokens looks: the short side becomes 112, centre crop, patches of 14."""
    width, height = size
    w, h = (112, int(112 * height / width)) if width <= height else (int(112 * width / height), 112)
    left, top = (w - 112) // 2, (h - 112) // 2
    across, down = width / w, height / h
    return [
        (
            (left + 14 * c) * across,
            (top + 14 * r) * down,
            (left + 14 * c + 14) * across,
            (top + 14 * r + 14) * down,
        )
        for r in range(8)
        for c in range(8)
    ]


def evidence_labels(sample: EvidenceSample) -> np.ndarray:
    """Which of the 64 image tokens overlap a box."""
    return np.array(
        [
            any(
                min(x1, b[2]) - max(x0, b[0]) > 1e-6 and min(y1, b[3]) - max(y0, b[1]) > 1e-6
                for b in sample.boxes
            )
            for x0, y0, x1, y1 in token_boxes(sample.image.size)
        ]
    )


def on_canvas(sample: EvidenceSample, size: tuple[int, int], corner: tuple[int, int]) -> EvidenceSample:
    """The sample's picture pasted into a larger grey one; its boxes go along."""
    canvas = Image.new("RGB", size, (90, 90, 90))
    canvas.paste(sample.image, corner)
    x, y = corner
    boxes = tuple((x0 + x, y0 + y, x1 + x, y1 + y) for x0, y0, x1, y1 in sample.boxes)
    return replace(sample, id=f"{sample.id} on {size}", image=canvas, boxes=boxes)


def uneven(seed: int = 0):
    """The embedded model's shape, random weights: attention far from uniform, some answers stop early."""
    torch.manual_seed(seed)
    model = build_model()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.mul_(6.75 if "q_proj" in name or "k_proj" in name else 4.5)
        model.lm_head.weight[EOS] *= 2
    return model.eval()


def plant(model, layer: int, head: int, score: float = 12.0) -> None:
    """Make one head look at bright patches: the last query and the keys of bright patches meet.

    The rotary embedding turns dimensions 15 and 31 of a head by a hundredth over a prompt of this length, so
    a value there reaches the scores as it is. Brightness is taken from the pixels themselves. Prompts are
    <bos>, 64 image tokens, 8 words.
    """
    value = (score * 32**0.5) ** 0.5
    dims = slice(32 * head, 32 * head + 32)
    seen = {}

    def look(module, args, kwargs):
        if kwargs.get("pixel_values") is not None:
            patches = kwargs["pixel_values"].mean(1).unfold(1, 14, 14).unfold(2, 14, 14).mean((-1, -2))
            seen["bright"] = (patches.flatten(1) > 0).float()

    def query(module, args, out):
        out = out.clone()
        out[..., dims] = 0
        out[:, -1, dims.start + 15] = value
        return out

    def key(module, args, out):
        out = out.clone()
        out[..., dims] = 0
        if out.shape[1] == 73:
            out[:, 1:65, dims.start + 15] = value * seen["bright"]
        return out

    attention = model.model.language_model.layers[layer].self_attn
    model.register_forward_pre_hook(look, with_kwargs=True)
    attention.q_proj.register_forward_hook(query)
    attention.k_proj.register_forward_hook(key)


def white_squares(n: int, side: int = 28) -> list[EvidenceSample]:
    """Black pictures with one white square somewhere, whose box is the evidence."""
    rng, found = np.random.default_rng(0), []
    for number in range(n):
        row, col = rng.integers(0, 112 // side, 2) * side
        pixels = np.zeros((112, 112, 3), np.uint8)
        pixels[row : row + side, col : col + side] = 255
        sample = EvidenceSample(
            id=f"white/{number}",
            image=Image.fromarray(pixels),
            question="what digit is on the red square ?",
            answers=("7",),
            boxes=((int(col), int(row), int(col) + side, int(row) + side),),
        )
        found.append(sample)
    return found


@pytest.fixture(scope="session")
def crowded():
    """Crowded scenes, 112 × 112."""
    return plates("crowded", 12)


@pytest.fixture(scope="session")
def mixed(crowded):
    """Square, oblong and tall pictures, whole and cropped."""
    return [
        crowded[0],
        on_canvas(crowded[1], (168, 140), (30, 20)),
        on_canvas(crowded[2], (120, 175), (5, 40)),
        on_canvas(crowded[3], (150, 112), (19, 0)),
        crowded[4],
        on_canvas(crowded[5], (224, 224), (60, 60)),
    ]


@pytest.fixture(scope="session")
def labels_of():
    """``labels_of(sample)``: which of the 64 image tokens overlap a box, counted out by hand."""
    return evidence_labels


@pytest.fixture(scope="session")
def paste():
    """``paste(sample, size, corner)``: the sample on a larger canvas, with its boxes."""
    return on_canvas


@pytest.fixture(scope="session")
def squares():
    """``squares(n, side)``: black pictures with one white square."""
    return white_squares


@pytest.fixture(scope="session")
def pair():
    """A (model, processor) pair with random weights. Leave it as it is: others use it too."""
    return uneven(), build_processor()


@pytest.fixture(scope="session")
def bare(pair):
    """The twin of `random`."""
    return Bare(*pair)


@pytest.fixture(scope="session")
def random(pair, bare):
    """The random model under seeing."""
    return seeing.load(pair, check=False)


@pytest.fixture(scope="session")
def _planted():
    model = uneven(1)
    plant(model, layer=2, head=1)
    return model, build_processor()


@pytest.fixture(scope="session")
def bare_planted(_planted):
    """The twin of `planted`."""
    return Bare(*_planted)


@pytest.fixture(scope="session")
def planted(_planted, bare_planted):
    """A random model in which head 1 of layer 2 looks at bright patches."""
    return seeing.load(_planted, check=False)


@pytest.fixture(scope="session")
def uniform():
    """A random model whose queries are zero, so that every row of attention is uniform."""
    model = uneven(2)
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            layer.self_attn.q_proj.weight.zero_()
    return seeing.load((model, build_processor()), check=False)


@pytest.fixture(scope="session")
def _trained():
    return open_zoo("plates-tiny")


@pytest.fixture(scope="session")
def bare_trained(_trained):
    """The twin of `trained`."""
    return Bare(*_trained)


@pytest.fixture(scope="session")
def trained(_trained, bare_trained):
    """The embedded model under seeing."""
    return seeing.load(_trained, check=False)
