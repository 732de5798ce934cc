"""What a name stands for: a place where nnsight reads and writes a value.

nnsight serves values at *locations*: the input or output of a module, or of one operation inside a
module's forward (source tracing). A `Site` ties a name of the vocabulary to such a location, and
says how to get the named tensor out of what is served there and how to put an edited one back. Two
kinds exist:

* `Spot`: the tensor lies at the location as it is (``resid_post`` is a layer's output). Reading
  gives the live tensor, so item assignment reaches the model by itself.
* A `Derived` site: the value is computed on reading (a softmax that the fused
  kernel never wrote down). Reading inside a trace binds a write-back: if the block edits the value in
  place, the edit is carried into the run before it moves on; if it does not, the run is untouched,
  bit for bit. Nothing edits a temporary silently.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from greenlet import getcurrent
from nnsight.intervention.interleaver import Event, Mediator, Pending
from torch import Tensor


class Site(ABC):
    """One named activation. `read`, `bound` and `write` are called inside a trace, from its block."""

    name: str

    @property
    @abstractmethod
    def locations(self) -> tuple[str, ...]:
        """Where nnsight serves what the site reads and takes what it writes."""

    @abstractmethod
    def read(self) -> Tensor:
        """The value now, waiting for the run to reach it."""

    @abstractmethod
    def write(self, value: Tensor) -> None:
        """Replace the value in the run."""

    def bound(self) -> Tensor:
        """The value as a user's block gets it: in-place edits of it reach the run."""
        return self.read()

    def threaded(self) -> Tensor:
        """The value with the run going on from it, so that later values can be differentiated by it."""
        value = self.read()
        value = value if value.requires_grad else value.detach().requires_grad_()
        # What is read may be a view of what the run goes on from: written, it is that.
        self.write(value)
        return value

    def shown(self, value: Tensor) -> AbstractContextManager:
        """While this is open, whoever reads the site reads ``value``, the whole batch's, which is being
        written. A value that lies at one location needs nothing: reads behind the write find it there.
        """
        return nullcontext()


def _fits(name: str, value: Any, current: Tensor) -> Tensor:
    """Refuse a value that would be broadcast, moved or cast on its way into the run."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} takes a tensor, got {type(value).__name__}")
    if value.shape != current.shape:
        raise ValueError(f"{name} is {tuple(current.shape)} here, the value written is {tuple(value.shape)}")
    return value.to(device=current.device, dtype=current.dtype)


@dataclass(frozen=True)
class Spot(Site):
    """A tensor that lies at a location: ``take`` finds it in what is served, ``put`` gives it back."""

    name: str
    location: str
    take: Callable[[Any], Tensor]
    put: Callable[[Any, Tensor], Any]

    @property
    def locations(self) -> tuple[str, ...]:
        return (self.location,)

    def read(self) -> Tensor:
        return self.take(one_run(self.name, Mediator.value(self.location)))

    def write(self, value: Tensor) -> None:
        served = one_run(self.name, Mediator.value(self.location))
        Mediator.swap(self.location, self.put(served, _fits(self.name, value, self.take(served))))


def take_first(served: Any) -> Tensor:
    """A tensor, or the first element of a tuple."""
    return served[0] if isinstance(served, tuple) else served


def put_first(served: Any, value: Tensor) -> Any:
    """The reverse of `take_first`."""
    return (value, *served[1:]) if isinstance(served, tuple) else value


def take_input(served: Any) -> Tensor:
    """A call's first input, positional or by keyword."""
    args, kwargs = served
    return args[0] if args else next(iter(kwargs.values()))


def put_input(served: Any, value: Tensor) -> Any:
    """The reverse of `take_input`."""
    args, kwargs = served
    if args:
        return (value, *args[1:]), kwargs
    return args, {**kwargs, next(iter(kwargs)): value}


def module_output(name: str, path: str) -> Spot:
    """A module's output, or the output of an operation: a tensor, or the first element of a tuple."""
    return Spot(name, f"{path}.output", take_first, put_first)


def module_input(name: str, path: str) -> Spot:
    """A module's first input, positional or by keyword."""
    return Spot(name, f"{path}.input", take_input, put_input)


class LostEdit(RuntimeError):
    """A value that was edited in place when the run had moved on."""


class HandedOut:
    """The computed values that a run's blocks still hold when the run has moved on behind them.

    An edit of one of them would be an edit of a temporary: `check`, at the end of the run, raises for it.
    Values are held weakly: one that nobody holds any more can't be edited.
    """

    def __init__(self):
        self._views: list[tuple[str, weakref.ref[Tensor], int]] = []

    def add(self, name: str, view: Tensor) -> None:
        self._views.append((name, weakref.ref(view), view._version))

    def check(self) -> None:
        for name, held, version in self._views:
            view = held()
            if view is not None and view._version != version:
                raise LostEdit(
                    f"{name!r} was edited in place after the block had asked for another value, when "
                    f"the run had moved on, so the edit reached nothing: edit it right behind reading "
                    f"it, assign it, or edit a clone of it if the run was not meant to change"
                )


class WriteBack:
    """A computed value that a user's block holds, and the way back if the block edits it.

    nnsight asks a waiting write-back where it goes only when the block moves on. An untouched value
    (its version counter stands where it stood) goes back to where it was read, as what was served
    there, so that reading changes nothing; an edited one is written by the site. What the block does to it
    later comes too late, and is found at the end of the run (`HandedOut`).
    """

    def __init__(self, site: Derived, mediator: Mediator, served: Any, view: Tensor):
        self.site, self.served, self.view = site, served, view
        self.handed_out: HandedOut | None = getattr(mediator.interleaver, "handed_out", None)
        self.version = view._version
        self.occurrence = mediator.occurrence(site.source)
        #: What nnsight compares a repeated read with, to answer it with the same view.
        self.key = (site.name, site.source, self.occurrence)

    @property
    def edited(self) -> bool:
        return self.view._version != self.version

    @property
    def location(self) -> str:
        return self.site.target if self.edited else self.site.source

    def fn(self) -> Any:
        if self.handed_out is not None:
            self.handed_out.add(self.site.name, self.view)
        if not self.edited:
            return self.served
        return self.site.written(self.served, self.view, self.visit)

    def visit(self, location: str) -> Any:
        """What is served at ``location`` on the visit that the value was read on."""
        return getcurrent().parent.switch(Pending(Event.VALUE, location, self.occurrence))


@dataclass(frozen=True)
class Derived(Site):
    """A site computed from what is served at ``source`` and written at ``target``, later in the pass."""

    name: str
    source: str
    target: str

    @property
    def locations(self) -> tuple[str, ...]:
        return self.source, self.target

    @abstractmethod
    def derive(self, served: Any) -> Tensor:
        """The value, from what is served at ``source``."""

    @abstractmethod
    def written(self, served: Any, value: Tensor, visit: Callable[[str], Any]) -> Any:
        """What to put at ``target`` so that the run goes on with ``value``."""

    def read(self) -> Tensor:
        return self.derive(self.served())

    def served(self) -> Any:
        """What is served at ``source``, waiting for the run to reach it."""
        return one_run(self.name, Mediator.value(self.source))

    def _waiting(self, mediator: Mediator) -> WriteBack | None:
        """The write-back that a read of this site on this very visit left behind, if it still waits."""
        waiting = mediator.transform
        here = (self.name, self.source, mediator.wanted(self.source))
        return waiting if isinstance(waiting, WriteBack) and waiting.key == here else None

    def bound(self) -> Tensor:
        mediator = Mediator.current(self.name)
        if (waiting := self._waiting(mediator)) is not None:
            return waiting.view
        served = self.served()
        view = self.derive(served)
        mediator.transform = WriteBack(self, mediator, served, view)
        return view

    def write(self, value: Tensor) -> None:
        mediator = Mediator.current(self.name)
        if (waiting := self._waiting(mediator)) is not None:
            mediator.transform = None
            served, current = waiting.served, waiting.view
        else:
            served = self.served()
            current = self.derive(served)
        value = _fits(self.name, value, current)
        Mediator.swap(self.target, self.written(served, value, Mediator.value))


@dataclass(frozen=True)
class Copied(Derived):
    """A value that others hold too, read as a copy: an edit in place does what an assignment does.

    A layer's input is the output of the layer before, which the model may have kept as features; keys and
    values may lie in the KV cache.
    """

    take: Callable[[Any], Tensor]
    put: Callable[[Any, Tensor], Any]

    @classmethod
    def of(cls, spot: Spot) -> Copied:
        return cls(spot.name, spot.location, spot.location, spot.take, spot.put)

    def derive(self, served: Any) -> Tensor:
        return self.take(served).clone()

    def written(self, served: Any, value: Tensor, visit: Callable[[str], Any]) -> Any:
        return self.put(served, value)


def one_run(name: str, served: Any) -> Any:
    """``served``, where it belongs to the invoke that asks. Raises ValueError where it can't be told apart.

    nnsight cuts what has the batch as its first axis, and marks it. Pictures, tiles and patches don't: what
    the tower and the projector hold is everyone's.
    """
    if not name.startswith(("vision.", "projector.")):
        return served
    mediator = Mediator.current(name)
    batcher = mediator.interleaver.batcher
    alone = batcher is None or mediator.batch_group is None or not batcher.batching
    if alone or any(getattr(one, "_nnsight_batch", False) for one in _tensors(served)):
        return served
    raise ValueError(
        f"{name!r} holds the pictures of all invokes of this trace and can't be cut into theirs: trace the "
        f"prompts one at a time, or as one batch, vlm.prompts([...])"
    )


def _tensors(served: Any) -> Iterator[Tensor]:
    if isinstance(served, Tensor):
        yield served
    elif isinstance(served, (tuple, list, dict)):
        for one in served.values() if isinstance(served, dict) else served:
            yield from _tensors(one)


def own_rows() -> tuple[int, int] | None:
    """The rows of the batch, (first, count), that the invoke that asks sees; None for all of them."""
    mediator = Mediator.current("edits")
    batcher, group = mediator.interleaver.batcher, mediator.batch_group
    if group is None or batcher is None or not batcher.batching:
        return None
    return tuple(group)
