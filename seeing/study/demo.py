"""The main job: does the model see the evidence, does it believe it, and can it be made to?

On a calibration split the layers and heads that look at the evidence are found. Then other samples
are answered by the plain model, by the paper's intervention and its kin, and by the controls that a
gain has to be measured against. `run_demo` does it and returns a `DemoResult`; writing it down is
the business of `seeing.show`.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import NamedTuple

import numpy as np

from seeing.data.plates import SPLITS, plates
from seeing.grid import VisualGrid
from seeing.maps import normalize, window_box
from seeing.methods import (
    Base,
    BoostInPass,
    Method,
    OracleHighlight,
    RandomAttention,
    RandomHighlight,
    SecondLook,
    Vea,
    WindowHighlight,
    all_image_attention,
    oracle_attention,
    vea,
)
from seeing.probes.attention.evidence import evidence
from seeing.probes.profiles.profile import Profile, profile_of
from seeing.stats import bootstrap_mean, mcnemar, paired_difference, wilson
from seeing.study.outcomes import Looked, Outcomes, collect, prompt_of
from seeing.study.result import DemoResult, DepthCurve, GalleryItem, Head, MethodRow, Rule, Share
from seeing.vlm import VLM

#: Told what is being done, how much is done, and how much there is.
Progress = Callable[[str, int, int], None]

#: Samples of the calibration split, on which layers and heads are chosen.
CALIBRATION = 128
#: Heads that the own region is read from.
N_HEADS = 4
#: Gallery items of each outcome.
PER_OUTCOME = 12
#: The method whose fix and break rates stand in the rule, and that the gallery compares with base.
CHIEF = "second-look"

TEST_BED = (
    "The task and the answer prior of this embedded model were chosen to make seeing and believing come "
    "apart: it is a test bed for the tools, not evidence about real vision-language models."
)
HIGHLIGHT_NOTE = (
    "Highlighting is not neutral: a dimmed picture is another picture. Compare a highlight with base first, "
    "and with the random highlight only after that."
)
BOUNDARY_NOTE = (
    "vea smooths with boundary 'nearest', which keeps a peak where it is; vea-authors smooths with "
    "'reflect', as the authors' code does, which at so wide a σ moves the peak to the nearest border."
)


class Entry(NamedTuple):
    """A method in the table: what it acts on, and through which channel."""

    method: Method
    acts_on: str
    through: str


def demo_methods(profile: Profile, n_layers: int, seed: int) -> dict[str, Entry]:
    """The methods of the demo, by name, for a profiled model.

    The boost in one pass reads the best heads of the first two thirds of the layers, and acts behind them.
    """
    heads = profile.heads(N_HEADS)
    cut = min(math.ceil(n_layers * 2 / 3), n_layers - 1)
    early = profile.heads(min(N_HEADS, cut * profile.auroc_heads.shape[1]), below=cut)
    return {
        "base": Entry(Base(), "nothing", "nothing"),
        "vea": Entry(vea(profile), "own", "pixels"),
        "vea-authors": Entry(vea(profile, authors=True), "own", "pixels"),
        "window-highlight": Entry(WindowHighlight(heads), "own", "pixels"),
        "boost-in-pass": Entry(BoostInPass(early, tuple(range(cut, n_layers))), "own", "attention"),
        CHIEF: Entry(SecondLook(heads), "own", "attention"),
        "oracle-attention": Entry(oracle_attention(), "evidence", "attention"),
        "oracle-highlight": Entry(OracleHighlight(), "evidence", "pixels"),
        "random-attention": Entry(RandomAttention(seed=seed), "random", "attention"),
        "random-highlight": Entry(RandomHighlight(seed=seed), "random", "pixels"),
        "image-attention": Entry(all_image_attention(), "image", "attention"),
    }


def run_demo(
    vlm: VLM,
    model: str,
    *,
    split: str = "crowded",
    n: int = 256,
    seed: int = 0,
    command: str = "",
    progress: Progress | None = None,
) -> tuple[DemoResult, Outcomes]:
    """Run the main job on ``n`` samples of a split of the embedded task.

    Raises ValueError for an unknown split and for ``n`` < 1.
    """
    if n < 1:
        raise ValueError(f"the demo needs at least one sample, got {n}")
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; the splits are {', '.join(SPLITS)}")
    started = time.perf_counter()
    tell = progress or (lambda what, done, total: None)
    # Layers and heads are not judged on the samples that they were chosen on.
    calibration = plates("calibration", CALIBRATION, seed=seed + (split == "calibration"))
    found = evidence(
        vlm,
        calibration,
        template="qa",
        batch_size=64,
        progress=lambda done: tell("profile", done, CALIBRATION),
    )
    profile = profile_of(found)
    entries = demo_methods(profile, vlm.cfg.n_layers, seed)
    total = n * len(entries)
    outcomes = collect(
        vlm,
        plates(split, n, seed=seed),
        {name: entry.method for name, entry in entries.items()},
        profile.heads(N_HEADS),
        progress=lambda done: tell("answer", done, total),
    )
    base = outcomes.correct("base")
    result = DemoResult(
        model=model,
        split=split,
        seed=seed,
        n=n,
        calibration_n=found.n,
        layers=profile.layers,
        heads=tuple(Head(*one) for one in found.ranking()[:N_HEADS]),
        auroc_heads=found.auroc.numpy().astype(np.float64),
        table=table(outcomes, entries),
        curves=curves(outcomes, base, seed),
        wrong_seen=wrong_seen(outcomes, base),
        rule=rule(outcomes, base),
        gallery=gallery(vlm, outcomes, entries["vea"].method),
        command=command,
        versions=_versions(),
        seconds=time.perf_counter() - started,
        peak_mb=_peak_mb(),
        notes=(TEST_BED, HIGHLIGHT_NOTE, BOUNDARY_NOTE),
    )
    return result, outcomes


def table(outcomes: Outcomes, entries: Mapping[str, Entry]) -> tuple[MethodRow, ...]:
    """Accuracy of each method with a Wilson interval, and against base: paired difference and McNemar."""
    base = outcomes.correct("base")
    rows = []
    for name, entry in entries.items():
        right = outcomes.correct(name)
        low, high = wilson(int(right.sum()), len(right))
        against = {}
        if name != "base":
            test, difference = mcnemar(base, right), paired_difference(base, right)
            against = dict(
                delta=difference.mean,
                delta_low=difference.interval.low,
                delta_high=difference.interval.high,
                fixed=test.fixed,
                broken=test.broken,
                p=test.p,
            )
        rows.append(
            MethodRow(
                method=name,
                n=len(right),
                accuracy=float(right.mean()),
                low=low,
                high=high,
                acts_on=entry.acts_on,
                through=entry.through,
                about=entry.method.about,
                **against,
            )
        )
    return tuple(rows)


def curves(outcomes: Outcomes, base: np.ndarray, seed: int) -> tuple[DepthCurve, ...]:
    """Evidence AUROC and RAPT by layer, over all samples and over those that base got right or wrong."""
    groups = {"all": np.ones_like(base), "correct": base, "wrong": ~base}
    lines = {("auroc", "evidence"): [one.auroc for one in outcomes.looked]}
    for segment in ("image", "question", "evidence", "non-evidence"):
        lines["rapt", segment] = [one.rapt[segment] for one in outcomes.looked]
    return tuple(
        _curve(metric, segment, group, np.stack(values), chosen, seed)
        for (metric, segment), values in lines.items()
        for group, chosen in groups.items()
    )


def _curve(metric, segment, group, values: np.ndarray, chosen: np.ndarray, seed: int) -> DepthCurve:
    n_layers = values.shape[1]
    if not chosen.any():
        nothing = np.full(n_layers, np.nan)
        return DepthCurve(metric, segment, group, nothing, nothing, nothing, 0)
    found = bootstrap_mean(values[chosen].T, seed)
    mean, low, high = (np.asarray(one, dtype=np.float64) for one in (found.mean, *found.interval))
    return DepthCurve(metric, segment, group, mean, low, high, int(chosen.sum()))


def wrong_seen(outcomes: Outcomes, base: np.ndarray) -> Share:
    """Of the base's wrong answers, the share whose own region lies on the evidence."""
    seen = np.array([one.seen for one in outcomes.looked])
    wrong = int((~base).sum())
    if not wrong:
        return Share(math.nan, math.nan, math.nan, 0)
    count = int((seen & ~base).sum())
    low, high = wilson(count, wrong)
    return Share(count / wrong, low, high, wrong)


def rule(outcomes: Outcomes, base: np.ndarray) -> Rule:
    """When emphasis gains, with this run's numbers."""
    seen = np.array([one.seen for one in outcomes.looked])
    after = outcomes.correct(CHIEF)
    seen_wrong, unseen_right = seen & ~base, ~seen & base
    return Rule(
        method=CHIEF,
        seen_wrong=float(seen_wrong.mean()),
        fix_rate=float(after[seen_wrong].mean()) if seen_wrong.any() else math.nan,
        unseen_right=float(unseen_right.mean()),
        break_rate=float((~after[unseen_right]).mean()) if unseen_right.any() else math.nan,
    )


def gallery(vlm: VLM, outcomes: Outcomes, map_method: Vea) -> tuple[GalleryItem, ...]:
    """Up to `PER_OUTCOME` samples of each outcome: fixed, broken, both right, both wrong."""
    base, after = outcomes.correct("base"), outcomes.correct(CHIEF)
    chosen: list[int] = []
    for outcome in (~base & after, base & ~after, ~base & ~after, base & after):
        chosen += outcome.nonzero()[0][:PER_OUTCOME].tolist()
    right = {method: outcomes.correct(method) for method in outcomes.answers}
    return tuple(_item(vlm, outcomes, right, place, map_method) for place in sorted(chosen))


def _item(vlm: VLM, outcomes: Outcomes, right: Mapping, place: int, map_method: Vea) -> GalleryItem:
    sample, looked = outcomes.samples[place], outcomes.looked[place]
    prompt = prompt_of(vlm, sample)
    grid = prompt.grids[0]
    return GalleryItem(
        sample=sample.id,
        image=sample.image,
        question=sample.question,
        truth=sample.answers,
        answers={method: given[place] for method, given in outcomes.answers.items()},
        correct={method: bool(marks[place]) for method, marks in right.items()},
        boxes=sample.boxes,
        heat=_heat(looked, grid),
        region=window_box(grid, looked.region),
        seen=looked.seen,
        maps=_maps(vlm, prompt, map_method),
    )


def _heat(looked: Looked, grid: VisualGrid) -> np.ndarray:
    """The own heads' attention over the whole picture, 0..1; 0 where no token looks."""
    return normalize(grid.heatmap(looked.heat, fill=0.0))


def _maps(vlm: VLM, prompt, method: Vea) -> dict[str, np.ndarray]:
    """The paper's smooth map under both boundaries."""
    settings = {name: getattr(method, name) for name in ("layers", "alpha", "sigma", "denoise")}
    return {
        f"vea, {boundary}": Vea(**settings, boundary=boundary).maps(vlm, prompt)[0]
        for boundary in ("nearest", "reflect")
    }


def _versions() -> dict[str, str]:
    packages: Sequence[str] = ("torch", "transformers", "nnsight", "scipy", "numpy")
    return {"python": sys.version.split()[0]} | {name: version(name) for name in packages}


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform != "darwin" else peak / 1024**2
