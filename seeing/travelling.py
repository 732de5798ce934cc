"""How a `VLM` and its traces travel to where the model is.

Pictures are edited, and second runs put beside the first, before a trace leaves: both need the processor,
which stays where the prompt is made.
"""

from __future__ import annotations

from typing import Any

from nnsight.intervention.tracer import InterleavingTracer

from seeing.prompt import BadPrompt, Prompt
from seeing.traced import TracedModel


class Trace(InterleavingTracer):
    """A trace of a `VLM`. Where it runs elsewhere it carries its prompt with the pictures edited."""

    def __reduce__(self) -> tuple:
        state = self.__getstate__()
        state["args"] = tuple(self._prepared(value) for value in self.args)
        if self.envoy._prepares and not any(isinstance(value, Prompt) for value in self.args):
            raise BadPrompt(
                "the edits change pictures or run a second prompt beside the first, before the trace goes "
                "where the model is: hand the Prompt to trace or generate itself, not to an invoke"
            )
        return object.__new__, (InterleavingTracer,), state

    def _prepared(self, value: Any) -> Any:
        return self.envoy._prepared(value) if isinstance(value, Prompt) else value


def travelling(vlm: TracedModel) -> tuple:
    """A `VLM` as it travels: a `TracedModel`, with nothing that is needed before or behind a run only."""
    for envoy in vlm.modules():
        # As nnsight marks them, but all before the first of our objects that holds one.
        envoy._module._persistent_id = f"Module:{envoy.path}"
    state = vlm.__getstate__()
    stays = ("family", "edits", "_program", "processor", "tokenizer", "image_processor", "feature_extractor")
    return object.__new__, (TracedModel,), {name: value for name, value in state.items() if name not in stays}
