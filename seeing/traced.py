"""`TracedModel`: what a run needs of a model, and all of it that travels.

`VLM` is one, and adds what is done before and behind a run: prompts, reading, answering, attaching edits. A
trace that runs elsewhere carries a `TracedModel` in its place, so this module keeps to what `wire` asks of
code that travels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from greenlet import GreenletExit
from jaxtyping import Float
from nnsight import TransformersModel
from nnsight.intervention.batching import Batcher
from nnsight.intervention.interleaver import Mediator
from torch import Tensor

from seeing.config import Config
from seeing.prompt import BadPrompt, Prompt
from seeing.sitemap import SiteMap
from seeing.sites import HandedOut
from seeing.views import OutsideTrace, StackView, View, bound

#: What runs a model token by token is called so.
_GENERATES = ("generate", "_decode")


@dataclass
class Run:
    """The run in progress: one at a time, for a model and all its edited copies.

    ``looks``: whether it sees the pictures, or goes on from a KV cache behind them.
    """

    prompt: Prompt | None = None
    looks: bool = True

    def __reduce__(self) -> tuple:
        return Run, ()


class RunEnded(Exception):
    """Thrown into edits that wait for a step which the run did not make."""


@dataclass(frozen=True)
class Beside:
    """The place in a batch of a second run's rows."""

    rows: int


class TracedModel(TransformersModel):
    """A model under the vocabulary of names, with its edits, as a trace runs it."""

    sites: SiteMap
    cfg: Config
    #: Keyword tensors that hold pixels, left out where a run goes on from a KV cache behind the pictures.
    _pixels: tuple[str, ...]
    #: Whether generation runs some layers on the rows alone whose logits it asks for, by number.
    _skips_rows: bool
    #: Whether a prompt has work to do on it before a run, where the processor is: pictures to edit, or a
    #: second run's rows to put beside its own.
    _prepares: bool
    #: The edits as nnsight replays them: of the run and, where it has one, of the second run beside it, and
    #: what mixes the two.
    _mediators: tuple[Mediator, ...]
    # Shared with every edited copy: whichever of them runs, the edits find its prompt.
    _run: Run

    # -- names -----------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Every name that this model has, in the order of a forward pass."""
        return list(self.sites)

    @property
    def text(self) -> StackView:
        return StackView(self.sites, "text")

    @property
    def vision(self) -> StackView:
        return StackView(self.sites, "vision")

    @property
    def projector(self) -> View:
        """``projector.out``, and ``projector.in_`` (``in`` is a word of Python's)."""
        return View(self.sites, "projector")

    @property
    def logits(self) -> Float[Tensor, "batch pos d_vocab"]:
        try:
            return bound(self.sites, "logits")
        except OutsideTrace as error:  # an AttributeError here would be looked for in the module
            raise ValueError(str(error)) from None

    @logits.setter
    def logits(self, value: Tensor) -> None:
        self.sites["logits"].write(value)

    # -- the run in progress ---------------------------------------------------------------------

    @property
    def running(self) -> Prompt | None:
        """The prompt of the run in progress, which selectors are resolved against."""
        return self._run.prompt

    @property
    def looks(self) -> bool:
        """Whether the run in progress sees its pictures, or goes on from a KV cache behind them."""
        return self._run.looks

    # -- what is known of prompts where there is no processor ------------------------------------

    def _prepared(self, prompt: Prompt) -> Prompt:
        """The prompt as the run takes it."""
        if self._prepares and not prompt.prepared:
            raise BadPrompt(
                "the edits change pictures or run a second prompt beside the first, and both need the "
                "processor, which stays where the prompt is made: hand the prompt to trace or generate "
                "itself, not to an invoke, nor to a trace inside a session"
            )
        return prompt

    def _join(self, prompts: Sequence[Prompt]) -> Prompt:
        """Several prompts as one batch."""
        raise BadPrompt(
            f"{len(prompts)} invokes of prompts become a batch where the processor is, and it does not "
            f"travel: make one batch, vlm.prompts([...])"
        )

    def _arrange(self, inputs: Mapping[str, Any]) -> None:
        """Set the order of a packed tower for a run on bare inputs."""
        self.sites.order.forget()

    # -- how nnsight runs it ---------------------------------------------------------------------

    def __setstate__(self, state: dict) -> None:
        TransformersModel.__setstate__(self, state)
        self._sync()  # processor and tokenizer are those of the pipeline that is there
        # Where it arrives no forward has been taken apart yet into the operations that sites lie at.
        for envoy in self.modules():
            if envoy.path in self.sites.sourced:
                _ = envoy.source

    def _batch_size(self, *inputs: Any, **kwargs: Any) -> int:
        if inputs and isinstance(inputs[0], Prompt):
            return len(inputs[0]) - inputs[0].beside
        if inputs and isinstance(inputs[0], Beside):
            return inputs[0].rows
        return TransformersModel._batch_size(self, *inputs, **kwargs)

    def _batch(self, invokes: list, fn: Any) -> tuple:
        """Prompts to the model's keyword tensors; several invokes of prompts become one padded batch."""
        invokes = [one for one in invokes if not (one[0] and isinstance(one[0][0], Beside))]
        given = [inputs[0] for inputs, _ in invokes if inputs and isinstance(inputs[0], Prompt)]
        if not given:
            self._run.prompt, self._run.looks = None, True
            args, kwargs = TransformersModel._batch(self, invokes, fn)
            self._arrange(kwargs)
            return args, kwargs
        if len(given) != len(invokes):
            raise BadPrompt("a trace takes Prompts in all of its invokes, or in none")
        if any(prompt.part for prompt in given):
            raise BadPrompt(
                "these are some rows of a prompt as they stand in it, without pixels; to run them take "
                "prompt.row(number) or prompt.only(numbers)"
            )
        if any(prompt.answers for prompt in given) and getattr(fn, "__name__", "") in _GENERATES:
            raise BadPrompt(
                "a prompt that goes on with a given answer has nothing left to generate: score it, "
                "vlm.score(prompt), or generate from the prompt without its answer"
            )
        prompt = self._prepared(given[0] if len(given) == 1 else self._join(given))
        self.sites.order.follow(prompt.patch_order, prompt.feature_order)
        kwargs = {key: value for _, more in invokes for key, value in more.items()}
        inputs, kept = dict(prompt.inputs), kwargs.get("past_key_values")
        if self._skips_rows and self._mediators and getattr(fn, "__name__", "") in _GENERATES:
            # Asked for by place, the same logits come of all rows, which edits may look at.
            kwargs.setdefault("logits_to_keep", torch.tensor([-1], device=self.device))
        self._run.prompt, self._run.looks = prompt, kept is None or kept.get_seq_length() == 0
        if not self._run.looks:
            for name in self._pixels:
                inputs.pop(name, None)
        if getattr(fn, "__name__", "") in _GENERATES:
            # Generation counts positions itself, each family from where it does.
            inputs.pop("position_ids", None)
        return (), {**inputs, **kwargs}

    def interleave(self, fn: Any, *args: Any, batcher: Batcher | None = None, **kwargs: Any) -> Any:
        self.interleaver.handed_out = handed_out = HandedOut()
        if len(self._mediators) > 1:
            args, kwargs, batcher = (), {}, self._beside(batcher, args, kwargs)
            settings = {key: value for _, more in batcher.invokes for key, value in more.items()}
            settings |= batcher.extra_kwargs
            if settings.get("past_key_values") is not None:
                raise ValueError("a contrast starts its prompt anew, twice: it goes on from no KV cache")
            if getattr(fn, "__name__", "") in _GENERATES:
                self._check_greedy(settings)
        fn = self._ending_edits(fn) if self._mediators else fn
        result = TransformersModel.interleave(self, fn, *args, batcher=batcher, **kwargs)
        handed_out.check()
        return result

    def _beside(self, batcher: Batcher | None, args: tuple, kwargs: dict) -> Batcher:
        """The inputs of a run with a second one beside it, and each run's edits confined to its own rows.

        nnsight cuts a batch for its invokes; the second run is one more of them, which no block belongs to.
        """
        batcher = self._batcher_class(self, kwargs) if batcher is None else batcher
        batcher.add(*args, **kwargs)
        rows = batcher.total
        if not rows or not all(inputs and isinstance(inputs[0], Prompt) for inputs, _ in batcher.invokes):
            raise BadPrompt(
                "a contrast runs a Prompt twice: run the edited model on vlm.prompt(image, question)"
            )
        batcher.add(Beside(rows))
        own, other, _ = self._mediators
        own.batch_group, other.batch_group = [0, rows], [rows, rows]
        return batcher

    def _check_greedy(self, settings: Mapping[str, Any]) -> None:
        """Raise ValueError for a generation in which two runs beside each other would part."""
        config = settings.get("generation_config") or self._module.generation_config
        for name, greedy in (("do_sample", False), ("num_beams", 1), ("num_return_sequences", 1)):
            found = settings.get(name, getattr(config, name, None))
            if found not in (None, greedy):
                raise ValueError(
                    f"a contrast decodes one greedy sequence a prompt, the same in both runs: {name} is "
                    f"{found}, say {name}={greedy}"
                )
        if settings.get("return_dict_in_generate") and not settings.get("output_logits"):
            raise ValueError("a contrast gives token ids: leave return_dict_in_generate out")

    def _ending_edits(self, fn: Callable) -> Callable:
        """``fn``, behind which our edits end: their loop over decoded tokens has no end of its own."""

        @functools.wraps(fn)
        def run(*args, **kwargs):
            stopped = True
            try:
                result = fn(*args, **kwargs)
                stopped = False
                return result
            finally:
                for mediator in self._mediators:
                    pending = mediator.pending
                    if mediator.alive and pending is not None and (stopped or pending.iteration):
                        mediator.pending = None
                        mediator.worker.throw(GreenletExit if stopped else RunEnded)

        return run
