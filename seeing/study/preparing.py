"""What has to be known of a model before a study asks it anything: what it is, and where it looks."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from seeing.probes.profiles.profile import profile
from seeing.study.job import Job
from seeing.study.settings import StudyError
from seeing.vlm import VLM

#: Values of a weight that its digest is taken of, from its start and from its end.
ENDS = 16


class Prepared(NamedTuple):
    """What a model turned out to be, JSON-able, and its profile as text, where one was made."""

    facts: dict[str, Any]
    profile: str | None


def prepare(job: Job, vlm: VLM) -> Prepared:
    """Look at a model, and profile it where the job has samples for that and no profile yet.

    Raises `StudyError` where no calibration sample can be counted.
    """
    return Prepared(facts_of(vlm), made_profile(job, vlm))


def made_profile(job: Job, vlm: VLM) -> str | None:
    """The profile of a model on the job's calibration samples."""
    if job.profile is not None or job.calibration is None or not job.calibration.has_boxes:
        return job.profile
    samples = job.calibration.readable()
    try:
        found = profile(
            vlm, samples, data=job.calibration.name, template=job.prompt, batch_size=job.rows, progress=False
        )
    except ValueError as error:
        raise StudyError(f"no profile of {job.name} on {job.calibration.name}: {error}") from error
    return found.to_json()


def facts_of(vlm: VLM) -> dict[str, Any]:
    """What a model is, as far as its rows depend on it."""
    config = vlm._module.config
    return {
        "family": vlm.cfg.family,
        "model_type": config.model_type,
        "n_layers": vlm.cfg.n_layers,
        "n_heads": vlm.cfg.n_heads,
        "dtype": str(vlm._module.dtype).removeprefix("torch."),
        "n_parameters": sum(one.numel() for one in vlm._module.parameters()),
        "revision": getattr(config, "_commit_hash", None),
        "weights": digest(vlm._module),
    }


def digest(model: nn.Module) -> str:
    """Hex digits that change with the weights: of each the name, the shape, and its first and last values.

    A weight that is kept off the device, on the disk say, counts with its name and shape.
    """
    found = hashlib.sha256()
    for name, weight in model.state_dict(keep_vars=True).items():
        if isinstance(weight, Tensor):
            found.update(f"{name} {tuple(weight.shape)}".encode())
            if not weight.is_meta and weight.numel():
                found.update(_ends(weight))
    return found.hexdigest()[:16]


@torch.no_grad()
def _ends(weight: Tensor) -> bytes:
    flat = getattr(weight, "to_local", lambda: weight)().detach().reshape(-1)
    return torch.cat([flat[:ENDS], flat[-ENDS:]]).cpu().contiguous().view(torch.uint8).numpy().tobytes()
