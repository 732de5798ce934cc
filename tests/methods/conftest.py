"""What a method does, done by hand: maps with loops, numpy, scipy and PIL, answers by the bare model."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from tiny.denoised import denoised


class ByHand:
    """The steps of the paper on a grid of 8 × 8 tokens of 14 pixels, and the window of tokens."""

    denoise = staticmethod(denoised)

    @staticmethod
    def smooth_map(grid: np.ndarray, mode: str, sigma: float = 56) -> np.ndarray:
        """Boxes of 14 pixels, Gaussian, min–max."""
        smooth = gaussian_filter(np.kron(grid, np.ones((14, 14))), sigma, mode=mode)
        return (smooth - smooth.min()) / (smooth.max() - smooth.min())

    @staticmethod
    def highlighted(picture: Image.Image, evidence: np.ndarray, alpha: float = 0.5) -> Image.Image:
        pixels = np.asarray(picture) * (alpha + (1 - alpha) * evidence)[..., None]
        return Image.fromarray(np.rint(pixels).astype(np.uint8))

    @staticmethod
    def best_window(grid: np.ndarray) -> tuple[int, int]:
        """The first cell of the 2 × 2 window with the largest sum."""
        sums = {(r, c): grid[r : r + 2, c : c + 2].sum() for r, c in np.ndindex(7, 7)}
        return max(sums, key=sums.get)

    @classmethod
    def own_window(cls, rows: np.ndarray, heads: dict[int, list[int]]) -> tuple[int, int]:
        """The own region, from (layer, head, token): best window of the denoised mean row of ``heads``."""
        mean = np.mean([rows[layer, head] for layer, some in heads.items() for head in some], axis=0)
        return cls.best_window(cls.denoise(mean.reshape(8, 8)))

    @staticmethod
    def tokens(window: tuple[int, int]) -> list[int]:
        """The image tokens of a 2 × 2 window, 0 to 63."""
        r, c = window
        return [8 * r + c, 8 * r + c + 1, 8 * r + c + 8, 8 * r + c + 9]

    @classmethod
    def keys(cls, bare, asked, heads: dict[int, list[int]]) -> list[list[int]]:
        """The positions of each row's own window in the padded batch."""
        longest = max(len(question.split()) for _, question in asked)
        keys = []
        for picture, question in asked:
            window = cls.own_window(bare.image_rows(picture, question), heads)
            keys.append([1 + longest - len(question.split()) + token for token in cls.tokens(window)])
        return keys

    @staticmethod
    def boosted_logits(bare, asked, keys: list[list[int]], gain: float, layers) -> torch.Tensor:
        """The bare model's logits at the last token, under a boost of the keys."""
        with torch.no_grad(), bare.boosted(keys, gain, layers):
            return bare.model(**bare.inputs(*asked)).logits[:, -1]

    @staticmethod
    def box_map(window: tuple[int, int]) -> np.ndarray:
        """1 on the 28 × 28 pixels of a window."""
        r, c = window
        evidence = np.zeros((112, 112))
        evidence[14 * r : 14 * r + 28, 14 * c : 14 * c + 28] = 1
        return evidence


@pytest.fixture(scope="session")
def by_hand():
    return ByHand


class Counter:
    """How often the vision tower runs, and how many tokens each pass of the text stack takes."""

    def __init__(self, model):
        self.looks, self.tokens = 0, []
        self.hooks = [
            model.model.vision_tower.register_forward_pre_hook(self._look),
            model.model.language_model.norm.register_forward_pre_hook(self._pass),
        ]

    def _look(self, module, args):
        self.looks += 1

    def _pass(self, module, args):
        self.tokens.append(args[0].shape[1])

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for hook in self.hooks:
            hook.remove()


@pytest.fixture(scope="session")
def counter():
    return Counter


@pytest.fixture(scope="session")
def same():
    """``same(answers, truth)``: ids and text are equal, log-probabilities to 1e-4."""

    def check(answers, truth) -> None:
        assert len(answers) == len(truth)
        for answer, (ids, text, logprobs) in zip(answers, truth):
            assert answer.ids.tolist() == ids
            assert str(answer) == text
            np.testing.assert_allclose(answer.token_logprobs, logprobs, atol=1e-4)

    return check


@pytest.fixture
def asked(crowded):
    """Four (picture, question) pairs; the questions differ in length, so that a batch is padded."""
    tails = ("", " on the blue circle", " on the green diamond on the red square", "")
    return [
        (sample.image, sample.question.replace(" ?", f"{tail} ?")) for sample, tail in zip(crowded, tails)
    ]
