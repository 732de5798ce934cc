"""What a layer does with its parts, read from its forward, never from a hard-coded number.

nnsight instruments the source of a module's forward and lists its operations. Here that source is walked
statement by statement, following the residual stream: where the stream is added to, what is added (the
branch: an attention or an MLP, then perhaps a norm or a gate on its output), and which operation holds
the sum. So `attn_out` is what the stream gets in every family, whether the norm sits before the attention
or behind it, and a block that adds both branches at once is seen to have no `resid_mid`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from seeing.families import FamilyContractError
from seeing.parameters import AtHand


@dataclass(frozen=True)
class Link:
    """One step between a part's output and the stream: a module applied, or a factor multiplied in.

    ``factor`` is an expression over ``self``; it is None where the step is a module, and ``known`` is
    False where the step depends on more than the layer's own weights.
    """

    module: nn.Module | None = None
    factor: str | None = None
    known: bool = True

    def value(self, layer: nn.Module) -> torch.Tensor:
        """The factor now."""
        with AtHand(layer):
            return eval(self.factor, {"self": layer, "torch": torch})


@dataclass(frozen=True)
class Branch:
    """A value on its way to the residual stream.

    ``origin`` is the part that made it (an attribute of the layer), ``path`` the location where it lies,
    ``links`` what was done to the part's output, and ``inline`` those of them that come behind ``path``,
    inside the sum itself.
    """

    origin: str
    path: str
    links: tuple[Link, ...] = ()
    inline: tuple[Link, ...] = ()

    def then(self, link: Link) -> Branch:
        return replace(self, links=(*self.links, link), inline=(*self.inline, link))

    def at(self, path: str) -> Branch:
        return replace(self, path=path, inline=())


@dataclass(frozen=True)
class Sum:
    """An assigned sum of the residual stream and one or more branches; ``path`` holds the result."""

    path: str
    branches: tuple[Branch, ...]


_STREAM = object()


class Block:
    """The residual stream of one layer. ``parts`` are the attributes that start a branch anew."""

    def __init__(self, envoy: Any, envoy_of: Callable[[nn.Module], Any], parts: Sequence[str]):
        self.layer, self.source, self.envoy_of, self.parts = envoy._module, envoy.source, envoy_of, set(parts)
        self.sums: list[Sum] = []
        tree = ast.parse(self.source.compiled.source).body[0]
        first = next(arg.arg for arg in tree.args.args if arg.arg != "self")
        self.values: dict[str, Any] = {first: _STREAM}
        for statement in self._executed(tree.body):
            self._assign(statement)
        if not self.sums:
            raise FamilyContractError(
                f"no assigned sum (`hidden_states = residual + hidden_states`) in the forward of "
                f"{type(self.layer).__name__}; its operations: {', '.join(self.source.names)}"
            )

    def _executed(self, body: list[ast.stmt]) -> Iterator[ast.stmt]:
        """The assignments of a forward, in order; a condition on the layer itself is decided now."""
        for statement in body:
            if isinstance(statement, ast.If):
                yield from self._executed(statement.body if self._holds(statement.test) else statement.orelse)
            elif isinstance(statement, ast.Assign):
                yield statement

    def _holds(self, test: ast.expr) -> bool:
        """Whether a condition holds. One on an input (a mask that is not None) is taken to hold."""
        return bool(eval(ast.unparse(test), {"self": self.layer})) if _own(test) else True

    def _assign(self, statement: ast.Assign) -> None:
        target, value = statement.targets[0], statement.value
        if isinstance(target, ast.Tuple) and isinstance(target.elts[0], ast.Name):
            self.values[target.elts[0].id] = self._value(value)
        if not isinstance(target, ast.Name):
            return
        before = len(self.sums)
        found = self._value(value, target.id, statement.lineno)
        if isinstance(found, Branch) and len(self.sums) == before and not isinstance(value, ast.Name):
            found = found.at(self._operation(target.id, statement.lineno))
        self.values[target.id] = found

    def _operation(self, target: str, line: int) -> str:
        """The location of the operation that assigns ``target`` on ``line``."""
        for op in self.source:
            if op.line == line and op.name.rsplit("_", 1)[0] == target:
                return op.path
        raise FamilyContractError(
            f"no operation assigns {target!r} on line {line} of the forward of {type(self.layer).__name__}; "
            f"its operations: {', '.join(self.source.names)}"
        )

    def _value(self, value: ast.expr, target: str | None = None, line: int = 0) -> Any:
        """What an expression is: the stream, a branch, or None for anything else."""
        if isinstance(value, ast.Name):
            return self.values.get(value.id)
        if isinstance(value, ast.Call):
            return self._called(value)
        if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Mult):
            return self._scaled(value)
        if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
            parts = [self._value(one) for one in _terms(value)]
            if any(part is _STREAM for part in parts):
                branches = tuple(part for part in parts if isinstance(part, Branch))
                if target is not None and len(branches) == len(parts) - 1:
                    self.sums.append(Sum(self._operation(target, line), branches))
                return _STREAM
            return next((part.then(Link(known=False)) for part in parts if isinstance(part, Branch)), None)
        return None

    def _called(self, call: ast.Call) -> Any:
        """``self.part(x)``: a new branch, or one more step of the branch that ``x`` is."""
        part = call.func.attr if isinstance(call.func, ast.Attribute) and _is_self(call.func.value) else None
        module = getattr(self.layer, part, None) if part else None
        if not isinstance(module, nn.Module):
            return None
        given = [*call.args, *(keyword.value for keyword in call.keywords)]
        fed = self._value(given[0]) if given else None
        path = f"{self.envoy_of(module).path}"
        if isinstance(fed, Branch) and part not in self.parts and fed.origin in self.parts:
            return replace(fed.then(Link(module=module)), path=path, inline=())
        return Branch(part, path)

    def _scaled(self, product: ast.BinOp) -> Branch | None:
        for factor, other in ((product.left, product.right), (product.right, product.left)):
            if isinstance(branch := self._value(other), Branch):
                return branch.then(Link(factor=ast.unparse(factor), known=_own(factor)))
        return None


def _terms(value: ast.expr) -> list[ast.expr]:
    """``a + b + c`` -> its terms."""
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        return [*_terms(value.left), *_terms(value.right)]
    return [value]


def _is_self(value: ast.expr) -> bool:
    return isinstance(value, ast.Name) and value.id == "self"


def _own(value: ast.expr) -> bool:
    """Whether an expression is about the layer itself alone."""
    return {node.id for node in ast.walk(value) if isinstance(node, ast.Name)} <= {"self"}


def kernel_path(attn: Any, packed: bool) -> str:
    """The location of the attention kernel's call: the name ``attention_interface``, called.

    ``attn`` is the envoy of an attention module. A packed tower calls the kernel once a block; there it is
    the operation that deals q, k and v out to the calls, ``zip``, which sees all blocks at once. Raises
    FamilyContractError with the operations found.
    """
    source = attn.source
    lines = source.compiled.source.split("\n")
    called, text = ("zip", "zip(*splits)") if packed else ("attention_interface", "attention_interface(")
    for op in source:
        if op.name.startswith(called) and text in lines[op.line - 1]:
            return op.path
    raise FamilyContractError(
        f"no call `{text}…` in the forward of {type(attn._module).__name__}; "
        f"its operations: {', '.join(source.names)}"
    )


def is_gated(attn: Any) -> bool:
    """Whether the kernel's output is multiplied by something before the output projection."""
    tree = ast.parse(attn.source.compiled.source)
    behind = False
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign):
            continue
        text = ast.unparse(node.value)
        behind = behind or text.startswith("attention_interface(")
        if behind and isinstance(node.value, ast.BinOp) and isinstance(node.value.op, ast.Mult):
            return "attn_output" in text
    return False


def logits_path(root: Any) -> str | None:
    """The location of the logits where the whole model's forward works on them after the unembedding.

    That is a soft cap on the final logits, where the configuration sets one. None where the unembedding's
    output is the logits.
    """
    config = root._module.config.get_text_config()
    if getattr(config, "final_logit_softcapping", None) is None:
        return None
    lines = root.source.compiled.source.split("\n")
    capped = [
        op.path
        for op in root.source
        if op.name.rsplit("_", 1)[0] == "logits" and "final_logit_softcapping" in lines[op.line - 1]
    ]
    return capped[-1] if capped else None
