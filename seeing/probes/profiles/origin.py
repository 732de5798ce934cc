"""What a kept result was made of: the model, the samples, the versions of the code."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import seeing
from seeing.prompt import Template
from seeing.vlm import VLM

#: Packages whose version decides what a model computes here.
PACKAGES = ("torch", "transformers", "nnsight")


@dataclass(frozen=True)
class Origin:
    """What a kept result was made of.

    Attributes:
        model: the hub id, or the name of the folder that the model lay in; "" where it had none.
        family: how it was read.
        commit: the commit of the hub's repository, where the checkpoint says it.
        data: the name that the data set was given, if any.
        ids: SHA-256 of the ids of the samples counted, in order, each ended by a newline.
        template: how the questions were asked: a name or a text; "function" for a function.
        versions: of seeing and of what it runs on.
    """

    model: str
    family: str
    commit: str | None
    data: str | None
    ids: str
    template: str | None
    versions: dict[str, str]

    @classmethod
    def of(
        cls, vlm: VLM, ids: Iterable[str], data: str | None = None, template: Template | None = None
    ) -> Origin:
        config = vlm._module.config
        versions = {"seeing": seeing.__version__} | {name: version(name) for name in PACKAGES}
        return cls(
            model=model_name(vlm),
            family=vlm.cfg.family,
            commit=getattr(config, "_commit_hash", None),
            data=data,
            ids=hash_of(ids),
            template="function" if callable(template) else template,
            versions=versions,
        )

    def as_dict(self) -> dict:
        return asdict(self)


def model_name(vlm: VLM) -> str:
    """The hub id that a model was loaded from; of a folder its name alone, so that no path is told."""
    name = str(vlm._module.config.name_or_path or "")
    is_id = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    return name if is_id and not Path(name).exists() else Path(name).name


def hash_of(ids: Iterable[str]) -> str:
    """SHA-256 of ids in order, each ended by a newline."""
    return hashlib.sha256("".join(f"{one}\n" for one in ids).encode()).hexdigest()


__all__ = ["Origin", "hash_of", "model_name"]
