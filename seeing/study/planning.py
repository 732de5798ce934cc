"""From what a user says to a plan: models, data and methods opened, checked, and put into numbers.

All that can be known without a model is known here, so that a mistake in the last word of a command is said
before the first model is loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from seeing.data.dataset import Dataset
from seeing.data.opening import open_data
from seeing.methods.named import Named, parse_methods
from seeing.probes.profiles.profile import Profile
from seeing.probes.profiles.published import PROFILES
from seeing.study.job import Job
from seeing.study.settings import Settings, StudyError, differences
from seeing.study.units import SIZE, Unit, units_of
from seeing.vlm import VLM

#: Samples of the embedded task that its models are profiled on, where nothing else is said.
CALIBRATION = "plates:calibration:128"


@dataclass(frozen=True)
class Plan:
    """A study, ready to be run.

    Attributes:
        settings: what its rows depend on.
        jobs: one a model.
        units: all pieces of it.
    """

    settings: Settings
    jobs: tuple[Job, ...]
    units: tuple[Unit, ...]

    @property
    def n_samples(self) -> int:
        """Samples that each model is asked."""
        return sum(len(unit) for unit in self.units if unit.model == 0)

    @property
    def n_rows(self) -> int:
        return sum(map(len, self.units)) * len(self.settings.methods)


def plan(
    models: Any,
    data: Any,
    methods: Any,
    *,
    load: Mapping[str, Any] | None = None,
    prompt: str = "qa",
    max_new_tokens: int | None = None,
    rows: int = 32,
    tokens: int = 32_768,
    seed: int = 0,
    profile: Profile | str | PathLike | None = None,
    calibration: Any = None,
    hold_out: int = 0,
    limit: int | None = None,
) -> Plan:
    """Make a plan; the arguments are those of `run`."""
    for name, value, least in (("rows", rows, 1), ("tokens", tokens, 1), ("hold_out", hold_out, 0)):
        _whole(name, value, least)
    for name, value in (("max_new_tokens", max_new_tokens), ("limit", limit)):
        if value is not None:
            _whole(name, value, 1)
    opened = _unique([_opened(one, limit, hold_out) for one in _several(data)], "data set")
    named = _methods(methods)
    names = _models(models)
    found, said = _profiled(opened, profile, calibration, hold_out, seed)
    jobs = tuple(
        Job(
            name=name,
            model=model,
            data=tuple(opened),
            methods=named,
            load=dict(load or {}),
            profile=profile_text(profile),
            calibration=found,
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            rows=rows,
            tokens=tokens,
            seed=seed,
        )
        for name, model in names
    )
    for name, _ in names:
        _check_needs(named, name, opened, found, said)
    settings = Settings(
        models=tuple({"name": job.name, "load": _said(job.load)} for job in jobs),
        data=tuple(map(_data, opened)),
        methods=tuple({"text": one.text, **one.as_dict()} for one in named),
        prompt=prompt if isinstance(prompt, str) else repr(prompt),
        max_new_tokens=max_new_tokens,
        rows=rows,
        tokens=tokens,
        seed=seed,
        profile=said,
        hold_out=hold_out,
        unit=SIZE,
    )
    units = units_of(len(jobs), [len(one) for one in opened], SIZE, skip=hold_out)
    if not units:
        raise StudyError(f"no sample is left to ask: {hold_out} are held out of {len(opened[0])}")
    return Plan(settings, jobs, units)


def replan(settings: Mapping[str, Any], folder: PathLike) -> Plan:
    """The plan of a study whose settings are in its folder.

    Raises `StudyError` where something of it was given as a value, which no folder holds.
    """
    own = settings["profile"] or {}
    calibration = own.get("calibration", own) or {}
    made = plan(
        [one["name"] for one in settings["models"]],
        [one["spec"] for one in settings["data"]],
        [one["text"] for one in settings["methods"]],
        load=settings["models"][0]["load"],
        prompt=settings["prompt"],
        max_new_tokens=settings["max_new_tokens"],
        rows=settings["rows"],
        tokens=settings["tokens"],
        seed=settings["seed"],
        profile=Path(folder) / "profiles" / "m0.json" if own.get("from") == "file" else None,
        calibration=None if settings["hold_out"] else calibration.get("spec"),
        hold_out=settings["hold_out"],
    )
    if found := list(differences(settings, made.settings.as_dict())):
        raise StudyError(
            f"the study in {folder} can't be gone on with from its settings alone ({'; '.join(found)}); "
            f"start it again with what it was started with"
        )
    return made


def profile_text(profile: Profile | str | PathLike | None) -> str | None:
    """A profile that is given, as text. Raises ValueError for a file that holds none."""
    if profile is None:
        return None
    if isinstance(profile, Profile):
        return profile.to_json()
    try:
        return Profile.load(profile).to_json()
    except OSError as error:
        raise StudyError(f"can't read the profile {profile}: {error.strerror or error}") from error


def _profiled(
    data: Sequence[Dataset], profile: Any, calibration: Any, hold_out: int, seed: int
) -> tuple[Dataset | None, dict[str, Any] | None]:
    """The samples that a profile is made on, and what the settings say of it."""
    if (calibration is not None) + (hold_out > 0) > 1:
        raise StudyError("calibration samples are a data set of their own, or some are held out: not both")
    found = None
    if hold_out:
        found = data[0].first(hold_out)
    elif calibration is not None:
        found = open_data(calibration)
    elif profile is None and all(str(one.spec).startswith("plates:") for one in data):
        found = open_data(f"{CALIBRATION}:{seed}")
    own = None if found is None else _data(found)
    if found is not None and not hold_out:
        asked = {(one.spec, one.id(place)) for one in data for place in range(len(one))}
        if twice := [one for one in map(found.id, range(len(found))) if (found.spec, one) in asked]:
            raise StudyError(
                f"{len(twice)} samples that the profile is made on are asked too, first "
                f"{twice[0]!r}; name other samples for one of the two"
            )
    if profile is not None:
        text = profile_text(profile)
        return found, {
            "from": "file",
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "calibration": own,
        }
    return found, None if own is None else {"from": "calibration", **own}


def _check_needs(
    methods: Sequence[Named], model: str, data: Sequence[Dataset], calibration: Dataset | None, said: Any
) -> None:
    """Raise `StudyError` for a method that needs what the study does not have."""
    has = set()
    if said is not None:
        has |= {"layers", "heads"}
    elif model.strip("/").lower() in map(str.lower, PROFILES):
        has.add("layers")
    if calibration is not None:
        has.add("samples")
    if all(one.has_boxes for one in data):
        has.add("boxes")
    for one in methods:
        if lacking := one.needs - has:
            raise StudyError(f"method {one.text!r} needs {_NEEDS[min(lacking)]}")


#: What to do about what a method needs.
_NEEDS = {
    "boxes": "evidence boxes, and a data set has none",
    "heads": "a profile of the model's heads; give one (profile), samples to make it on (calibration), or "
    "hold some out (hold_out)",
    "layers": "a profile of the model's layers; give one (profile), samples to make it on (calibration), or "
    "hold some out (hold_out)",
    "samples": "calibration samples; name a data set (calibration), or hold some samples out (hold_out)",
}


def _opened(one: Any, limit: int | None, hold_out: int) -> Dataset:
    found = one if isinstance(one, Dataset) else open_data(one)
    return found if limit is None else found.first(limit + hold_out)


def _methods(methods: Any) -> tuple[Named, ...]:
    found = tuple(parse_methods(methods))
    if not found:
        raise StudyError("a study needs a method: --methods base,vea")
    return found


def _models(models: Any) -> list[tuple[str, Any]]:
    found = [(_name_of(one) if isinstance(one, VLM) else str(one), one) for one in _several(models)]
    if not found:
        raise StudyError("a study needs a model")
    names = [name for name, _ in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise StudyError(f"models are told apart by their names, and {sorted(twice)} stands twice")
    return found


def _name_of(vlm: VLM) -> str:
    """What an open model is called: its hub id, or the name of the folder that it was read from."""
    said = vlm._module.config.name_or_path or type(vlm._module).__name__
    return Path(said).name if Path(said).exists() else said


def _unique(data: list[Dataset], what: str) -> list[Dataset]:
    names = [one.name for one in data]
    if twice := {name for name in names if names.count(name) > 1}:
        raise StudyError(f"{what}s are told apart by their names, and {sorted(twice)} stands twice")
    if not names:
        raise StudyError(f"a study needs a {what}")
    return data


def _data(one: Dataset) -> dict[str, Any]:
    return {"name": one.name, "spec": one.spec, "n": len(one), "fingerprint": one.fingerprint()}


def _several(value: Any) -> list[Any]:
    if isinstance(value, (str, PathLike, VLM, Dataset)) or not isinstance(value, Iterable):
        return [value]
    value = list(value)
    return [value] if value and hasattr(value[0], "question") else value


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise StudyError(f"{name} is a whole number from {least} on, got {value!r}")


def _said(load: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
        for key, value in load.items()
    }


__all__ = ["CALIBRATION", "Plan", "plan"]
