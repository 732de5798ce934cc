"""Methods that a Python file defines: ``METHODS = {"name": method, edits, or a function of the model}``.

The file's text goes along, so that a study's other processes, and other machines, run what was there when it
started, and its digest is kept with the results.
"""

from __future__ import annotations

import hashlib
import inspect
import linecache
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from seeing.edits import Edits
from seeing.edits.edit import Edit
from seeing.methods.method import Edited, Method
from seeing.methods.settings import BadMethod
from seeing.vlm import VLM

EXPECTED = (
    'METHODS = {"name": method}, each a Method, edits, or a function (vlm) or (vlm, profile) that makes one'
)


@dataclass(frozen=True)
class PythonFile:
    """A file as it was when it was read."""

    path: str
    source: str

    @classmethod
    def read(cls, path: str) -> PythonFile:
        """Raises `BadMethod` for a file that can't be read."""
        try:
            return cls(str(Path(path).resolve()), Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeError) as error:
            raise BadMethod(f"can't read {path!r}: {getattr(error, 'strerror', None) or error}") from error

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.source.encode()).hexdigest()

    def methods(self) -> Mapping[str, Any]:
        """What the file calls METHODS. Raises `BadMethod` where it has none, or does not run."""
        try:
            found = getattr(_run(self.path, self.source), "METHODS", None)
        except Exception as error:
            raise BadMethod(f"{self._place(error)}; the file is run to find its METHODS") from error
        good = isinstance(found, Mapping) and bool(found) and all(isinstance(one, str) for one in found)
        if not good:
            raise BadMethod(f"{self.path} defines METHODS as {found!r:.100}; expected {EXPECTED}")
        return found

    def made(self, name: str, vlm: VLM, profile: Any) -> Method:
        """One of its methods for a model. Raises `BadMethod` with the line that failed."""
        value = self.methods()[name]
        try:
            return method_of(value, vlm, profile)
        except BadMethod:
            raise
        except Exception as error:
            raise BadMethod(self._place(error)) from error

    def _place(self, error: Exception) -> str:
        """The file's own line that an error came from, and what it said."""
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == self.path]
        line = lines[-1] if lines else getattr(error, "lineno", None)
        where = f"{self.path}, line {line}" if line else self.path
        return f"{where}: {type(error).__name__}: {error}"


def needs_of(value: Any) -> frozenset[str]:
    """What a method from Python needs: the heads of a profile, where its function asks for one.

    Raises `BadMethod` for what is no method.
    """
    if isinstance(value, (Method, Edit, Edits)):
        return frozenset()
    second = _parameters(value)[1:2]
    asks = bool(second) and second[0].default is inspect.Parameter.empty
    return frozenset({"heads"} if asks else ())


def method_of(value: Any, vlm: VLM, profile: Any) -> Method:
    """The method that a value of METHODS means, for a model."""
    if isinstance(value, Method):
        return value
    if isinstance(value, (Edit, Edits)):
        return Edited(value, f"{value!r:.80}")
    if len(_parameters(value)) > 1:
        if profile is None and "heads" in needs_of(value):
            raise BadMethod("its function takes (vlm, profile), and there is no profile: make one")
        made = value(vlm, profile)
    else:
        made = value(vlm)
    if not isinstance(made, (Method, Edit, Edits)):
        raise BadMethod(f"its function gave {made!r:.100}; expected a Method or edits")
    return method_of(made, vlm, profile)


def _parameters(value: Any) -> list[inspect.Parameter]:
    """The positional parameters of a function, one or two."""
    try:
        found = [
            one
            for one in inspect.signature(value).parameters.values()
            if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):
        found = []
    if not isinstance(value, Callable) or isinstance(value, type) or len(found) not in (1, 2):
        raise BadMethod(f"a method is a Method, edits, or a function (vlm, profile); got {value!r:.100}")
    return found


@cache
def _run(path: str, source: str) -> ModuleType:
    """The file as a module, run once a process."""
    name = f"seeing_methods_{hashlib.sha256((path + source).encode()).hexdigest()[:12]}"
    module = ModuleType(name)
    module.__file__ = path
    # A trace reads its own source, also where the file is not.
    linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
    sys.modules[name] = module
    folder = str(Path(path).parent)
    sys.path.insert(0, folder)
    try:
        exec(compile(source, path, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(folder)
    return module
