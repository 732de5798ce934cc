"""Studies: models × data × methods, kept in a folder that can be gone on with, joined and tabulated.

from seeing import study

found = study.run("plates-tiny", "plates:256", "base,vea", "out/plates")
study.open("out/plates").table()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

#: Where each public name lives; opened on first use, so that the command starts fast.
_PUBLIC = {
    "run": "seeing.study.running",
    "plan": "seeing.study.planning",
    "Plan": "seeing.study.planning",
    "Settings": "seeing.study.settings",
    "Study": "seeing.study.study",
    "StudyError": "seeing.study.settings",
}

if TYPE_CHECKING:
    from seeing.study.planning import Plan, plan
    from seeing.study.running import run
    from seeing.study.settings import Settings, StudyError
    from seeing.study.study import Study


def open(*folders: Any) -> Any:
    """One study, or several as one: `Study.open`."""
    return __getattr__("Study").open(*folders)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'seeing.study' has no attribute {name!r}")


__all__ = ["Plan", "Settings", "Study", "StudyError", "open", "plan", "run"]
