"""One model, made ready, that answers a study's units.

For each batch of samples the plain model answers first, and in the same pass shows where its grounding layers
looked; the other methods take turns on the same prompt, and share the features of its pictures. What fails is
tried in halves until the sample that fails stands alone, and is recorded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from seeing.data.failures import BadSample
from seeing.features import shared_features
from seeing.methods import Base
from seeing.methods.named import Ask
from seeing.probes.attention.locality import text_looks
from seeing.probes.profiles.profile import Profile
from seeing.probes.profiles.published import Published, published
from seeing.probes.reading import Reading, reading_of
from seeing.prompt import Prompt
from seeing.study.batches import Failure, Group, by_halves, failure, groups, prompts, reason_of
from seeing.study.job import Job
from seeing.study.marks import marks
from seeing.study.units import Entry, Task
from seeing.vlm import VLM, Answer

#: The longest answer, where neither the study nor the model says anything shorter.
MAX_NEW_TOKENS = 50


class NotFinite(ArithmeticError):
    """An answer whose probability is no number."""


class Given(NamedTuple):
    """One sample's answer under one method."""

    answer: Answer
    seconds: float


class Worker:
    """A model that is asked what a job says. ``worker.answer(task)`` gives the entries of a unit."""

    def __init__(self, job: Job, vlm: VLM | None = None):
        """Open the model, unless it is open, and make the methods for it.

        Raises what `seeing.load` raises, and `BadMethod` for a method that does not fit the model.
        """
        self.job = job
        self.vlm = job.open() if vlm is None else vlm
        self.profile = profile_of(job, self.vlm)
        wanted = job.calibration is not None and any(named.needs_samples for named in job.methods)
        calibration = list(job.calibration.readable()) if wanted else []
        self.asks: list[Ask] = [
            named.build(self.vlm, self.profile, job.seed, calibration) for named in job.methods
        ]
        self.layers = () if self.profile is None else tuple(self.profile.layers)
        #: How many rows fit into memory together, once that is known.
        self.fits: int | None = None

    def answer(self, task: Task) -> Iterator[Entry]:
        """A unit's entries, without those that are done."""
        unit, data = task.unit, self.job.data[task.unit.data]
        where = {"model": self.job.name, "data": data.name}
        samples, failures = [], []
        for number in range(unit.start, unit.stop):
            try:
                samples.append((number, data.sample(number)))
            except BadSample as bad:
                failures.append(_failed(where, bad.id, None, "sample", bad.reason, ""))
            except Exception as error:  # noqa: BLE001 (a reader of one's own may raise anything)
                failures.append(_failed(where, data.id(number), None, "sample", *_said(error)))
        if failures and "samples" not in task.done:
            yield Entry(unit.number, "samples", failures=failures)
        with _limited(self.vlm, self.job.max_new_tokens), shared_features(self.vlm):
            for number, group in enumerate(groups(samples, self.job.rows)):
                if f"{number}" not in task.done:
                    yield from self._group(task, number, group, where)
        yield Entry.end(unit)

    def _group(self, task: Task, number: int, group: Group, where: Mapping[str, str]) -> Iterator[Entry]:
        made, wrong = prompts(self.vlm, group, self.job.prompt, self.job.tokens)
        for part, (some, prompt) in enumerate(made):
            look = _Look(self.vlm, self.layers, some)
            for place, ask in self._turns():
                key = f"{number}.{part}/{place}"
                # The plain model's look stands in every row, so it is taken again where others are missing.
                if key not in task.done or (look.wanted and look.through(ask, self.job.prompt)):
                    rows, failures = self._batch(some, prompt, place, ask, look, where)
                    if key not in task.done:
                        yield Entry(task.unit.number, key, rows, failures)
        names = dict(zip(group.places, (one.id for one in group.samples)))
        failures = [_failed(where, names[one.place], None, "prompt", one.reason, one.trace) for one in wrong]
        yield Entry(task.unit.number, f"{number}", failures=failures)

    def _turns(self) -> list[tuple[int, Ask]]:
        """The methods in the order in which they are asked: the plain model first, for its look."""
        plain = [_plain(ask, self.job.prompt) for ask in self.asks]
        first = plain.index(True) if any(plain) else 0
        return sorted(enumerate(self.asks), key=lambda one: one[0] != first)

    def _batch(
        self, group: Group, prompt: Prompt, place: int, ask: Ask, look: _Look, where: Mapping[str, str]
    ) -> tuple[list[dict], list[dict]]:
        """The rows of one batch under one method, and what failed."""
        asked = prompt if ask.template in (None, self.job.prompt) else prompt.with_template(ask.template)

        def run(rows: list[int]) -> list[Given | Exception]:
            whole = len(rows) == len(asked)
            own = asked if whole else asked.only(rows)
            began = time.perf_counter()
            if look.wanted and look.through(ask, self.job.prompt):
                answers = look.answer(own, rows)
            else:
                answers = ask.method.answer(self.vlm, own)
            each = (time.perf_counter() - began) / len(rows)
            return [Given(answer, each) for answer in answers]

        given, failed, self.fits = by_halves(run, list(range(len(asked))), self.fits)
        name = self.job.methods[place].text
        rows = []
        failures = [
            _failed(where, group.samples[row].id, None, "look", *_said(error))
            for row, error in look.ensure(prompt).items()
        ]
        for row in range(len(asked)):
            sample, error = group.samples[row], failed.get(row)
            if error is None and not math.isfinite(given[row].answer.logprob):
                error = NotFinite(f"the log-probability of the answer is {given[row].answer.logprob}")
            if error is not None:
                failures.append(_failed(where, sample.id, name, "answer", *_said(error)))
                continue
            rows.append(
                {
                    "place": [group.places[row], place],
                    **where,
                    "sample": sample.id,
                    "method": name,
                    **marks(sample, given[row].answer),
                    **_sizes(asked, row),
                    "seconds": given[row].seconds,
                    **look.of(row),
                }
            )
        return rows, failures


def profile_of(job: Job, vlm: VLM) -> Profile | Published | None:
    """The profile that a job names, or the published one of its model, or none."""
    if job.profile is not None:
        found = Profile.from_json(job.profile, f"the profile of {job.name}")
        found.check(vlm)
        return found
    try:
        return published(job.name)
    except ValueError:
        return None


class _Look:
    """Where the plain model's profiled layers look at each sample of a batch."""

    def __init__(self, vlm: VLM, layers: Sequence[int], group: Group):
        self._vlm, self._layers = vlm, list(layers)
        self._found: dict[int, list[float | None]] = {}
        #: Whether there is something to look for that has not been found.
        self.wanted = bool(layers) and any(one.boxes for one in group.samples)

    def through(self, ask: Ask, template: str) -> bool:
        """Whether this method's answer shows it."""
        return _plain(ask, template)

    def answer(self, prompt: Prompt, rows: list[int]) -> list[Answer]:
        """The plain model's answers, and their look."""
        answers, values = self._vlm.answer_with_cache(prompt, self._names)
        self._keep(reading_of(self._vlm, values, self._layers), rows)
        return answers

    def ensure(self, prompt: Prompt) -> dict[int, BaseException]:
        """Take the look, where no answer has shown it; what the rows raised that give none."""
        wanted, self.wanted = self.wanted and not self._found, False
        if not wanted:
            return {}

        def run(rows: list[int]) -> list[None]:
            own = prompt if len(rows) == len(prompt) else prompt.only(rows)
            self._keep(reading_of(self._vlm, self._vlm.cache(own, self._names), self._layers), rows)
            return [None] * len(rows)

        return by_halves(run, list(range(len(prompt))))[1]

    def of(self, row: int) -> dict[str, Any]:
        """The columns of a row."""
        by_layer = self._found.get(row)
        known = [one for one in by_layer or () if one is not None]
        return {
            "evidence_auroc": sum(known) / len(known) if known else None,
            "auroc_layers": by_layer if known else None,
        }

    @property
    def _names(self) -> list[str]:
        return [f"text.{layer}.attn.pattern" for layer in self._layers]

    def _keep(self, reading: Reading, rows: list[int]) -> None:
        for row, look in zip(rows, text_looks(_averaged(reading))):
            if look.reason is None:
                auroc = look.scores()[0, :, -1, 0].tolist()
                self._found[row] = [None if math.isnan(one) else one for one in auroc]


def _averaged(reading: Reading) -> Reading:
    """A reading of the heads' mean rows."""
    cross = None if reading.cross is None else reading.cross.mean(2, keepdim=True)
    return replace(reading, rows=reading.rows.mean(2, keepdim=True), cross=cross)


def _plain(ask: Ask, template: str) -> bool:
    return isinstance(ask.method, Base) and ask.template in (None, template)


@contextmanager
def _limited(vlm: VLM, most: int | None) -> Iterator[None]:
    """Answers of at most so many tokens, under every method."""
    config = vlm._module.generation_config
    own = config.max_new_tokens
    config.max_new_tokens = min(own or MAX_NEW_TOKENS, MAX_NEW_TOKENS) if most is None else most
    try:
        yield
    finally:
        config.max_new_tokens = own


def _sizes(prompt: Prompt, row: int) -> dict[str, int]:
    return {
        "n_prompt": int(prompt.inputs["attention_mask"][row].sum()),
        "n_image": int(prompt.keys.spans.mask("image")[row].sum()),
    }


def _failed(
    where: Mapping[str, str], sample: str, method: str | None, stage: str, reason: str, trace: str
) -> dict[str, Any]:
    named = {**where, "sample": sample, "method": method}
    return {**named, "stage": stage, "reason": reason, "traceback": trace}


def _said(error: BaseException) -> tuple[str, str]:
    found: Failure = failure(0, error)
    return found.reason, found.trace


__all__ = ["MAX_NEW_TOKENS", "NotFinite", "Worker", "profile_of", "reason_of"]
