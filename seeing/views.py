"""Names as attributes: ``vlm.text[3].attn.pattern`` in a trace, readable and assignable.

A view holds no values. It spells a name, part by part, and when the name is whole it asks the site:
reading waits for the run to reach it, assigning writes it, and item assignment in nnsight's manner
(``vlm.text[3].attn.pattern[:, 3, -1] = 0``) is carried into the run by the site's write-back.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterator, Mapping

from greenlet import getcurrent
from torch import Tensor

from seeing.names import UnknownName
from seeing.sites import Site


class OutsideTrace(AttributeError, ValueError):
    """A name asked for its value where no model runs. An AttributeError, so that `hasattr` can ask."""


def bound(sites: Mapping[str, Site], name: str) -> Tensor:
    """The value of a whole name, as a user's block gets it. Raises `OutsideTrace` where no block runs."""
    if getattr(getcurrent(), "mediator", None) is None:
        raise OutsideTrace(f"{name!r} has a value in a trace: `with vlm.trace(prompt): …`, or vlm.cache")
    return sites[name].bound()


class View:
    """Part of a name, such as ``text.3`` or ``text.3.attn``. Its attributes are the next parts."""

    __slots__ = ("_prefix", "_sites")

    def __init__(self, sites: Mapping[str, Site], prefix: str):
        object.__setattr__(self, "_sites", sites)
        object.__setattr__(self, "_prefix", prefix)

    def __getattr__(self, part: str) -> Tensor | View:
        if part.startswith("__"):
            raise AttributeError(part)
        name = f"{self._prefix}.{part.rstrip('_')}"
        if name in self._sites:
            return bound(self._sites, name)
        if any(known.startswith(f"{name}.") for known in self._sites):
            return View(self._sites, name)
        raise AttributeError(self._missing(name))

    def __setattr__(self, part: str, value: Tensor) -> None:
        name = f"{self._prefix}.{part.rstrip('_')}"
        if name not in self._sites:
            raise AttributeError(self._missing(name))
        self._sites[name].write(value)

    def _missing(self, name: str) -> str:
        return f"no name {name!r}; {self._prefix!r} has {', '.join(dir(self))}"

    def __dir__(self) -> list[str]:
        cut = len(self._prefix) + 1
        parts = (name[cut:].split(".")[0] for name in self._sites if name.startswith(f"{self._prefix}."))
        # `in` is a word of Python's, and spelled `in_` as an attribute.
        spelled = (f"{part}_" if keyword.iskeyword(part) else part for part in parts)
        return list(dict.fromkeys(spelled))

    def __repr__(self) -> str:
        return f"<{self._prefix}: {', '.join(dir(self))}>"


class StackView(View):
    """``vlm.text`` or ``vlm.vision``: layers by number, and the names outside the layers."""

    __slots__ = ()

    def __len__(self) -> int:
        return sum(part.isdigit() for part in dir(self))

    def __getitem__(self, layer: int) -> View:
        count = len(self)
        if not isinstance(layer, int) or isinstance(layer, bool):
            raise TypeError(f"{self._prefix}[…] takes a layer number, got {layer!r}")
        if not -count <= layer < count:
            raise UnknownName(f"no layer {layer}: {self._prefix} has layers 0-{count - 1}")
        return View(self._sites, f"{self._prefix}.{layer % count}")

    def __iter__(self) -> Iterator[View]:
        return (self[layer] for layer in range(len(self)))
