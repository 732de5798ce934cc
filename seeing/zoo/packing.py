"""Several questions behind one image, in one sequence: the image is encoded once and every question is
answered alone.

    <bos> <image> x 64 | what digit is on the red square ? 7 | what digit is on the blue circle ? 3 | ...

Each question sees the image and itself (a block mask), and its positions start anew after the image, so its
logits are those of a prompt that holds it alone. That equality is tested; it makes training several
times cheaper.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration

from seeing.data.painting import SHAPES
from seeing.data.plates import COLOUR_NAMES, IGNORE, PlatesBatch, question
from seeing.zoo.build import BOS, DIGITS, EOS, IMAGE, IMAGE_TOKENS, TOKEN

PREFIX = 1 + IMAGE_TOKENS
_PATTERN = torch.tensor(
    [TOKEN[word] for word in question(COLOUR_NAMES[0], SHAPES[0]).split()] + [TOKEN[DIGITS[0]]]
)
SEGMENT = len(_PATTERN)
"""Tokens of one question and its digit; <eos> is only ever a target."""
_COLOUR_AT, _SHAPE_AT, _DIGIT_AT = SEGMENT - 4, SEGMENT - 3, SEGMENT - 1


@dataclass(frozen=True, eq=False)
class Packed:
    """Model inputs of a batch, and its targets. `mask` is additive; `answers` are token ids of the digits."""

    pixels: Float[Tensor, "image 3 112 112"]
    ids: Int[Tensor, "image token"]
    mask: Float[Tensor, "1 1 token token"]
    positions: Int[Tensor, "1 token"]
    answers: Int[Tensor, "image question"]
    patches: dict[str, Tensor]


def pack(batch: PlatesBatch) -> Packed:
    """The batch as tensors; pixels are normalised as the processor does it."""
    images, asked = batch.digit.shape
    segments = _PATTERN.repeat(images, asked, 1)
    segments[..., _COLOUR_AT] = TOKEN[COLOUR_NAMES[0]] + torch.from_numpy(batch.colour)
    segments[..., _SHAPE_AT] = TOKEN[SHAPES[0]] + torch.from_numpy(batch.shape)
    answers = TOKEN[DIGITS[0]] + torch.from_numpy(batch.digit)
    segments[..., _DIGIT_AT] = answers
    prefix = torch.tensor([TOKEN[BOS]] + IMAGE_TOKENS * [TOKEN[IMAGE]])
    pixels = torch.from_numpy(batch.images).permute(0, 3, 1, 2).float().div_(255).sub_(0.5).div_(0.25)
    return Packed(
        pixels=pixels,
        ids=torch.cat([prefix.expand(images, -1), segments.flatten(1)], dim=1),
        mask=block_mask(asked),
        positions=torch.cat([torch.arange(PREFIX), (PREFIX + torch.arange(SEGMENT)).repeat(asked)])[None],
        answers=answers,
        patches={
            "colour": torch.from_numpy(batch.patch_colour),
            "shape": torch.from_numpy(batch.patch_shape),
            "digit": torch.from_numpy(batch.patch_digit),
        },
    )


def block_mask(asked: int) -> Float[Tensor, "1 1 token token"]:
    """Causal, and closed between questions: 0 where a query may look, the lowest float elsewhere."""
    block = torch.cat([torch.zeros(PREFIX), 1 + torch.arange(asked).repeat_interleave(SEGMENT)])
    open_ = (block[None, :] == 0) | (block[None, :] == block[:, None])
    open_ &= torch.ones_like(open_).tril()
    return torch.zeros(open_.shape).masked_fill(~open_, torch.finfo(torch.float32).min)[None, None]


class Learner(nn.Module):
    """The model in training, with three linear heads that name colour, shape and digit from each projected
    patch.

    The heads give the tower a signal long before the text model can use it; they are dropped when the model
    ships.
    """

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        width = model.config.text_config.hidden_size
        classes = {"colour": len(COLOUR_NAMES) + 1, "shape": len(SHAPES) + 1, "digit": len(DIGITS)}
        self.heads = nn.ModuleDict({name: nn.Linear(width, n) for name, n in classes.items()})

    def forward(self, packed: Packed, joint: bool) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """The loss and what to log: per-patch accuracies, and with `joint` the answers' too.

        Alone, the patch losses are summed; jointly they weigh 0.3 beside the losses of the digit and of
        <eos>.
        """
        encoded = self.model.get_image_features(packed.pixels, return_dict=True)
        patch_loss, log = self._patches(torch.stack(tuple(encoded.pooler_output)), packed.patches)
        if not joint:
            return patch_loss, log
        logits = self.model(
            input_ids=packed.ids,
            mm_encoder_outputs={"image": encoded},
            attention_mask=packed.mask,
            position_ids=packed.positions,
            use_cache=False,
        ).logits
        digit, stop = answer_logits(logits)
        answer_loss = cross_entropy(digit.flatten(0, 1), packed.answers.flatten())
        stop_loss = cross_entropy(stop.flatten(0, 1), torch.full_like(packed.answers, TOKEN[EOS]).flatten())
        log["answer"] = (digit.argmax(-1) == packed.answers).float().mean().item()
        log["stop"] = (stop.argmax(-1) == TOKEN[EOS]).float().mean().item()
        log["answer_loss"] = answer_loss.item()
        return answer_loss + stop_loss + 0.3 * patch_loss, log

    def _patches(self, projected: Tensor, labels: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        loss, log = projected.new_zeros(()), {}
        for name, head in self.heads.items():
            scores, label = head(projected).flatten(0, 1), labels[name].flatten()
            loss = loss + cross_entropy(scores, label, ignore_index=IGNORE)
            asked = label != IGNORE
            log[f"patch_{name}"] = (scores.argmax(-1) == label)[asked].float().mean().item()
        return loss, log


def answer_logits(
    logits: Float[Tensor, "image token word"],
) -> tuple[Float[Tensor, "image question word"], Float[Tensor, "image question word"]]:
    """The logits after each "?" (they name the digit) and after each digit (they name <eos>)."""
    segments = logits[:, PREFIX:].unflatten(1, (-1, SEGMENT))
    return segments[:, :, _DIGIT_AT - 1], segments[:, :, _DIGIT_AT]
