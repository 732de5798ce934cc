"""Data sets on disk, written by hand as their authors write them."""

import json

import numpy as np
import pytest
from PIL import Image


def picture(seed: int, width: int = 60, height: int = 40) -> Image.Image:
    """A picture of its own, not square."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def visual_cot(number: int, **changes) -> dict:
    """A record as Visual-CoT has it."""
    record = {
        "question": f"what is number {number}?",
        "answer": f"answer {number}",
        "image": f"{number}.png",
        "width": 60,
        "height": 40,
        "bboxs": [[10.5 + number, 5, 30, 20]],
        "dataset": "docvqa",
        "split": "train",
    }
    return {key: value for key, value in (record | changes).items() if value is not ...}


@pytest.fixture
def pictures(tmp_path):
    """A folder `images` with the pictures 0.png to 3.png."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        picture(number).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def lines(tmp_path, pictures):
    """``lines(*records)``: a file of JSON lines beside `images`; a text is written as it is."""

    def write(*records, name="docvqa.jsonl"):
        written = [one if isinstance(one, str) else json.dumps(one) for one in records]
        path = tmp_path / name
        path.write_text("\n".join(written) + "\n", encoding="utf-8")
        return path

    return write


def same(image, number, **size) -> bool:
    """Whether an image is picture `number`, pixel by pixel."""
    return np.array_equal(np.asarray(image), np.asarray(picture(number, **size)))
