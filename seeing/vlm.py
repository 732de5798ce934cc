"""`VLM`: the model of a study.

nnsight's `TransformersModel` already runs any Hugging Face model under a trace. `VLM` is one, so all
that nnsight offers still works, and adds what a study of a vision-language model needs: the
vocabulary of names (`traced`), prompts that know what each token is, reading many names in one pass, and
edits that stay attached.

It knows edits by a protocol only (`Edit`): something that adds up, checks itself against a model, may
change pictures before the processor, and runs as one intervention beside the pass.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from nnsight import TransformersModel
from nnsight.intervention.interleaver import Interleaver
from nnsight.intervention.iterator import Iterations
from torch import Tensor, nn
from transformers import Cache

from seeing import sitemap
from seeing.answer import Activations, Answer, Prefill, Score
from seeing.config import Config, StackConfig, config_of
from seeing.data.images import ImageLike
from seeing.data.samples import EvidenceSample
from seeing.families import Family
from seeing.greedy import GREEDY, answers_of, greedy_settings
from seeing.grid import Boxes
from seeing.parameters import parameter
from seeing.prompt import BadPrompt, Prompt, Template, Turn, build, need_prompt
from seeing.protocol import Edits, Program
from seeing.queries import Queries
from seeing.readout import Readout, names_to_read
from seeing.shards import Shards
from seeing.traced import Run, TracedModel
from seeing.travelling import Trace, travelling
from seeing.weights import Weights, weights
from seeing.wire import travels_as


class VLM(TracedModel):
    """A vision-language model under one vocabulary. Made by `seeing.load`.

    ``vlm.trace(prompt)`` is nnsight's trace; in it ``vlm.text[3].attn.pattern``,
    ``vlm.vision[0].resid_post``, ``vlm.projector.out`` and ``vlm.logits`` read and write by name.
    """

    def __init__(self, model: nn.Module, processor: Any, family: Family):
        shards = Shards()
        super().__init__(
            model, task="image-text-to-text", processor=processor, interleaver=Interleaver(fragments=shards)
        )
        self.family = family
        self.sites = sitemap.build(family, model, lambda module: self.interleaver.envoys[id(module)])
        shards.take_up(kernel for stack in self.sites.kernels.values() for kernel in stack.values())
        self.cfg = config_of(family, model)
        #: What was added by `with_edits`, or None.
        self.edits: Edits | None = None
        #: Whether no earlier token of a prompt sees its last one, as the proof finds; None before it ran.
        self.last_unseen: bool | None = None
        self._program: Program | None = None
        self._mediators = ()
        self._prepares = False
        self._pixels, self._skips_rows = family.pixels, family.skips_rows
        self._run = Run()

    # -- weights ---------------------------------------------------------------------------------

    @property
    def W_Q(self) -> Weights:
        """Per layer, the query heads' maps from the stream: (head, d_model, d_head)."""
        return weights(self.family.text(self._module), "q_proj")

    @property
    def W_K(self) -> Weights:
        """Per layer, the key heads' maps: (kv_head, d_model, d_head)."""
        return weights(self.family.text(self._module), "k_proj")

    @property
    def W_V(self) -> Weights:
        """Per layer, the value heads' maps: (kv_head, d_model, d_head)."""
        return weights(self.family.text(self._module), "v_proj")

    @property
    def W_O(self) -> Weights:
        """Per layer, the heads' maps back into the stream: (head, d_head, d_model)."""
        return weights(self.family.text(self._module), "o_proj")

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """The unembedding."""
        return parameter(self.family.head(self._module)).T

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """The token embedding, before any scaling that the model applies."""
        return parameter(self._module.get_input_embeddings())

    # -- prompts ---------------------------------------------------------------------------------

    def prompt(
        self,
        image: EvidenceSample | ImageLike | Sequence[ImageLike],
        question: str | None = None,
        boxes: Boxes | None = None,
        template: Template | None = None,
        *,
        system: str | None = None,
        turns: Sequence[tuple[str, str]] = (),
    ) -> Prompt:
        """A prompt of one row.

        Args:
            image: a PIL image, a path, an array, a list of them, or an `EvidenceSample`.
            question: what to ask; a sample brings its own.
            boxes: the evidence, xyxy pixels of the (first) original image; a sample brings its own.
            template: None (the question as it is), "qa" or "vea" (the paper's prompts, or those that
                the model's card names), a string with ``{question}``, or a function of the question.
            system: a system message, where the chat template takes one.
            turns: what was asked and answered before, as (question, answer); the pictures stand in the
                first of them.

        Raises `BadPrompt` or `BadImage`, which say what was found.
        """
        turn = Turn.of(image, question, boxes, template, system=system, history=turns)
        return build(self.family, self._module, self.processor, [turn])

    def prompts(self, samples: Iterable[EvidenceSample | tuple], template: Template | None = None) -> Prompt:
        """A left-padded batch, one row a sample, or a tuple (image, question) or (image, question, boxes)."""
        if isinstance(samples, EvidenceSample) or not isinstance(samples, Iterable):
            raise BadPrompt(f"a batch takes several samples or tuples, got one {type(samples).__name__}")
        turns = []
        for one in samples:
            if not isinstance(one, EvidenceSample) and not (isinstance(one, tuple) and len(one) in (2, 3)):
                raise BadPrompt(
                    f"a batch takes samples and tuples (image, question) or (image, question, boxes), "
                    f"got {one!r:.200}"
                )
            turns.append(Turn.of(*(one if isinstance(one, tuple) else (one,)), template=template))
        return build(self.family, self._module, self.processor, turns, batched=True)

    # -- reading ---------------------------------------------------------------------------------

    def cache(
        self,
        prompt: Prompt,
        names: str | Iterable[str] = "text.*.attn.pattern",
        queries: Queries = "last",
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        grad: bool = False,
        stop_at_layer: int | None = None,
    ) -> Activations:
        """Read names in one forward pass, which stops behind the last one needed.

        Args:
            names: names or globs (``text.*.attn.pattern``, ``text.12-18.resid_post``, ``logits``).
            queries: which rows of ``attn.scores`` and ``attn.pattern`` to compute: "last", "all", a
                span ("question", "image", "text"), positions, or a mask. It cuts nothing else. In the
                vision tower they count the tower's own tokens.
            device: where to keep the values.
            dtype: as what to keep them.
            grad: keep the autograd graph. What is read is then on the path to what is read later: ask for
                "logits" too, and ``torch.autograd.grad(loss, cache["text.3.attn.pattern"])`` gives the
                gradient of the rows asked for, under any kernel.
            stop_at_layer: read no text layer from this one on, as in TransformerLens.

        Returns: a dict, full name -> tensor, with the batch axis, shapes as in the table of names. It knows
        its ``prompt``, so that it can be patched into another one (`seeing.edits.Patch`).
        Raises `UnknownName` for a name that the model lacks.
        """
        need_prompt(prompt)
        wanted = names_to_read(names, self.sites, self.cfg.n_layers, stop_at_layer)
        # Rows are counted in the prompt that runs, which an edit of its pictures may make longer or shorter.
        shown = self.shown(prompt)
        readout = Readout(
            self.sites, shown, wanted, queries, self.device, device=device, dtype=dtype, grad=grad
        )
        values = Activations(prompt=shown, queries=queries)
        with torch.set_grad_enabled(grad), self.trace(prompt) as tracer:
            readout.run(values)
            tracer.stop()
        return values

    def prefill(
        self,
        prompt: Prompt,
        names: str | Iterable[str],
        queries: Queries = "last",
        *,
        past_key_values: Cache | None = None,
    ) -> Prefill:
        """Read names in a prompt pass that keeps its keys and values, to go on from.

        They are kept in ``past_key_values``, an empty KV cache, where one is given: one that records its past
        can be shortened also where a sliding window is full.
        """
        need_prompt(prompt)
        wanted = names_to_read(names, self.sites, self.cfg.n_layers)
        if self._program is not None and self._program.mixing is not None:
            raise ValueError("a contrast runs its prompt twice: there is no one KV cache of it to go on from")
        readout = Readout(self.sites, self.shown(prompt), wanted, queries, self.device)
        values: dict[str, Any] = {}
        # By generate, though it decodes nothing more: whatever the family, left-padded rows then have the
        # positions that decoding goes on from.
        settings = dict(max_new_tokens=1, **GREEDY) | self._running_all_rows()
        if past_key_values is not None:
            settings["past_key_values"] = past_key_values
        with torch.no_grad(), self.generate(prompt, **settings) as tracer:
            readout.run(values)
            values["result"] = tracer.result
        result = values.pop("result")
        return Prefill(values, result.past_key_values, result.logits[0])

    # -- answering -------------------------------------------------------------------------------

    def answer(
        self, prompt: Prompt, max_new_tokens: int | None = None, **kwargs: Any
    ) -> Answer | list[Answer]:
        """Greedy decoding: one answer, or one a row of a batch.

        At most ``max_new_tokens`` are decoded: by default as many as the checkpoint's own generation
        config says, or else the paper's 50. Keyword arguments go to the model's
        ``generate``; ``past_key_values`` goes on from a kept KV cache, without looking at the picture
        again. Raises ValueError for settings that are not greedy (beams, sampling, several sequences):
        `generate` takes those.
        """
        need_prompt(prompt)
        settings = greedy_settings(self._module, max_new_tokens, kwargs)
        with torch.no_grad():
            return self._answers(prompt, self.interleave(self._decode, prompt, **settings))

    def answer_with_cache(
        self,
        prompt: Prompt,
        names: str | Iterable[str],
        queries: Queries = "last",
        max_new_tokens: int | None = None,
        **kwargs: Any,
    ) -> tuple[Answer | list[Answer], Activations]:
        """`answer` and, from the same run, what `cache` reads in the prompt pass.

        "logits" are those of the whole prompt, as in `cache`. Raises ValueError for a run that goes on from a
        kept KV cache, which has no prompt pass.
        """
        need_prompt(prompt)
        if kwargs.get("past_key_values") is not None:
            raise ValueError("this reads the prompt pass, and a kept KV cache has it behind: use answer")
        wanted = names_to_read(names, self.sites, self.cfg.n_layers)
        settings = greedy_settings(self._module, max_new_tokens, kwargs)
        settings |= self._running_all_rows(logits="logits" in wanted)
        # Pictures are edited once, for what is read and for what runs.
        prepared = self._prepared(prompt)
        values = Activations(prompt=self.shown(prepared), queries=queries)
        readout = Readout(self.sites, values.prompt, wanted, queries, self.device)
        generated = []

        @functools.wraps(self._decode)
        def decode(**inputs: Any) -> None:
            # Not by the trace's result, which a run with a second one beside it can't cut for the block.
            generated.append(self._decode(**inputs))

        with torch.no_grad(), self.trace(prepared, fn=decode, **settings):
            readout.run(values)
        return self._answers(prompt, *generated), values

    def score(self, prompt: Prompt, *, grad: bool = False) -> Score:
        """How likely the given answers of ``prompt`` are, `Prompt.with_answer`, in one pass under all edits.

        Each token's log-probability is that of the step in which generation would choose it. ``grad`` keeps
        the autograd graph. Raises `BadPrompt` for a prompt without given answers, and ValueError under a
        `Contrast`, whose weight goes by steps.
        """
        need_prompt(prompt)
        if not prompt.answers:
            raise BadPrompt("a score is that of given answers: vlm.score(prompt.with_answer(text))")
        settings = {}
        if self._module._supports_logits_to_keep():
            # Told by a number, Gemma 4 runs no other rows in its last layers.
            settings["logits_to_keep"] = torch.arange(-prompt.n_given - 1, 0, device=self.device)
        with torch.set_grad_enabled(grad), self.trace(prompt, **settings):
            logits = self.logits.save()
        return Score.of(logits[:, -prompt.n_given - 1 : -1], prompt.answers)

    def _decode(self, **inputs: Any) -> Any:
        return self._module.generate(**inputs)

    def _running_all_rows(self, logits: bool = False) -> dict[str, Any]:
        """What generation is told so that every layer runs on all rows; with ``logits``, the head too.

        Told by a number above 0 how many logits are wanted, Gemma 4 runs no other rows in its last layers.
        """
        if not self._module._supports_logits_to_keep():
            return {}
        return {"logits_to_keep": 0 if logits else torch.tensor([-1], device=self.device)}

    def _answers(self, prompt: Prompt, generated: Any) -> Answer | list[Answer]:
        n_rows = len(prompt) - prompt.beside
        answers = answers_of(generated, n_rows, self._module, self.processor.tokenizer)
        return answers if prompt.batched else answers[0]

    # -- editing ---------------------------------------------------------------------------------

    def with_edits(self, edits: Edits) -> VLM:
        """An edited VLM: the same weights, and ``edits`` in every trace, cache, answer and generation.

        The original is untouched. Further edits add to those that are there, in the order written.
        Raises before anything runs when the edits don't fit the model.
        """
        if not isinstance(edits, Edits):
            raise TypeError(f"edits are a value of seeing.edits, or several joined by +; got {edits!r}")
        total = edits if self.edits is None else self.edits + edits
        program = total.compile(self)
        with self.edit() as (_, edited):
            program.run(edited, Iterations()[:])
        mixing = program.mixing
        if mixing is not None:
            with edited.edit(inplace=True):
                mixing.other.run(edited, Iterations()[:])
            with edited.edit(inplace=True):
                mixing.run(edited, Iterations()[:])
        theirs = [one for one in self._edits if one not in self._mediators]
        edited._mediators = tuple(edited._edits[len(self._edits) :])
        edited._edits = [*theirs, *edited._mediators]
        edited.edits, edited._program = total, program
        edited._prepares = bool(program.images) or mixing is not None
        return edited

    def clear_edits(self) -> None:
        """Drop all edits, `with_edits`' and nnsight's own: from here on this is the model as it is."""
        super().clear_edits()
        self.edits, self._program, self._mediators, self._prepares = None, None, (), False

    # -- what the processor and the family know ---------------------------------------------------

    def shown(self, prompt: Prompt) -> Prompt:
        """The prompt as a run shows it: with its pictures edited, and the padding that a second run asks "
        "for."""
        prepared = self._prepared(prompt)
        return prepared.some_rows(0, len(prepared) - prepared.beside) if prepared.beside else prepared

    def _prepared(self, prompt: Prompt) -> Prompt:
        if not self._prepares or prompt.prepared:
            return prompt
        own, mixing = self._program.edit_images(prompt), self._program.mixing
        if mixing is None:
            return replace(own, prepared=True)
        if prompt.answers:
            raise ValueError(
                "a contrast mixes two runs step by step: a prompt with a given answer runs in one pass; "
                "score it without the contrast"
            )
        both = self._join([own, mixing.other.edit_images(prompt)])
        return replace(both, prepared=True, beside=len(prompt), shift=both.length - own.length)

    def _join(self, prompts: Sequence[Prompt]) -> Prompt:
        turns = [turn for prompt in prompts for turn in prompt.turns]
        joined = build(self.family, self._module, self.processor, turns, batched=True)
        if not any(prompt.answers for prompt in prompts):
            return joined
        if not all(prompt.answers for prompt in prompts):
            raise BadPrompt("prompts of one batch go on with a given answer all, or none of them does")
        return joined.with_answer([ids for prompt in prompts for ids in prompt.answers])

    def _arrange(self, inputs: Mapping[str, Any]) -> None:
        if not set(self.family.required) <= inputs.keys():
            return super()._arrange(inputs)
        model = self._module
        self.sites.order.follow(
            self.family.patch_order(model, inputs), self.family.feature_order(model, inputs)
        )

    # -- running elsewhere -----------------------------------------------------------------------

    def trace(self, *inputs: Any, **kwargs: Any) -> Any:
        """nnsight's trace. ``remote=True`` runs it where the model is, with all edits."""
        return super().trace(*inputs, **{"tracer_cls": Trace} | kwargs)

    def _remoteable_class(self) -> type:
        return TransformersModel


travels_as(VLM, travelling)

__all__ = ["VLM", "Activations", "Answer", "Config", "Edits", "Prefill", "Queries", "Score", "StackConfig"]
