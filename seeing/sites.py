"""A name -> where nnsight reads and writes it.

nnsight serves values at *locations*: the input or output of a module, or of one operation inside a
module's forward (source tracing). A `Site` ties a name of the vocabulary to such a location, and
says how to get the named tensor out of what is served there and how to put an edited one back. Two
kinds exist:

* `Spot`: the tensor lies at the location as it is (``resid_post`` is a layer's output). Reading
  gives the live tensor, so item assignment reaches the model by itself.
* A derived site (`Rows`, `Result`): the value is computed on reading (a softmax that the fused
  kernel never wrote down). Reading inside a trace binds a write-back: if the block edits the value in
  place, the edit is carried into the run before it moves on; if it does not, the run is untouched,
  bit for bit. Nothing edits a temporary silently.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from einops import einsum, rearrange
from greenlet import getcurrent
from nnsight.intervention.interleaver import Event, Mediator, Pending
from torch import Tensor, nn

from seeing.attention import AttentionCall, EditedRows, Rows, softmax
from seeing.families import Family, Stack
from seeing.names import Name
from seeing.operations import first_sum_path, kernel_path


class Site(ABC):
    """One named activation. `read`, `bound` and `write` are called inside a trace, from its block."""

    name: str

    @abstractmethod
    def read(self) -> Tensor:
        """The value now, waiting for the run to reach it."""

    @abstractmethod
    def write(self, value: Tensor) -> None:
        """Replace the value in the run."""

    def bound(self) -> Tensor:
        """The value as a user's block gets it: in-place edits of it reach the run."""
        return self.read()

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

    def read(self) -> Tensor:
        return self.take(Mediator.value(self.location))

    def write(self, value: Tensor) -> None:
        served = Mediator.value(self.location)
        Mediator.swap(self.location, self.put(served, _fits(self.name, value, self.take(served))))


def module_output(name: str, path: str) -> Spot:
    """A module's output: a tensor, or the first element of a tuple."""

    def take(served):
        return served[0] if isinstance(served, tuple) else served

    def put(served, value):
        return (value, *served[1:]) if isinstance(served, tuple) else value

    return Spot(name, f"{path}.output", take, put)


def module_input(name: str, path: str) -> Spot:
    """A module's first input, positional or by keyword."""

    def take(served):
        args, kwargs = served
        return args[0] if args else next(iter(kwargs.values()))

    def put(served, value):
        args, kwargs = served
        if args:
            return (value, *args[1:]), kwargs
        return args, {**kwargs, next(iter(kwargs)): value}

    return Spot(name, f"{path}.input", take, put)


def kernel_input(name: str, path: str, place: int) -> Spot:
    """q, k or v as the kernel gets them, with the axes of the vocabulary: batch pos head d_head."""

    def take(served):
        return served[0][place].transpose(1, 2)

    def put(served, value):
        args, kwargs = served
        return (*args[:place], value.transpose(1, 2), *args[place + 1 :]), kwargs

    return Spot(name, f"{path}.input", take, put)


class WriteBack:
    """A computed value that a user's block holds, and the way back if the block edits it.

    nnsight asks a waiting write-back where it goes only when the block moves on. An untouched value
    (its version counter stands where it stood) goes back to where it was read, as what was served
    there, so that reading changes nothing; an edited one is written by the site.
    """

    def __init__(self, site: Derived, mediator: Mediator, served: Any, view: Tensor):
        self.site, self.served, self.view = site, served, view
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

    @abstractmethod
    def derive(self, served: Any) -> Tensor:
        """The value, from what is served at ``source``."""

    @abstractmethod
    def written(self, served: Any, value: Tensor, visit: Callable[[str], Any]) -> Any:
        """What to put at ``target`` so that the run goes on with ``value``."""

    def read(self) -> Tensor:
        return self.derive(Mediator.value(self.source))

    def _waiting(self, mediator: Mediator) -> WriteBack | None:
        """The write-back that a read of this site on this very visit left behind, if it still waits."""
        waiting = mediator.transform
        here = (self.name, self.source, mediator.wanted(self.source))
        return waiting if isinstance(waiting, WriteBack) and waiting.key == here else None

    def bound(self) -> Tensor:
        mediator = Mediator.current(self.name)
        if (waiting := self._waiting(mediator)) is not None:
            return waiting.view
        served = Mediator.value(self.source)
        view = self.derive(served)
        mediator.transform = WriteBack(self, mediator, served, view)
        return view

    def write(self, value: Tensor) -> None:
        mediator = Mediator.current(self.name)
        if (waiting := self._waiting(mediator)) is not None:
            mediator.transform = None
            served, current = waiting.served, waiting.view
        else:
            served = Mediator.value(self.source)
            current = self.derive(served)
        value = _fits(self.name, value, current)
        Mediator.swap(self.target, self.written(served, value, Mediator.value))


@dataclass(frozen=True)
class Kernel:
    """The call of the attention kernel in one layer, where rows are read and written.

    ``path`` is the operation's location. While edits wait to put rows over the kernel's output,
    ``edited`` holds them, so that whoever reads scores or pattern sees what the model will use.
    """

    layer: int
    stack: str
    path: str
    edited: list[EditedRows] = field(default_factory=list, compare=False, repr=False)

    @property
    def source(self) -> str:
        return f"{self.path}.input"

    @property
    def target(self) -> str:
        return f"{self.path}.output"

    def call(self) -> AttentionCall:
        """The kernel's arguments, waiting for the run to reach the call."""
        args, kwargs = Mediator.value(self.source)
        return AttentionCall.from_kernel(args, kwargs)


@dataclass(frozen=True)
class AttentionRows(Derived):
    """``attn.scores`` or ``attn.pattern``: rows of the kernel call, all of them or those asked for."""

    kernel: Kernel
    softmaxed: bool

    def derive(self, served: Any) -> Tensor:
        return self.rows(None, served)

    def rows(self, rows: Rows | Callable[[int], Rows | None] | None, served: Any = None) -> Tensor:
        """The rows asked for, as positions or as a function of how many there are; no others are computed."""
        call = self.kernel.call() if served is None else AttentionCall.from_kernel(*served)
        rows = rows(call.n_queries) if callable(rows) else rows
        values = call.pattern(rows) if self.softmaxed else call.scores(rows)
        for edited in self.kernel.edited:
            values = _own_rows(edited).over(values, rows, call.n_queries, self.softmaxed)
        return values

    def written(self, served: Any, value: Tensor, visit: Callable[[str], Any]) -> Any:
        call = AttentionCall.from_kernel(*served)
        pattern = value if self.softmaxed else softmax(value.float())
        z, *rest = visit(self.target)
        return (call.write(z, None, pattern), *rest)


def _own_rows(edited: EditedRows) -> EditedRows:
    """The part of a batch's edited rows that belongs to the invoke that asks."""
    return EditedRows(edited.rows, *_own([edited.chosen, edited.scores, edited.pattern]))


def _own(parts: Sequence[Tensor]) -> list[Tensor]:
    """The part of a batch's values that belongs to the invoke that asks."""
    mediator = Mediator.current("edits")
    batcher = mediator.interleaver.batcher
    return [part if batcher is None else batcher.narrow(part, mediator.batch_group) for part in parts]


@dataclass(frozen=True)
class Result(Derived):
    """``attn.result``: what each head adds to the residual stream, z · W_O head by head.

    The sum over heads, plus the output projection's bias, is ``attn_out``; a write puts that sum there.
    """

    out: nn.Module = field(repr=False)
    edited: list[Tensor] = field(default_factory=list, compare=False, repr=False)

    @contextmanager
    def shown(self, value: Tensor) -> Iterator[None]:
        self.edited[:] = [value]
        try:
            yield
        finally:
            self.edited.clear()

    def derive(self, served: Any) -> Tensor:
        if self.edited:
            return _own(self.edited)[0]
        z = served[0]
        weight = rearrange(self.out.weight, "d_model (head d) -> head d d_model", head=z.shape[2])
        return einsum(z, weight, "batch pos head d, head d d_model -> batch pos head d_model")

    def written(self, served: Any, value: Tensor, visit: Callable[[str], Any]) -> Any:
        current = visit(self.target)
        total = value.sum(dim=2)
        if self.out.bias is not None:
            total = total + self.out.bias
        return total.to(current.dtype)


class SiteMap(Mapping[str, Site]):
    """Every name that a model has, and its site."""

    def __init__(self, sites: dict[str, Site], kernels: dict[str, list[Kernel]]):
        self._sites = dict(sorted(sites.items(), key=lambda item: Name.parse(item[0])))
        #: Per stack, the kernel call of each layer.
        self.kernels = kernels

    def __getitem__(self, name: str) -> Site:
        return self._sites[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)


def build(family: Family, model: nn.Module, envoy_of: Callable[[nn.Module], Any]) -> SiteMap:
    """Tie the vocabulary to ``model``. ``envoy_of`` gives the nnsight envoy that wraps a module."""
    sites: dict[str, Site] = {}
    kernels = {}
    for stack in (family.vision(model), family.text(model)):
        kernels[stack.name] = [
            _layer_sites(sites, stack, layer, module, envoy_of) for layer, module in enumerate(stack.layers)
        ]
        embed = module_input if stack.embed_is_input else module_output
        _add(sites, embed(f"{stack.name}.embed", envoy_of(stack.embed).path))
        if stack.norm is not None:
            _add(sites, module_output(f"{stack.name}.norm", envoy_of(stack.norm).path))
    projector = envoy_of(family.projector(model)).path
    _add(sites, module_input("projector.in", projector))
    _add(sites, module_output("projector.out", projector))
    _add(sites, module_output("logits", envoy_of(family.head(model)).path))
    return SiteMap(sites, kernels)


def _add(sites: dict[str, Site], site: Site) -> None:
    sites[site.name] = site


def _layer_sites(sites, stack: Stack, layer: int, module: nn.Module, envoy_of) -> Kernel:
    """The sites of one layer."""

    def name(site: str) -> str:
        return f"{stack.name}.{layer}.{site}"

    block = envoy_of(module)
    attn, mlp = getattr(module, stack.attn), getattr(module, stack.mlp)
    out, down = getattr(attn, stack.out), getattr(mlp, stack.down)
    kernel = Kernel(layer, stack.name, kernel_path(envoy_of(attn)))
    out_path = envoy_of(out).path
    for place, part in enumerate(("attn.q", "attn.k", "attn.v"), start=1):
        _add(sites, kernel_input(name(part), kernel.path, place))
    for part, softmaxed in (("attn.scores", False), ("attn.pattern", True)):
        _add(sites, AttentionRows(name(part), kernel.source, kernel.target, kernel, softmaxed))
    _add(sites, module_output(name("attn.z"), kernel.path))
    _add(sites, Result(name("attn.result"), kernel.target, f"{out_path}.output", out))
    _add(sites, module_output(name("attn_out"), out_path))
    _add(sites, module_input(name("resid_pre"), block.path))
    _add(sites, module_output(name("resid_mid"), first_sum_path(block)))
    _add(sites, module_input(name("mlp.post"), envoy_of(down).path))
    _add(sites, module_output(name("mlp_out"), envoy_of(mlp).path))
    _add(sites, module_output(name("resid_post"), block.path))
    return kernel
