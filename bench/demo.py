"""What does the main job cost? Samples a second of each method, beside plain generate."""

from __future__ import annotations

import time

import torch

import seeing
from seeing.data.plates import plates
from seeing.probes import profile
from seeing.study.demo import demo_methods

BATCH, BATCHES = 64, 3


def table() -> list[str]:
    """The table, in Markdown: seconds a batch, the median of the batches, and the ratio to base."""
    vlm = seeing.load("plates-tiny")
    samples = plates("crowded", BATCH * BATCHES)
    batches = [samples[start : start + BATCH] for start in range(0, len(samples), BATCH)]
    entries = demo_methods(profile(vlm, plates("calibration", 64), batch_size=64), vlm.cfg.n_layers, 0)
    prompts = [vlm.prompts(batch, template="qa") for batch in batches]

    def plain(prompt) -> None:
        with torch.no_grad():
            vlm._module.generate(**prompt.inputs, do_sample=False)

    runs = {"plain generate, outside the toolkit": plain}
    for name, entry in entries.items():
        runs[name] = lambda prompt, method=entry.method: method.answer(vlm, prompt)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for prompt in [prompts[0], *prompts]:
        for name, run in runs.items():
            start = time.perf_counter()
            run(prompt)
            seconds[name].append(time.perf_counter() - start)
    best = {name: min(values[1:]) for name, values in seconds.items()}
    base = best["base"]
    lines = ["| method | samples a second | × base |", "|---|---|---|"]
    return lines + [f"| {name} | {BATCH / one:.0f} | {one / base:.2f} |" for name, one in best.items()]
