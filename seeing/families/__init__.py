"""The families: one file each, and the registry that finds the one for a model.

`find` reads facts off the model's configuration, never a checkpoint's name.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from seeing.families.aya_vision import AyaVision, Cohere2Vision
from seeing.families.family import Family, FamilyContractError, Stack, UnknownFamily
from seeing.families.gemma3 import Gemma3
from seeing.families.gemma4 import Gemma4
from seeing.families.generic import Generic
from seeing.families.glm4v import Glm4V
from seeing.families.idefics3 import Idefics3
from seeing.families.internvl import InternVL
from seeing.families.llava import Llava
from seeing.families.llava_next import LlavaNext, LlavaOnevision
from seeing.families.mistral3 import Mistral3, Pixtral
from seeing.families.mllama import Mllama
from seeing.families.paligemma import PaliGemma
from seeing.families.qwen_vl import QwenVL
from seeing.families.vipllava import VipLlava

FAMILIES: tuple[Family, ...] = (
    Llava(),
    LlavaNext(),
    LlavaOnevision(),
    QwenVL(),
    Gemma3(),
    Gemma4(),
    InternVL(),
    PaliGemma(),
    Idefics3(),
    Mistral3(),
    Pixtral(),
    Glm4V(),
    AyaVision(),
    Cohere2Vision(),
    Mllama(),
    VipLlava(),
)

#: What `load(…, family="generic")` tries.
GENERIC = Generic()


def find(model: nn.Module) -> Family:
    """The family that speaks for ``model``. Raises `UnknownFamily` with the supported list."""
    return find_for(getattr(model, "config", None), type(model).__name__)


def find_for(config: Any, owner: str | None = None) -> Family:
    """The family that reads models of this configuration, as ``owner`` calls it. Raises `UnknownFamily`."""
    for family in FAMILIES:
        if hasattr(config, "model_type") and family.speaks_for(config):
            return family
    kind = getattr(config, "model_type", None)
    tower = getattr(getattr(config, "vision_config", None), "model_type", None)
    raise UnknownFamily(
        f"no family reads model_type {kind!r} with a vision tower of type {tower!r} "
        f"({owner or type(config).__name__}); supported: "
        f"{', '.join(supported())}. Another family is one file: see docs/add-a-family.md; or try "
        f"load(…, family='generic'), which resolves the modules by their kind"
    )


def supported() -> list[str]:
    """Every model_type that some family reads."""
    return sorted({kind for family in FAMILIES for kind in family.model_types})


def named(name: str) -> Family:
    """The family of this name. Raises `UnknownFamily`."""
    for family in (*FAMILIES, GENERIC):
        if family.name == name:
            return family
    raise UnknownFamily(f"no family is called {name!r}; there are {', '.join(one.name for one in FAMILIES)}")


__all__ = [
    "FAMILIES",
    "GENERIC",
    "Family",
    "FamilyContractError",
    "Stack",
    "UnknownFamily",
    "find",
    "find_for",
    "named",
    "supported",
]
