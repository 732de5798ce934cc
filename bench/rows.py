"""What do rows of attention cost? A LLaVA with random weights, a prompt of a few thousand tokens.

Measured beside a plain sdpa forward, in one process, alternating: reading the last token's rows of all
layers, the same through eager `output_attentions`, an edit of the last row in half of the layers, and a
second look. Time is the median of the repeats; memory is the growth of the process's peak, each case in
a process of its own.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration

import seeing
from seeing import edits as E
from seeing.methods import SecondLook
from seeing.prompt import Prompt
from seeing.vlm import VLM
from seeing.zoo.build import build_config, build_processor

SIDE, PATCH = 560, 14


def build(side: int = SIDE) -> tuple[VLM, Prompt]:
    """(side / 14)² image tokens, 8 text layers × 1,024 wide, 16 heads; random weights."""
    torch.manual_seed(0)
    config = build_config(text_layers=8)
    config.text_config.hidden_size, config.text_config.intermediate_size = 1024, 2816
    config.text_config.num_attention_heads = config.text_config.num_key_value_heads = 16
    config.text_config.head_dim = 64
    config.text_config.max_position_embeddings = 4096
    config.vision_config.image_size = side
    config.image_seq_length = (side // PATCH) ** 2
    processor = build_processor()
    processor.tokenizer.model_max_length = 4096
    processor.image_processor.size = {"shortest_edge": side}
    processor.image_processor.crop_size = {"height": side, "width": side}
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = None
    model.generation_config.max_new_tokens = 2
    vlm = seeing.load((model, processor), check=False)
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return vlm, vlm.prompt(Image.fromarray(noise), "what digit is on the red square ?")


def cases(vlm: VLM, prompt: Prompt) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    model, inputs = vlm._module, prompt.inputs
    boosted = vlm.with_edits(E.ScaleAttention(keys="image", gain=4.0, layers="deep"))
    look = SecondLook({layer: [0] for layer in range(8)})

    def eager():
        model.set_attn_implementation("eager")
        try:
            return model(**inputs, output_attentions=True)
        finally:
            model.set_attn_implementation("sdpa")

    return {
        "plain forward, sdpa": lambda: model(**inputs),
        "rows of the last token, all layers": lambda: vlm.cache(prompt, ["text.*.attn.pattern", "logits"]),
        "last row edited in half of the layers": lambda: boosted.cache(prompt, "logits"),
        "output_attentions=True, eager": eager,
        "plain generate, 2 tokens": lambda: model.generate(**inputs, do_sample=False),
        "edited generate, 2 tokens": lambda: boosted.answer(prompt),
        "second look, 2 tokens": lambda: look.answer(vlm, prompt),
    }


def measure(repeats: int = 5) -> dict[str, float]:
    """Median seconds of each case, the cases taken in turn so that drift falls on all."""
    vlm, prompt = build()
    timed = cases(vlm, prompt)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    with torch.no_grad():
        for round_ in range(repeats + 1):
            for name, run in timed.items():
                start = time.perf_counter()
                run()
                if round_:  # the first round warms up
                    seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak(name: str) -> float:
    """Growth of resident memory at its peak, MB, over the model at rest; for a process of its own (Linux)."""
    vlm, prompt = build()
    run = cases(vlm, prompt)[name]
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    with torch.no_grad():
        run()
    return _status("VmHWM") - before


def _status(field: str) -> float:
    """A field of /proc/self/status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def table() -> list[str]:
    """The table, in Markdown."""
    times = measure()
    lines = ["| | seconds | × plain | peak, MB |", "|---|---|---|---|"]
    for name, seconds in times.items():
        plain = times["plain generate, 2 tokens" if "2 tokens" in name else "plain forward, sdpa"]
        grown = subprocess.run(
            [sys.executable, "-c", f"from bench.rows import peak; print(peak({name!r}))"],
            capture_output=True,
            text=True,
            check=True,
        )
        memory = float(grown.stdout.split()[-1])
        lines.append(f"| {name} | {seconds:.2f} | {seconds / plain:.2f} | +{memory:.0f} |")
    return lines
