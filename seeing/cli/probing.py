"""The probes that a command can run over a data set: their settings as text, and how each is summed up.

A probe's settings are its function's parameters, so that what --set takes is what Python takes. Nothing of
the package is imported before it is needed: the command's help lists the probes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from seeing.cli.terminal import UserError

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Probe:
    """A probe by name: a function of `seeing.probes`, what it tells, and how its table is made short."""

    function: str
    about: str
    short: Callable[[DataFrame], DataFrame]


# ---- tables made short -------------------------------------------------------------------------


def _best(column: str, n: int = 10) -> Callable[[DataFrame], DataFrame]:
    """The rows with the largest numbers of a column, of either sign."""
    return lambda frame: frame.reindex(frame[column].abs().sort_values(ascending=False).index).head(n)


def _by(*axes: str, values: Iterable[str]) -> Callable[[DataFrame], DataFrame]:
    """Means over what is not an axis."""
    return lambda frame: frame.groupby(list(axes), sort=False)[list(values)].mean().reset_index()


def _across(rows: str, columns: str, value: str) -> Callable[[DataFrame], DataFrame]:
    """Means of one number, an axis down and one across."""

    def short(frame: DataFrame) -> DataFrame:
        table = frame.pivot_table(index=rows, columns=columns, values=value, sort=False)
        return table.reset_index().rename_axis(columns=None)

    return short


def _layers(frame: DataFrame) -> DataFrame:
    """The layers' mean rows, without those of heads."""
    return frame[frame["head"] < 0].drop(columns="head")


def _quadrants(frame: DataFrame) -> DataFrame:
    """How many samples were seen, believed, and answered right."""
    found = frame.groupby("quadrant").agg(
        samples=("sample", "size"), correct=("correct", "mean"), auroc=("auroc", "mean")
    )
    return found.reset_index()


def _words(frame: DataFrame) -> DataFrame:
    """The words that most tokens of the picture say first, layer by layer."""

    def most(words: Any) -> str:
        return ", ".join(f"{word!r} {n}" for word, n in words.value_counts().head(6).items())

    found = frame[frame["k"] == 0].groupby("layer")["word"].apply(most)
    return found.rename("words, by tokens").reset_index()


def _whole(frame: DataFrame) -> DataFrame:
    return frame


PROBES: dict[str, Probe] = {
    "allocation": Probe(
        "allocation", "how attention is shared between segments (RAPT)", _across("layer", "segment", "rapt")
    ),
    "evidence": Probe("evidence", "how well each layer and head finds the evidence", _layers),
    "heads": Probe("evidence_heads", "heads, ranked by how well they find the evidence", _best("score")),
    "gaze": Probe("gaze_heads", "heads, ranked by the weight that they put on it", _best("score")),
    "localization": Probe("localization_heads", "heads that point, found without boxes", _best("score")),
    "sinks": Probe(
        "sinks", "what tokens without content draw", _by("layer", "kind", values=("mass", "control"))
    ),
    "belief": Probe("belief", "was the evidence seen, and does the answer use it?", _quadrants),
    "wrong_attention": Probe("wrong_attention", "accuracy where attention misses the evidence", _whole),
    "lens": Probe(
        "logit_lens",
        "what each layer would say",
        _by("layer", values=("rank", "logprob", "entropy", "kl")),
    ),
    "image_lens": Probe("image_lens", "what each place of one picture says as a word", _words),
    "knockout": Probe("knockout", "which flows the answer hangs on", _across("layer", "flow", "prob")),
    "patching": Probe("patching", "where the answer is, by patching another run in", _best("effect")),
    "path_patching": Probe("path_patching", "which heads write the answer, by patching", _best("effect")),
    "attribution": Probe("attribution", "the same for all heads at once, by gradients", _best("change")),
    "direct": Probe("direct_effects", "what each part adds to the answer's logit", _best("effect")),
    "stability": Probe("stability", "how many samples a profile needs", _whole),
}

#: Probes that look where a profile says, unless they are told layers.
PROFILED = ("belief", "wrong_attention")


# ---- settings ----------------------------------------------------------------------------------

#: Parameters that are no settings, or that have options of their own.
_OWN = ("vlm", "samples", "sample", "clean", "found", "methods", "template", "batch_size", "progress", "each")

#: What a parameter without a default is.
_OTHERWISE = {"corrupted": "another"}


def _list(text: str) -> Any:
    """One number or word, or several joined by +."""
    parts = [_scalar(part) for part in text.split("+")]
    return parts if len(parts) > 1 else parts[0]


def _scalar(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"none": None, "true": True, "false": False}.get(text.lower(), text)


def settings(name: str) -> Mapping[str, Any]:
    """The settings of a probe, by name. Raises `UserError` for no probe."""
    import inspect

    from seeing import probes
    from seeing.methods import settings as kinds

    if name not in PROBES:
        raise UserError(f"no probe {name!r}{kinds.meant(name, PROBES)}; there are {', '.join(PROBES)}")

    def kind(key: str, default: Any) -> Any:
        given = {bool: kinds.Flag, int: kinds.Whole, float: kinds.Number}.get(type(default))
        given = {"layers": kinds.Layers, "heads": kinds.Heads}.get(key, given)
        return (
            kinds.Kind("a number or a word, or several joined by +", _list)
            if given is None
            else (given.__metadata__[0])
        )

    found = {}
    for key, one in inspect.signature(getattr(probes, PROBES[name].function)).parameters.items():
        if key not in _OWN and one.kind is not one.VAR_KEYWORD:
            default = _OTHERWISE.get(key) if one.default is one.empty else one.default
            found[key] = kinds.Setting(key, kind(key, default), default)
    return found


def read(name: str, words: Iterable[str]) -> dict[str, Any]:
    """Settings written key=value. Raises `UserError` that lists what the probe takes."""
    from seeing.methods.settings import BadMethod, read_settings

    known = settings(name)
    try:
        return read_settings(known, words)
    except BadMethod as error:
        raise UserError(f"probe {name}: {error}") from error


# ---- running -----------------------------------------------------------------------------------


def run(
    name: str,
    vlm: Any,
    samples: Iterable[Any],
    given: Mapping[str, Any],
    *,
    profile: Any = None,
    methods: Mapping[str, Any] | None = None,
    **how: Any,
) -> Any:
    """The probe's result. ``how`` is the template and the batch size."""
    from seeing import probes

    function = getattr(probes, PROBES[name].function)
    given = {key: one.default for key, one in settings(name).items() if key in _OTHERWISE} | dict(given)
    if name in PROFILED and profile is not None:
        given = {"layers": profile, **given}
    if name == "wrong_attention":
        given["methods"] = methods
    if name == "stability":
        return function(probes.aurocs(vlm, samples, **how), **given)
    if name == "image_lens":
        first = next(iter(samples), None)
        if first is None:
            raise UserError("there is no sample that can be had")
        return function(vlm, first, template=how["template"], **given)
    return function(vlm, samples, **given, **how)
