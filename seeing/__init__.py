"""seeing: did the model see the evidence, and did its answer use what it saw?

A mechanistic-interpretability toolkit for vision-language models, on nnsight's tracing.

    import seeing
    from seeing import edits as E, probes

    vlm = seeing.load("plates-tiny")
    prompt = vlm.prompt("photo.png", "what digit is on the red square ?")
    cache = vlm.cache(prompt, "text.*.attn.pattern", queries="last")
    edited = vlm.with_edits(E.ScaleAttention(keys="image", gain=2.0, layers="deep"))
    edited.answer(prompt)
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("seeing")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+source"

#: Where each public name lives; opened on first use, so that `import seeing` stays light.
_PUBLIC = {
    "load": "seeing.loading",
    "VLM": "seeing.vlm",
    "Answer": "seeing.vlm",
    "Prompt": "seeing.prompt",
    "EvidenceSample": "seeing.data.samples",
    "open_data": "seeing.data.opening",
}

#: Rooms that are entered by their name: ``seeing.study.run(…)``.
_ROOMS = ("edits", "figures", "methods", "probes", "study")

if TYPE_CHECKING:
    from seeing.data.opening import open_data
    from seeing.data.samples import EvidenceSample
    from seeing.loading import load
    from seeing.prompt import Prompt
    from seeing.vlm import VLM, Answer


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return import_module(f"seeing.{name}")
    raise AttributeError(f"module 'seeing' has no attribute {name!r}")


__all__ = ["VLM", "Answer", "EvidenceSample", "Prompt", "__version__", "load", "open_data"]
