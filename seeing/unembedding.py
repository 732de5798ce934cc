"""From the residual stream to the logits, as a model itself goes: final norm, unembedding, what follows it.

Between a stream and its logits families differ: a norm of their own, a bias, a scale, a soft cap (Gemma).
None of it is listed here. The norm and the unembedding are modules that the family names; what the forward of
the whole model does with the unembedding's output is taken from its source, statement by statement, and run
on other values: each line that the logits depend on, nothing else. So what early layers would answer is told
by the model's own last step.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from seeing.families import Family, FamilyContractError
from seeing.parameters import AtHand

#: What the unembedding gave, in the statements behind it.
_GIVEN = "unembedded"


@dataclass(frozen=True, eq=False)
class Unembedding:
    """The last step of a model, on any values of the stream.

    Attributes:
        norm: the final norm, or None where the family knows of none.
        head: the unembedding.
        behind: what the model makes of the head's output: as it is, or scaled, capped.
    """

    norm: nn.Module | None
    head: nn.Module
    behind: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, family: Family, model: nn.Module) -> Unembedding:
        """Raises `FamilyContractError` where what stands behind the head can't be told from the forward."""
        head = family.head(model)
        return cls(family.text(model).norm, head, _behind(model, head))

    def __call__(self, stream: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        """The logits of values of the stream, in the model's dtype, where its head is."""
        normed = stream if self.norm is None else plain(self.norm, stream)
        return self.of_normed(normed)

    def of_normed(self, normed: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        """The logits of values that left the final norm."""
        return self.behind(plain(self.head, normed))


def plain(module: nn.Module, value: Tensor) -> Tensor:
    """A module's own forward, beside the run: called through it, nnsight would count a visit."""
    with AtHand(module):
        return type(module).forward(module, value.to(next(module.parameters()).device))


def _behind(model: nn.Module, head: nn.Module) -> Callable[[Tensor], Tensor]:
    """What the forward of the whole model makes of the head's output, as a function: the logits."""
    forward = inspect.unwrap(type(model).forward)
    body = ast.parse(textwrap.dedent(_source_of(model, forward))).body[0].body
    call, place = _call_of_head(model, head, body)
    first = body[place]
    first.value = _Replaced(call).visit(first.value)
    target = first.targets[0].id
    kept = [first, *_needed_for(target, body[place + 1 :])]
    defaults = _defaults(forward)
    asked, set_here = _names(kept, ast.Load), _names(kept, ast.Store)
    known = {"self", _GIVEN, *set_here, *defaults, *forward.__globals__, *vars(builtins)}
    if unknown := asked - known:
        raise FamilyContractError(
            f"the forward of {type(model).__name__} makes its logits from {', '.join(sorted(unknown))} too, "
            f"not from the unembedding's output alone; what early layers would answer can't be told from it"
        )
    given = {name: value for name, value in defaults.items() if name in asked}
    lines = [*map(ast.unparse, kept), f"return {target}"]
    source = f"def behind({', '.join(['self', *given, _GIVEN])}):\n" + textwrap.indent(
        "\n".join(lines), "    "
    )
    made: dict = {}
    exec(source, forward.__globals__, made)
    return lambda value: made["behind"](self=model, **given, **{_GIVEN: value})


def _source_of(model: nn.Module, forward: Callable) -> str:
    try:
        return inspect.getsource(forward)
    except OSError as error:
        raise FamilyContractError(
            f"the source of {type(model).__name__}.forward is not there to read ({error}); what stands "
            f"between its unembedding and its logits can't be told"
        ) from error


def _needed_for(target: str, statements: list[ast.stmt]) -> list[ast.stmt]:
    """Those of the statements that ``target`` depends on at their end."""
    kept, needed = [], {target}
    for statement in reversed(statements):
        if not isinstance(statement, ast.Return) and _names([statement], ast.Store) & needed:
            kept.insert(0, statement)
            needed |= _names([statement], ast.Load)
    return kept


def _call_of_head(model: nn.Module, head: nn.Module, body: list[ast.stmt]) -> tuple[ast.Call, int]:
    """Where the forward calls the head, in an assignment to one name."""
    for place, statement in enumerate(body):
        if not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)):
            continue
        for node in ast.walk(statement.value):
            if isinstance(node, ast.Call) and _module(model, node.func) is head:
                return node, place
    raise FamilyContractError(
        f"the forward of {type(model).__name__} gives no name to what its unembedding "
        f"({type(head).__name__}) makes, as in `logits = self.lm_head(hidden_states)`; what follows it can't "
        f"be told"
    )


def _module(model: nn.Module, value: ast.expr) -> object:
    """The object that ``self.a.b`` is, or None."""
    if isinstance(value, ast.Name):
        return model if value.id == "self" else None
    if isinstance(value, ast.Attribute):
        return getattr(_module(model, value.value), value.attr, None)
    return None


class _Replaced(ast.NodeTransformer):
    """One call, replaced by what the head gave."""

    def __init__(self, call: ast.Call):
        self.call = call

    def visit_Call(self, node: ast.Call) -> ast.expr:
        return ast.Name(_GIVEN, ast.Load()) if node is self.call else self.generic_visit(node)


def _names(statements: list[ast.stmt], context: type[ast.expr_context]) -> set[str]:
    return {
        node.id
        for statement in statements
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, context)
    }


def _defaults(forward: Callable) -> dict[str, object]:
    """The parameters that a run leaves out, and what they are then."""
    parameters = inspect.signature(forward).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}
