"""A model split between processes: each rank holds some heads of every layer, and names mean all of them.

Under tensor parallelism (``load(…, tp_plan="auto")``, started by torchrun) every rank runs the same program
on the same prompt, and a layer's q, k, v and z exist in pieces: rank 0 has the first heads, the last rank the
last ones. nnsight makes what enters and leaves a module whole before it is read, and cuts what was written.
What lies inside a forward it hands over as it is, for it can't know which axis was cut. The call of the
attention kernel lies there, and of that we do know: heads are the second axis going in, the third coming out.
`Shards` adds this rule, so that head 3 is head 3 on every rank and nothing above this floor knows of ranks.

Gathering takes all ranks, so all of them must read and write the same. They do as long as what a program does
depends on values only, which are the same everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from nnsight.modeling.tp import TPFragments
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from transformers import PreTrainedConfig
from transformers.distributed import DistributedConfig
from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES, _get_parameter_plan

from seeing.kernels import Kernel
from seeing.parameters import remember_shares

#: What a configuration calls the numbers of its heads; every process holds as many.
_HEADS = ("num_attention_heads", "num_key_value_heads", "num_global_key_value_heads")


class CannotSplit(ValueError):
    """A model that the processes of this run can't share."""


# ---- at load -----------------------------------------------------------------------------------------------


def split_as_said(config: PreTrainedConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """``from_pretrained``'s settings with ``tp_plan`` and ``tp_size`` as this transformers takes them.

    Raises `CannotSplit` where no processes were started to share the model, where they would have to cut a
    head in two, and where they would share it along other lines.
    """
    settings = dict(settings)
    plan, size = settings.pop("tp_plan", None), settings.pop("tp_size", None)
    if plan is not None or size is not None:
        if not torch.distributed.is_initialized() and "WORLD_SIZE" not in os.environ:
            raise CannotSplit(
                "a tensor-parallel plan shares a model between processes, and this one is alone: start one "
                "for each device, torchrun --nproc-per-node 2 script.py, or say device_map='auto'"
            )
        settings["distributed_config"] = DistributedConfig(tp_plan=plan, tp_size=size)
    said = settings.get("distributed_config")
    said = DistributedConfig(**said) if isinstance(said, Mapping) else said
    if said is not None:
        _check(config, said)
    return settings


def _check(config: PreTrainedConfig, said: DistributedConfig) -> None:
    others = [name for name in ("dp_size", "pp_size", "ep_size") if getattr(said, name) > 1]
    if others:
        raise CannotSplit(
            f"heads are read whole under tensor parallelism alone, not with {', '.join(others)}"
        )
    text, tower = config.get_text_config(), getattr(config, "vision_config", None)
    for part in (text, tower) if getattr(tower, "base_model_tp_plan", None) else (text,):
        for name in _HEADS:
            heads = getattr(part, name, None)
            if heads and heads % said.tp_size:
                raise CannotSplit(
                    f"{said.tp_size} processes can't share {heads} heads ({name} of {part.model_type}) and "
                    f"leave each whole: start a number of them that divides it"
                )


# ---- in a run ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """How a tensor is cut between the ranks of ``mesh``: along ``axis``, of ``width`` where shares differ."""

    mesh: DeviceMesh
    axis: int
    width: int | None = None

    def joined(self, share: Tensor) -> Tensor:
        """The whole, on every rank; gradients flow back to the shares."""
        if not isinstance(share, DTensor):
            shape = list(share.shape)
            shape[self.axis] = self.width or shape[self.axis] * self.mesh.size()
            whole = dict(shape=torch.Size(shape), stride=torch.empty(shape, device="meta").stride())
            share = DTensor.from_local(share, self.mesh, [Shard(self.axis)], run_check=False, **whole)
        whole = share.full_tensor()
        # Autograd lets no one edit in place what a collective gave.
        return whole.clone() if whole.requires_grad else whole

    def share(self, whole: Tensor, as_dtensor: bool) -> Tensor:
        """This rank's share of a whole, the way back from `joined`."""
        share = DTensor.from_local(whole, self.mesh, [Replicate()], run_check=False)
        share = share.redistribute(placements=[Shard(self.axis)])
        return share if as_dtensor else share.to_local()


class Shards(TPFragments):
    """Which values of a model are shares of a whole: what nnsight knows of modules, and what we of kernels.

    A share of a module's may be smaller than the others' (a vocabulary of odd size), which nnsight refuses.
    """

    def __init__(self):
        super().__init__()
        self.cuts: dict[str, Cut] = {}

    def instrument(self, envoy: Any) -> None:
        super().instrument(envoy)
        if self.enabled:
            remember_shares(envoy._module)
        for side, width in (("input", "in_features"), ("output", "out_features")):
            mesh, placement = self.tp_rules.get(place := f"{envoy.path}.{side}", (None, None))
            if isinstance(placement, Shard):
                self.cuts[place] = Cut(mesh, -1, getattr(envoy._module, width, None))

    def take_up(self, kernels: Iterable[Kernel]) -> None:
        """From here on what these kernels take and give is made whole, where their heads are split."""
        for kernel in kernels:
            split = [weight for weight in kernel.attn.parameters() if isinstance(weight, DTensor)]
            if split:
                taken, given = (Cut(split[0].device_mesh, axis) for axis in (1, 2))
                self.cuts |= {f"{kernel.path}.input": taken}
                self.cuts |= {f"{kernel.path}.{side}": given for side in ("skip", "output")}

    def fragmented(self, location: str) -> bool:
        return location in self.cuts or super().fragmented(location)

    def whole(self, location: str, value: Any) -> tuple[Any, Callable[[Any], Any] | None]:
        if (cut := self.cuts.get(location)) is None:
            return super().whole(location, value)
        shares: list[Tensor] = []
        whole = _through(value, lambda share: shares.append(share) or cut.joined(share))
        as_dtensor = any(isinstance(share, DTensor) for share in shares)
        return whole, lambda edited: _through(edited, lambda one: cut.share(one, as_dtensor))

    def _style_of(self, envoy: Any) -> tuple[str, Any, Any] | None:
        # nnsight 0.8.1 looks for the matcher of plans where transformers no longer has it.
        if self._plan is None or envoy.path == self._plan[0]:
            return None
        root, plan, mesh = self._plan
        style = _get_parameter_plan(envoy.path[len(root) + 1 :], plan, is_weight=False)
        return None if style in (None, "replicate") else (style, mesh, ALL_PARALLEL_STYLES[style])


def _through(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with ``fn`` of what is cut in it: q, k and v of a kernel's call, z of what it gave, or what a
    module takes or gives.
    """
    if isinstance(value, Tensor):
        return fn(value)
    if not isinstance(value, tuple):
        return value  # nobody puts anything in the place of a kernel's call
    if isinstance(value[0], Tensor):
        return fn(value[0]), *value[1:]
    args, kwargs = value
    place = slice(1, 4) if isinstance(args[0], nn.Module) else slice(0, 1)
    return (*args[: place.start], *map(fn, args[place]), *args[place.stop :]), kwargs
