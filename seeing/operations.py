"""The operations inside a forward that names stand on, found by reading, never by a hard-coded number.

nnsight instruments the source of a module's forward and lists its operations. The attention kernel is
the call of the name ``attention_interface``; the residual stream between attention and MLP is the first
sum that a layer's forward assigns.
"""

from __future__ import annotations

import re
from typing import Any

from seeing.families import FamilyContractError


def kernel_path(attn: Any) -> str:
    """The location of the attention kernel's call: the name ``attention_interface``, called.

    ``attn`` is the envoy of an attention module. Raises FamilyContractError with the operations found.
    """
    source = attn.source
    lines = source.compiled.source.split("\n")
    for op in source:
        if op.name.startswith("attention_interface") and "attention_interface(" in lines[op.line - 1]:
            return op.path
    raise FamilyContractError(
        f"no call of `attention_interface(...)` in the forward of {type(attn._module).__name__}; "
        f"its operations: {', '.join(source.names)}"
    )


def first_sum_path(block: Any) -> str:
    """The location of the first assigned sum in a layer's forward: the residual stream after attention.

    Writing that assignment moves both what the MLP reads and what skips it, for what follows takes
    the assigned name. ``block`` is the envoy of a layer. Raises FamilyContractError as above.
    """
    source = block.source
    lines = source.compiled.source.split("\n")
    for op in source:
        target = op.name.rsplit("_", 1)[0]
        if re.match(rf"\s*{re.escape(target)}\s*=\s*\w+\s*\+\s*\w+\s*$", lines[op.line - 1]):
            return op.path
    raise FamilyContractError(
        f"no assigned sum (`hidden_states = residual + hidden_states`) in the forward of "
        f"{type(block._module).__name__}; its operations: {', '.join(source.names)}"
    )
