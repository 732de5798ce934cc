"""The vision tower's own look."""

from __future__ import annotations

from seeing.probes.locality import Look
from seeing.prompt import Prompt
from seeing.vlm import VLM


def tower_looks(vlm: VLM, prompt: Prompt, rule: str = "any") -> list[Look]:
    raise NotImplementedError
