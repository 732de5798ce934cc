"""The methods that have a name: how each is made for a model, from settings and from what is known of it.

A recipe is a function of a `Bench` (the model, its profile, calibration samples, the study's seed) whose
keyword-only parameters are the method's settings, read from text by `settings`. What a setting is taken from
when nothing is said, `From`, says what a method needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from seeing import methods as m
from seeing.methods.bench import Bench
from seeing.methods.calibrated import read_vectors, tuned
from seeing.methods.crop import GENERIC
from seeing.methods.method import Method
from seeing.methods.settings import (
    Flag,
    From,
    Heads,
    LayerNumbers,
    Layers,
    Number,
    NumberOrNone,
    Setting,
    Text,
    Whole,
    WholeOrNone,
    Wholes,
    Window,
    or_else,
    settings_of,
    word,
)
from seeing.methods.vea import AS_ASKED
from seeing.prompt import Template

LAYERS = From("layers", "the profile's layers")
HEADS = From("heads", "the profile's best heads")
SEED = From("seed", "the study's seed", needed=False)
DIMS = From("samples", "found on calibration samples")
VECTORS = From("samples", "found on calibration samples, else a safetensors file")
LOW, HIGH, THRESHOLD = (
    From("samples", f"{number}, or tuned", number, needed=False) for number in (0.5, 1.5, 0.3)
)
LAST_THIRD = From("model", "the last third, behind the heads", needed=False)
INNER = From("model", "all but the first two and the last", slice(2, -1), needed=False)
EARLY = From("model", "the eighth to the third from the end", slice(-8, -2), needed=False)

Boundary = Annotated[Any, word("nearest", "reflect")]
Position = Annotated[Any, word("last", "question", "text", "image", "evidence", "all")]
Target = Annotated[Any, word("evidence", "image")]
Site = Annotated[Any, word("mlp_out", "resid_post")]
To = Annotated[Any, word("zero", "mean")]
When = Annotated[Any, word("decode", "prompt", "both")]

VEA, SCALING = "2510.17771", "2503.01773"


@dataclass(frozen=True)
class Recipe:
    """A method by name, its paper (arXiv id), and how it is made.

    ``template`` is the prompt that it is handed; ``boxes`` says that it looks at the annotated evidence.
    """

    name: str
    make: Callable[..., Method]
    paper: str | None
    template: Template
    boxes: bool

    @property
    def about(self) -> str:
        return " ".join((self.make.__doc__ or "").split()).rstrip(".")

    @cached_property
    def settings(self) -> Mapping[str, Setting]:
        return settings_of(self.make)

    def needs(self, given: Mapping[str, Any]) -> frozenset[str]:
        """What has to be there: "layers" or "heads" of a profile, calibration "samples", evidence "boxes"."""
        defaults = [one.default for name, one in self.settings.items() if name not in given]
        found = {one.source for one in defaults if isinstance(one, From) and one.needed}
        if self.boxes and given.get("target") != "image":
            found.add("boxes")
        return frozenset(found | ({"samples"} if given.get("tune") else set()))


RECIPES: dict[str, Recipe] = {}


def recipe(paper: str | None = None, *, template: Template = "qa", boxes: bool = False) -> Callable:
    """Registers a recipe under its function's name."""

    def registered(make: Callable[..., Method]) -> Callable[..., Method]:
        RECIPES[make.__name__] = Recipe(make.__name__, make, paper, template, boxes)
        return make

    return registered


# ---- the paper's -------------------------------------------------------------------------------


@recipe()
def base(at: Bench) -> Method:
    """The model as it is."""
    return m.Base()


@recipe(VEA, template="vea")
def inst(at: Bench) -> Method:
    """The prompt of VEA on the picture as it is."""
    return m.Base()


@recipe(VEA)
def vea(
    at: Bench,
    *,
    layers: LayerNumbers = LAYERS,
    alpha: Number = 0.5,
    sigma: Number = 0.5,
    denoise: Flag = True,
    boundary: Boundary = "nearest",
    authors: Flag = False,
) -> Method:
    """Evidence map of the profile's layers, the rest of the picture dimmed, asked again."""
    return m.Vea(at.layers(layers), alpha, sigma, denoise, "reflect" if authors else boundary)


@recipe(VEA)
def vea_no_denoise(at: Bench, *, layers: LayerNumbers = LAYERS, alpha: Number = 0.5) -> Method:
    """VEA without its denoising."""
    return m.Vea(at.layers(layers), alpha=alpha, denoise=False)


@recipe(VEA)
def vea_no_smooth(at: Bench, *, layers: LayerNumbers = LAYERS, alpha: Number = 0.5) -> Method:
    """VEA without its smoothing."""
    return m.Vea(at.layers(layers), alpha=alpha, sigma=0.0)


@recipe(VEA)
def vea_no_profiling(at: Bench, *, alpha: Number = 0.5) -> Method:
    """VEA that reads all layers."""
    return m.Vea(at.seeing_layers, alpha=alpha)


@recipe(VEA)
def vea_no_prompt(at: Bench, *, layers: LayerNumbers = LAYERS, alpha: Number = 0.5) -> Method:
    """VEA asked in the prompt that the base is asked in."""
    return m.Vea(at.layers(layers), alpha=alpha, template=AS_ASKED)


# ---- its kin -----------------------------------------------------------------------------------


@recipe()
def vea_in_pass(
    at: Bench,
    *,
    heads: Heads = HEADS,
    layers: Layers = LAST_THIRD,
    gain: Number = 16.0,
    k: Whole = 4,
    window: Window = (2, 2),
) -> Method:
    """Reads where heads look and boosts it in the layers behind, in one pass."""
    behind = at.behind(layers, heads)
    return m.BoostInPass(at.heads(heads, k, below=min(behind)), behind, gain, window)


@recipe()
def second_look(
    at: Bench,
    *,
    heads: Heads = HEADS,
    layers: Layers = "all",
    gain: Number = 4.0,
    k: Whole = 4,
    window: Window = (2, 2),
) -> Method:
    """Reads where heads look, and runs the last token again with it boosted."""
    return m.SecondLook(at.heads(heads, k), gain, layers, window)


@recipe()
def window_highlight(
    at: Bench, *, heads: Heads = HEADS, alpha: Number = 0.5, k: Whole = 4, window: Window = (2, 2)
) -> Method:
    """All but the window that heads look at dimmed, asked again."""
    return m.WindowHighlight(at.heads(heads, k), alpha, window)


# ---- published by others -----------------------------------------------------------------------


@recipe("2407.21771")
def pai(
    at: Bench,
    *,
    alpha: Number = 0.2,
    gamma: Number = 1.1,
    layers: Layers = slice(2, None),
    plausibility: NumberOrNone = 0.1,
) -> Method:
    """Scores on the picture pushed up, and guidance away from the prompt without it."""
    return m.pai(alpha, gamma, layers, plausibility)


@recipe("2503.03321")
def var(
    at: Bench,
    *,
    dims: Wholes = DIMS,
    tau: Number = 20.0,
    rho: Number = 0.5,
    p: Number = 0.6,
    least: Number = 0.2,
    layers: Layers = INNER,
) -> Method:
    """Weight that sinks draw goes to the rest of the picture."""
    dims = m.sink_dims(at.vlm, at.few, tau=tau) if isinstance(dims, From) else dims
    return m.var(dims, tau, rho, p, least=least, layers=or_else(layers))


@recipe(SCALING)
def scaling_vis(at: Bench, *, weight: Number = 1.5) -> Method:
    """Scores on the picture times a weight, in the last row of the prompt."""
    return m.scaling_vis(weight)


@recipe(SCALING)
def adaptvis(
    at: Bench,
    *,
    low: Number = LOW,
    high: Number = HIGH,
    threshold: Number = THRESHOLD,
    tune: Flag = False,
) -> Method:
    """Scores on the picture scaled by how sure the first token is."""
    given = {"low": low, "high": high, "threshold": threshold}
    fixed = {name: one for name, one in given.items() if not isinstance(one, From)}
    if tune:
        return tuned(at.vlm, at.calibration(), **fixed)
    return m.adaptvis(**{name: or_else(one) for name, one in given.items()})


@recipe("2502.17422")
def vicrop(
    at: Bench, *, layers: LayerNumbers = LAYERS, size: WholeOrNone = None, generic: Text = GENERIC
) -> Method:
    """The region that the question looks at, appended as a close-up."""
    return m.vicrop(at.layers(layers), size=size, generic=generic)


@recipe("2311.16922")
def vcd(
    at: Bench,
    *,
    alpha: Number = 0.5,
    step: Whole = 500,
    plausibility: NumberOrNone = 0.1,
    seed: Whole = SEED,
) -> Method:
    """Contrasted with the picture under noise."""
    return m.vcd(alpha, step, plausibility, at.seeded(seed))


@recipe("2403.14003")
def m3id(
    at: Bench, *, decay: Number = 0.02, weight: Number = 1.0, plausibility: NumberOrNone = 0.1
) -> Method:
    """Contrasted with the prompt without its picture, more with every token."""
    return m.m3id(decay, plausibility, weight)


@recipe("2403.02325", boxes=True)
def crg(at: Bench, *, alpha: Number = 1.0) -> Method:
    """Contrasted with the picture whose annotated evidence is blacked out."""
    return m.crg(alpha=alpha)


@recipe("2406.12718")
def agla(
    at: Bench,
    *,
    layers: LayerNumbers = LAYERS,
    alpha: Number = 1.0,
    keep: NumberOrNone = None,
    plausibility: NumberOrNone = 0.5,
) -> Method:
    """Together with the part of the picture that VEA's map says is salient."""
    return m.agla(m.Vea(at.layers(layers)).maps, alpha, keep=keep, plausibility=plausibility)


@recipe("2502.03628")
def vista(
    at: Bench,
    *,
    vectors: Text = VECTORS,
    strength: Number = 0.1,
    weight: Number = 0.3,
    layers: Layers = "all",
    window: Layers = EARLY,
    site: Site = "mlp_out",
) -> Method:
    """Tokens turned towards what the picture adds, early layers mixed into the logits."""
    found = at.vectors() if isinstance(vectors, From) else read_vectors(vectors)
    return m.vista(found, strength, layers=layers, window=or_else(window), weight=weight, site=site)


@recipe("2606.14703", boxes=True)
def gaze_heads(
    at: Bench,
    *,
    heads: Heads = HEADS,
    k: WholeOrNone = None,
    target: Target = "evidence",
    bias: Number = 1e4,
    when: When = "decode",
) -> Method:
    """Some heads look at the target and at nothing else of the picture."""
    return m.gaze_heads(at.best_heads(heads, k), target, bias, when=when)


@recipe("2304.14767")
def attention_knockout(
    at: Bench,
    *,
    queries: Position = "last",
    keys: Position = "image",
    layer: WholeOrNone = None,
    window: Whole = 9,
    layers: Layers = "all",
) -> Method:
    """Edges from queries to keys cut, in some layers or in a window around one."""
    return m.attention_knockout(queries, keys, layer, window=window, layers=layers)


# ---- controls ----------------------------------------------------------------------------------


@recipe()
def ablate_heads(at: Bench, *, heads: Heads = HEADS, k: WholeOrNone = None, to: To = "zero") -> Method:
    """The profile's best heads taken out."""
    return m.ablate_heads(at.best_heads(heads, k), to)


@recipe()
def random_heads(
    at: Bench,
    *,
    heads: Heads = HEADS,
    k: WholeOrNone = None,
    to: To = "zero",
    anywhere: Flag = False,
    seed: Whole = SEED,
) -> Method:
    """As many other heads taken out as ablate_heads takes, in the same layers or anywhere."""
    return m.ablate_heads(at.other_heads(at.best_heads(heads, k), at.seeded(seed), anywhere), to)


@recipe(boxes=True)
def oracle(at: Bench, *, gain: Number = 4.0) -> Method:
    """The annotated evidence boosted."""
    return m.oracle(gain)


@recipe(boxes=True)
def oracle_highlight(at: Bench, *, alpha: Number = 0.5) -> Method:
    """All but the annotated evidence dimmed."""
    return m.OracleHighlight(alpha)


@recipe()
def random_region(at: Bench, *, gain: Number = 4.0, window: Window = (2, 2), seed: Whole = SEED) -> Method:
    """A window somewhere boosted."""
    return m.random_region(gain, window, at.seeded(seed))


@recipe()
def random_highlight(
    at: Bench, *, alpha: Number = 0.5, window: Window = (2, 2), seed: Whole = SEED
) -> Method:
    """All but a window somewhere dimmed."""
    return m.RandomHighlight(alpha, window, at.seeded(seed))


@recipe()
def all_image(at: Bench, *, gain: Number = 4.0) -> Method:
    """All image tokens boosted alike."""
    return m.all_image_attention(gain)
