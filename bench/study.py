"""What does a study cost? Samples a second of each method, beside plain generate; a profile, beside forwards.

On one thread, where nothing depends on how a kernel parts its work. All cases take turns, and the best of
several rounds counts: what else runs on the machine can only make a case slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

import seeing
from seeing.data.plates import plates
from seeing.features import shared_features
from seeing.methods.named import parse_methods
from seeing.probes import profile
from seeing.turns import templates_of

BATCH, ROUNDS, PROFILED = 64, 7, 100
METHODS = "base,inst,vea,vea:authors=true,vea_in_pass,second_look,pai,window_highlight,oracle,random_region"


def best(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each, the best of all rounds but the first."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: min(values[1:]) for name, values in seconds.items()}


def table() -> list[str]:
    """Both tables, in Markdown."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        vlm = seeing.load("plates-tiny")
        return [*_methods(vlm), "", *_profile(vlm)]
    finally:
        torch.set_num_threads(threads)


def _methods(vlm: seeing.VLM) -> list[str]:
    prompt = vlm.prompts(plates("crowded", BATCH), template="qa")
    calibration = plates("calibration", BATCH)
    found = profile(vlm, calibration, batch_size=BATCH, progress=False)
    asks = {one.text: one.build(vlm, found, 0, calibration) for one in parse_methods(METHODS)}

    @torch.no_grad()
    def plain() -> None:
        vlm._module.generate(**prompt.inputs, do_sample=False)

    runs: dict[str, Callable[[], object]] = {"plain generate, outside the toolkit": plain}
    for name, ask in asks.items():
        asked = prompt if ask.template in (None, "qa") else prompt.with_template(ask.template)
        runs[name] = lambda method=ask.method, asked=asked: method.answer(vlm, asked)
    apart = best(runs)
    with shared_features(vlm):
        shared = best(runs)
    lines = [
        "| method | samples a second | × plain | × base | features shared | × base |",
        "|---|---|---|---|---|---|",
    ]
    return lines + [
        f"| {name} | {BATCH / one:.0f} | {one / next(iter(apart.values())):.2f} | {one / apart['base']:.2f} "
        f"| {BATCH / shared[name]:.0f} | {shared[name] / apart['base']:.2f} |"
        for name, one in apart.items()
    ]


def _profile(vlm: seeing.VLM) -> list[str]:
    samples, processor = plates("calibration", PROFILED), vlm.processor
    pattern = templates_of(vlm._module)["qa"]

    @torch.no_grad()
    def plain() -> None:
        """What a user of the bare model writes: the chat template or the text, the processor, a forward."""
        for start in range(0, PROFILED, 32):
            some = samples[start : start + 32]
            texts = [_text(vlm, pattern.format(question=sample.question)) for sample in some]
            pictures = [[sample.image] for sample in some]
            settings = dict(padding=True, padding_side="left", add_special_tokens=False)
            vlm._module(**processor(text=texts, images=pictures, return_tensors="pt", **settings))

    runs = {
        "plain forwards, the processor in front": plain,
        "profile": lambda: profile(vlm, samples, template="qa", batch_size=32, progress=False),
    }
    seconds = best(runs)
    first = next(iter(seconds.values()))
    lines = [f"| {PROFILED} samples | samples a second | × plain |", "|---|---|---|"]
    return lines + [f"| {name} | {PROFILED / one:.0f} | {one / first:.2f} |" for name, one in seconds.items()]


def _text(vlm: seeing.VLM, question: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return vlm.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
