"""Methods as they are written on a command line, and made for a model.

``parse_methods("base,vea,vea_in_pass:gain=2,mine.json,mine.py")`` gives a `Named` each: a name with settings
(`recipes`), edits saved as JSON, or what a Python file defines. They are data: they travel to other processes
as they are, say what they need before a model is loaded, and are kept with a study (`Named.as_dict`).
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seeing.data.samples import EvidenceSample
from seeing.edits import BadEdit, Edits
from seeing.edits.edit import Edit
from seeing.edits.saving import from_json, to_json
from seeing.methods.bench import Bench
from seeing.methods.fitting import fit
from seeing.methods.from_file import PythonFile, method_of, needs_of
from seeing.methods.method import Edited, Method
from seeing.methods.recipes import RECIPES, Recipe
from seeing.methods.settings import BadMethod, meant, read_settings, said
from seeing.probes.profiles.profile import Profile
from seeing.probes.profiles.published import Published
from seeing.prompt import Template
from seeing.vlm import VLM

#: What methods may be given as, beside text: by name, values or functions of the model and its profile.
Given = Mapping[str, Method | Edit | Edits | Callable[..., Any]]

#: A file, and perhaps one method of those that it defines.
_FILE = re.compile(r"(?P<path>.+\.(?P<kind>json|py))(?::(?P<name>[^:]+))?")


@dataclass(frozen=True)
class Ask:
    """A method made for a model, and the template of the prompts that it is handed."""

    method: Method
    template: Template = "qa"


@dataclass(frozen=True)
class Named(ABC):
    """A method as it is written: ``text`` stands in the ``method`` column."""

    text: str

    @property
    def needs(self) -> frozenset[str]:
        """What has to be there: "layers" or "heads" of a profile, calibration "samples", evidence "boxes"."""
        return frozenset()

    @property
    def needs_profile(self) -> bool:
        return bool(self.needs & {"layers", "heads"})

    @property
    def needs_samples(self) -> bool:
        return "samples" in self.needs

    def build(
        self,
        vlm: VLM,
        profile: Profile | Published | None = None,
        seed: int = 0,
        samples: Sequence[EvidenceSample] = (),
    ) -> Ask:
        """The method for this model. Raises `BadMethod` that names it, for all that is wrong with it.

        ``samples`` are calibration samples, for methods that find numbers on them.
        """
        try:
            ask = self._made(Bench(vlm, profile, seed, samples))
            fit(ask.method, vlm)
        except ValueError as error:
            raise BadMethod(f"method {self.text!r}: {error}") from error
        return ask

    @abstractmethod
    def _made(self, at: Bench) -> Ask:
        """The method, checks left to `build`."""

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """What it is, as JSON can hold it: two methods with the same answer the same."""


@dataclass(frozen=True)
class ByName(Named):
    """A recipe with settings."""

    name: str
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        return RECIPES[self.name]

    @property
    def needs(self) -> frozenset[str]:
        return self.recipe.needs(self.given)

    def _made(self, at: Bench) -> Ask:
        defaults = {one.name: one.default for one in self.recipe.settings.values()}
        return Ask(self.recipe.make(at, **defaults | self.given), self.recipe.template)

    def as_dict(self) -> dict[str, Any]:
        values = {one.name: one.default for one in self.recipe.settings.values()} | self.given
        return {"method": self.name, "settings": {name: said(one) for name, one in values.items()}}


@dataclass(frozen=True)
class SavedEdits(Named):
    """Edits, with all their tensors, as JSON."""

    document: str

    def _made(self, at: Bench) -> Ask:
        return Ask(Edited(from_json(self.document), f"the edits of {self.text}"))

    def as_dict(self) -> dict[str, Any]:
        return {"edits": json.loads(self.document)}


@dataclass(frozen=True)
class FromPython(Named):
    """One method of a Python file."""

    file: PythonFile
    name: str

    @property
    def needs(self) -> frozenset[str]:
        return needs_of(self.file.methods()[self.name])

    def _made(self, at: Bench) -> Ask:
        return Ask(self.file.made(self.name, at.vlm, at.profile))

    def as_dict(self) -> dict[str, Any]:
        return {"file": Path(self.file.path).name, "method": self.name, "sha256": self.file.sha256}


@dataclass(frozen=True)
class AsGiven(Named):
    """A method, edits, or a function, from Python."""

    value: Any

    @property
    def needs(self) -> frozenset[str]:
        return needs_of(self.value)

    def _made(self, at: Bench) -> Ask:
        return Ask(method_of(self.value, at.vlm, at.profile))

    def as_dict(self) -> dict[str, Any]:
        if isinstance(self.value, (Edit, Edits)):
            return {"edits": json.loads(to_json(self.value))}
        return {"python": f"{self.value!r:.2000}" if isinstance(self.value, Method) else _spelled(self.value)}


def parse_methods(methods: str | Given | Iterable[str | Named]) -> tuple[Named, ...]:
    """Methods as they are written, or given from Python. See this module.

    ``methods`` is a text, names separated by commas; several texts; or a mapping from names to methods, edits
    or functions (vlm, profile) -> method.

    Raises `BadMethod` for a name or a setting that is not known, a file that can't be read, and a method that
    stands there twice.
    """
    if isinstance(methods, Mapping):
        found = [_as_given(name, value) for name, value in methods.items()]
    else:
        several = [methods] if isinstance(methods, str) else list(methods)
        found = [one for some in several for one in ([some] if isinstance(some, Named) else _written(some))]
    if not found:
        raise BadMethod(f"no method is named; there are {', '.join(RECIPES)}, .json and .py files")
    names = [one.text for one in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadMethod(f"{', '.join(twice)} stands there twice")
    return tuple(found)


def _written(text: Any) -> list[Named]:
    """The methods of one text."""
    if not isinstance(text, str):
        raise BadMethod(f"a method is written as text, or given by name in a mapping; got {text!r:.200}")
    return [one for part in text.split(",") if part.strip() for one in _read(part.strip())]


def _read(text: str) -> list[Named]:
    if file := _FILE.fullmatch(text):
        return _saved(text) if file["kind"] == "json" else _python(file["path"], file["name"])
    name, *words = (part.strip() for part in text.split(":"))
    if name not in RECIPES:
        raise BadMethod(
            f"no method {name!r:.100}{meant(name, RECIPES)}; there are {', '.join(RECIPES)}, and files of "
            f"edits (.json) or of Python (.py)"
        )
    try:
        given = read_settings(RECIPES[name].settings, words)
    except BadMethod as error:
        raise BadMethod(f"method {name!r}: {error}") from error
    written = ["=".join(part.strip() for part in one.split("=", 1)) for one in words]
    return [ByName(":".join([name, *written]), name, given)]


def _saved(text: str) -> list[Named]:
    try:
        return [SavedEdits(text, to_json(from_json(Path(text))))]
    except BadEdit as error:
        raise BadMethod(f"method {text!r}: {error}") from error


def _python(path: str, name: str | None) -> list[Named]:
    file = PythonFile.read(path)
    known = file.methods()
    if name is not None and name not in known:
        raise BadMethod(f"{path} defines no method {name!r}{meant(name, known)}; it has {', '.join(known)}")
    return [FromPython(f"{path}:{one}", file, one) for one in ([name] if name else known)]


def _as_given(name: Any, value: Any) -> Named:
    if not isinstance(name, str) or not name.strip() or set(name) & set(",\n"):
        raise BadMethod(f"a method's name is a text without commas, got {name!r:.100}")
    if isinstance(value, str):
        (one,) = _written(value)
        return one
    needs_of(value)
    return AsGiven(name, value)


def _spelled(function: Any) -> str:
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"{getattr(function, '__module__', '?')}.{name}"
