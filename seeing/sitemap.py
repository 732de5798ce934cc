"""The vocabulary tied to one model: every name that it has, and its site; every name it lacks, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from seeing.branches import HeadMap, NotLinear, Result, branch_site
from seeing.families import Family, FamilyContractError, Stack
from seeing.families.family import dotted
from seeing.kernels import AttentionRows, Kernel, KernelZ, PackedKernel, gated_z
from seeing.names import Name
from seeing.operations import Block, Sum, is_gated, kernel_path, logits_path
from seeing.order import Order, Ordered, TokenOrdered
from seeing.sites import Copied, Site, Spot, module_input, module_output

#: The sites of an attention.
_ATTENTION = ("attn.q", "attn.k", "attn.v", "attn.scores", "attn.pattern", "attn.z", "attn.result")


class SiteMap(Mapping[str, Site]):
    """Every name that a model has, and its site."""

    def __init__(
        self,
        sites: dict[str, Site],
        kernels: dict[str, dict[int, Kernel]],
        absent: Mapping[str, str] | None = None,
        order: Order | None = None,
    ):
        self._sites = dict(sorted(sites.items(), key=lambda item: Name.parse(item[0])))
        #: Per stack, the kernel call of each layer that has one.
        self.kernels = kernels
        #: Names of the vocabulary that this model lacks, and why.
        self.absent = dict(absent or {})
        #: The order of a packed tower, set at the start of every run.
        self.order = order or Order()

    @property
    def sourced(self) -> set[str]:
        """The paths of the modules inside whose forward some site lies."""
        places = (place for site in self._sites.values() for place in site.locations)
        return {place.split(".source.")[0] for place in places if ".source." in place}

    def __getitem__(self, name: str) -> Site:
        return self._sites[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)


def build(family: Family, model: nn.Module, envoy_of: Callable[[nn.Module], Any]) -> SiteMap:
    """Tie the vocabulary to ``model``. ``envoy_of`` gives the nnsight envoy that wraps a module."""
    wiring = _Wiring(envoy_of)
    for stack in (family.vision(model), family.text(model)):
        wiring.stack(stack)
    projector = envoy_of(family.projector(model)).path
    wiring.tokens("projector.in", module_input, projector)
    wiring.tokens("projector.out", module_output, projector)
    path = logits_path(envoy_of(model)) or envoy_of(family.head(model)).path
    wiring.add(module_output("logits", path))
    return SiteMap(wiring.sites, wiring.kernels, wiring.absent, wiring.order)


class _Wiring:
    """The sites of one model, as they are found."""

    def __init__(self, envoy_of: Callable[[nn.Module], Any]):
        self.envoy_of = envoy_of
        self.sites: dict[str, Site] = {}
        self.kernels: dict[str, dict[int, Kernel]] = {}
        self.absent: dict[str, str] = {}
        self.order = Order()

    def add(self, site: Site) -> None:
        self.sites[site.name] = site

    def lacks(self, name: str, why: str) -> None:
        self.absent[name] = why

    def path(self, module: nn.Module) -> str:
        return self.envoy_of(module).path

    def stack(self, stack: Stack) -> None:
        self.kernels[stack.name] = {}
        for layer in range(len(stack)):
            self.layer(stack, layer)
        self.stream(stack, f"{stack.name}.embed", module_input, self.path(stack.layers[0]))
        if stack.norm is not None:
            self.stream(stack, f"{stack.name}.norm", module_output, self.path(stack.norm))

    def stream(self, stack: Stack, name: str, kind: Callable[[str, str], Spot], path: str) -> None:
        """A value of a stack that has the axes batch and pos, or for a packed tower only the latter."""
        spot = kind(name, path)
        if stack.packed:
            spot = Ordered(name, spot.location, spot.location, self.order, spot.take, spot.put)
        elif kind is module_input and not name.endswith("mlp.post"):
            spot = Copied.of(spot)
        self.add(spot)

    def tokens(self, name: str, kind: Callable[[str, str], Spot], path: str) -> None:
        """What enters or leaves the projector."""
        spot = kind(name, path)
        self.add(TokenOrdered(name, spot.location, spot.location, self.order, spot.take, spot.put))

    def layer(self, stack: Stack, layer: int) -> None:
        module, attn = stack.layers[layer], stack.attention(layer)
        mlp = getattr(module, stack.mlp)

        def name(site: str) -> str:
            return f"{stack.name}.{layer}.{site}"

        block = self.envoy_of(module)
        sums = Block(block, self.envoy_of, _parts(stack, module)).sums
        self.stream(stack, name("resid_pre"), module_input, block.path)
        self.stream(stack, name("resid_post"), module_output, block.path)
        self.branches(stack, name, sums, module)
        if attn is None:
            mixer = sums[0].branches[0].origin
            for site in _ATTENTION:
                self.lacks(
                    name(site), f"layer {layer} mixes tokens by {mixer!r}, which has no attention rows"
                )
        else:
            self.attention(stack, layer, name, attn, sums)
        down = dotted(mlp, stack.down) if stack.down else None
        if down is None:
            self.lacks(
                name("mlp.post"), f"the MLP of layer {layer} ({type(mlp).__name__}) has no single last map"
            )
        else:
            down = getattr(down, "linear", down)
            self.stream(stack, name("mlp.post"), module_input, self.path(down))
        for site, why in stack.lacks.items():
            self.sites.pop(name(site), None)
            self.lacks(name(site), why)

    def branches(self, stack: Stack, name, sums: list[Sum], module: nn.Module) -> None:
        """The sums of a layer: attention, MLP, and what else is added to the stream."""
        if len(sums[0].branches) > 1:
            self.lacks(
                name("resid_mid"), "attention and MLP read the same stream side by side (parallel block)"
            )
            parts = [(branch, sums[0].path) for branch in sums[0].branches]
        else:
            self.stream(stack, name("resid_mid"), module_output, sums[0].path)
            parts = [(one.branches[0], one.path) for one in sums]
        for site, (branch, path) in zip(("attn_out", "mlp_out", "ple_out"), parts):
            self.branch(stack, name(site), branch, f"{path}.output", module)
        if len(parts) < 2:
            raise FamilyContractError(
                f"the forward of {type(module).__name__} adds {len(parts)} branch to the residual stream; "
                f"expected an attention and an MLP"
            )

    def branch(self, stack: Stack, name: str, branch, sum_path: str, module: nn.Module) -> None:
        site = branch_site(name, branch, sum_path, module)
        if stack.packed and not isinstance(site, Spot):
            self.lacks(name, "a gate inside the sum of a packed tower")
        elif stack.packed:
            self.add(Ordered(name, site.location, site.location, self.order, site.take, site.put))
        else:
            self.add(site)

    def attention(self, stack: Stack, layer: int, name, attn: nn.Module, sums: list[Sum]) -> None:
        envoy, out = self.envoy_of(attn), dotted(attn, stack.out)
        out_path, path = self.path(out), kernel_path(envoy, stack.packed)
        if stack.packed:
            kernel = PackedKernel(
                layer, stack.name, path, attn, order=self.order, out_path=out_path, n_heads=stack.n_heads
            )
        else:
            kernel = Kernel(
                layer, stack.name, path, attn, cross=attn is getattr(stack.layers[layer], "cross_attn", None)
            )
        self.kernels[stack.name][layer] = kernel
        for place, part in enumerate(("attn.q", "attn.k", "attn.v"), start=1):
            self.add(kernel.part(name(part), place))
        for part, softmaxed in (("attn.scores", False), ("attn.pattern", True)):
            self.add(AttentionRows(name(part), kernel.source, kernel.target, kernel, softmaxed))
        if stack.packed:
            z, source, taken = (
                KernelZ(name("attn.z"), kernel.target, kernel.target, kernel),
                kernel.target,
                kernel.take,
            )
        else:
            gated = is_gated(envoy)
            z = (
                gated_z(name("attn.z"), out_path, stack.n_heads)
                if gated
                else module_output(name("attn.z"), kernel.path)
            )
            source, taken = z.location, z.take
        self.add(z)
        self.result(stack, name, out, source, taken, sums, stack.layers[layer])

    def result(self, stack: Stack, name, out, source, taken, sums, module) -> None:
        branch = sums[0].branches[0]
        try:
            heads = HeadMap(out, module, branch.links)
        except NotLinear as error:
            self.lacks(name("attn.result"), str(error))
            return
        site = branch_site(name("attn_out"), branch, f"{sums[0].path}.output", module)
        target = site.location if isinstance(site, Spot) else site.target
        order = self.order if stack.packed else None
        self.add(Result(name("attn.result"), source, target, taken, heads, site, order=order))


def _parts(stack: Stack, module: nn.Module) -> list[str]:
    """The attributes of a layer that start a branch: attention of any kind, and the MLP."""
    known = (stack.attn,) if isinstance(stack.attn, str) else stack.attn
    return [*known, "linear_attn", "cross_attn", stack.mlp]
