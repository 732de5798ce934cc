"""What crosses the wire when a trace runs elsewhere: our objects, with the source of what they need.

nnsight's serialization ships a trace to where the model is. This package is not installed there, so its
functions and classes go along by their source, as nnsight ships a user's own. Objects that hold more than a
run needs (a processor, pictures) say with `travels_as` what of them goes.

A function that travels is compiled anew, alone, at its destination: it knows the names that its body uses
and no others. So what travels uses torch, numpy, transformers and nnsight only, calls a base class by name
(``super()`` without arguments has no class there), carries no decorator but Python's own descriptors, has
no lambda among its defaults and no annotations in its inner functions.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from functools import cached_property
from typing import Any

import nnsight
from cloudpickle import cloudpickle
from nnsight.intervention.serialization import CustomCloudPickler

PACKAGE = __name__.partition(".")[0]


def travels_as(kind: type, reduce: Callable[[Any], tuple]) -> None:
    """Let nnsight's serialization, and nothing else, write objects of class ``kind`` as ``reduce`` says."""

    def reduce_by_value(value):
        _by_value()
        return reduce(value)

    CustomCloudPickler.dispatch_table = CustomCloudPickler.dispatch_table.new_child({kind: reduce_by_value})


def _cached_property(found: cached_property) -> tuple:
    """Without the lock that it holds in Python 3.11."""
    return cached_property, (found.func,), {"attrname": found.attrname}


travels_as(cached_property, _cached_property)


def _by_value() -> None:
    """From here on what this package defines is written by value.

    What is read back in this very process (``remote="local"``) makes classes of its own: cloudpickle would
    otherwise find ours by their number, and put the travelled methods over them.
    """
    nnsight.register(PACKAGE)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == PACKAGE:
            for kind in [one for one in vars(module).values() if isinstance(one, type)]:
                if kind.__module__.partition(".")[0] == PACKAGE:
                    cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS.setdefault(kind, uuid.uuid4().hex)
