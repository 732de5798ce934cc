"""The direct path to the answer: what each head, each MLP and the embedding write into its logits themselves.

The stream at the row that predicts the answer is a sum of what every part of every layer added. With the
statistic of the final norm frozen the way on to the logits is linear, so the difference logit(answer) −
logit(foil) is the sum of one number a part (direct logit attribution; Elhage et al. 2021, A Mathematical
Framework for Transformer Circuits; Wang et al. 2023, arXiv 2211.00593). What a head adds is `attn.result`,
after a norm or a gate on its branch.

`path_patching` asks the causal question of the same path: a head's output is replaced on its way to the
last stream alone, by what it is in another run, while all that lies between stays as it was (Goldowsky-Dill
et al. 2023, arXiv 2304.05969). The final norm is not frozen there.

Logits here are those that leave the unembedding: before a soft cap or a scale, where a family has them,
for behind a cap nothing adds up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seeing.data.samples import EvidenceSample
from seeing.figures.patching import direct_map
from seeing.parameters import parameter
from seeing.probes.causal.effects import Measure, rival
from seeing.probes.causal.pairs import Corruption, answer_ids, pairs, with_answer
from seeing.probes.causal.patching import Patched, Sums, check_asked
from seeing.probes.causal.stream import FrozenNorm, Stream
from seeing.probes.progress import Progress
from seeing.probes.running import Bootstrap, RunningMean
from seeing.probes.samples import Answered, Ledger, LeftOut, batches
from seeing.prompt import Prompt, Template
from seeing.stats import Interval
from seeing.unembedding import Unembedding, plain
from seeing.vlm import VLM


@dataclass(frozen=True)
class DirectEffects:
    """What each part writes into logit(answer) − logit(foil) itself, means over samples.

    embed + Σ attn + Σ mlp + Σ other + constant = total, sample by sample.

    Attributes:
        heads: (layer, head) of each head; NaN in layers whose heads can't be told apart.
        interval: of ``heads``, two tensors, 95 %, bootstrapped over samples.
        attn: (layer,) of the whole attention branch: its heads and the output projection's bias.
        mlp: (layer,) of the MLP.
        other: (layer,) of what else a layer adds (per-layer embeddings); zero in most families.
        embed: of the token's embedding, the prompt's last token.
        constant: of biases behind the stream.
        total: logit(answer) − logit(foil), before a soft cap.
        ids, left_out: the samples counted, and those that were not.
    """

    heads: Float[Tensor, "layer head"]
    interval: Interval
    attn: Float[Tensor, " layer"]
    mlp: Float[Tensor, " layer"]
    other: Float[Tensor, " layer"]
    embed: float
    constant: float
    total: float
    ids: tuple[str, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def n(self) -> int:
        """Samples counted."""
        return len(self.ids)

    def ranking(self) -> list[tuple[int, int, float]]:
        """(layer, head, direct effect), from the head that speaks most for the answer down."""
        flat = self.heads.flatten()
        order = flat.nan_to_num(-torch.inf).argsort(descending=True, stable=True).tolist()
        return [
            (*divmod(one, self.heads.shape[1]), float(flat[one])) for one in order if not flat[one].isnan()
        ]

    def to_frame(self) -> pd.DataFrame:
        """One row a part: part, layer, head (−1 where there is none) and effect."""
        rows = [("embed", -1, -1, self.embed), ("constant", -1, -1, self.constant)]
        for part in ("attn", "mlp", "other"):
            rows += [(part, layer, -1, float(one)) for layer, one in enumerate(getattr(self, part))]
        for layer, heads in enumerate(self.heads):
            rows += [("head", layer, head, float(one)) for head, one in enumerate(heads)]
        return pd.DataFrame(rows, columns=["part", "layer", "head", "effect"])

    def figure(self, *, dark: bool = False) -> go.Figure:
        """Heads as a map of layer × head, above it attention and MLP by layer."""
        return direct_map(
            self.heads.numpy(), self.attn.numpy(), self.mlp.numpy(), total=self.total, n=self.n, dark=dark
        )


def direct_effects(
    vlm: VLM,
    samples: Iterable[EvidenceSample] | EvidenceSample | Prompt,
    *,
    foil: str | None = None,
    answers: Answered = "given",
    template: Template | None = None,
    batch_size: int = 16,
    progress: Progress = None,
) -> DirectEffects:
    """Direct logit attribution of the answer's first token, over samples or a `Prompt`.

    Args:
        foil: the text whose first token the answer is compared with; None takes what the model would rather
            say than anything else but the answer. A sample whose answer starts with that token is left out.
        answers: whose answer: the sample's ("given") or the model's own ("own").

    Raises ValueError when no sample could be counted, FamilyContractError for a final norm that is not
    linear once its statistic is frozen, and where an edit acts between the last stream and the logits.
    """
    ledger, means, draws = Ledger(), {}, Bootstrap()
    for ids, prompt in _prompts(vlm, samples, ledger, template, batch_size, progress, answers):
        parts = Decomposition.of(vlm, prompt, foil)
        effects = {name: value[parts.differs] for name, value in parts.effects().items()}
        for one, differs in zip(ids, parts.differs.tolist()):
            if differs:
                ledger.ids.append(one)
            else:
                ledger.leave_out(one, f"its answer starts with the token of the foil {foil!r:.100}")
        if parts.differs.any():
            for name, value in effects.items():
                means.setdefault(name, RunningMean()).add(value)
            draws.add(effects["heads"])
    ledger.need("an answer whose logits can be taken apart")
    found = {name: one.mean for name, one in means.items()}
    scalars = {name: float(found.pop(name)) for name in ("embed", "constant", "total")}
    return DirectEffects(
        **found,
        **scalars,
        interval=draws.interval(),
        ids=tuple(ledger.ids),
        left_out=tuple(ledger.left_out),
    )


def path_patching(
    vlm: VLM,
    clean: Iterable[EvidenceSample] | EvidenceSample | Prompt,
    corrupted: Corruption,
    *,
    direction: str = "noise",
    metric: str = "logit_diff",
    answers: Answered = "given",
    template: Template | None = None,
    batch_size: int = 8,
    progress: Progress = None,
) -> Patched:
    """Path patching from every head to the logits, past all that lies between, by the answer's first token.

    Args: as of `patching.patching`. Two passes a pair, whatever the number of heads.

    Returns: effects with axes (layer, head).
    """
    check_asked(direction, metric)
    ledger, sums = Ledger(), Sums()
    for pair in pairs(
        vlm,
        clean,
        corrupted,
        ledger,
        template=template,
        batch_size=batch_size,
        progress=progress,
        answers=answers,
        what="patched paths",
    ):
        paths = _Paths.of(vlm, pair.clean, pair.corrupted, direction, metric)
        sums.add(paths.start, paths.end, paths.patched())
        ledger.ids.extend(pair.ids)
    ledger.need("a clean and a corrupted side to compare")
    axes = {"layer": tuple(range(vlm.cfg.n_layers)), "head": tuple(range(vlm.cfg.n_heads))}
    return sums.result(axes, metric, direction, "Path patching, head to logits", ledger)


def _prompts(vlm, samples, ledger, template, batch_size, progress, answers):
    """(ids, prompt with its answer) of each batch."""
    if answers not in ("given", "own"):
        raise ValueError(f"the answer that is taken apart is 'given' or 'own', got {answers!r}")
    if isinstance(samples, Prompt):
        yield [f"row {row}" for row in range(len(samples))], with_answer(vlm, samples)
        return
    for batch in batches(
        vlm,
        samples,
        ledger,
        template=template,
        batch_size=batch_size,
        progress=progress,
        answers=answers,
        what="direct effects",
    ):
        yield [sample.id for sample in batch.samples], batch.prompt


# ---- taken apart -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decomposition:
    """The stream of a batch, and the direction in it that says answer rather than foil.

    ``differs`` are the rows whose answer and foil are two tokens.
    """

    stream: Stream
    direction: Float[Tensor, "batch d_model"]
    constant: Float[Tensor, " batch"]
    total: Float[Tensor, " batch"]
    differs: Bool[Tensor, " batch"]
    n_heads: int

    @classmethod
    def of(cls, vlm: VLM, prompt: Prompt, foil: str | None = None) -> Decomposition:
        stream, last = Stream.of(vlm, prompt), Unembedding.of(vlm.family, vlm._module)
        logits, ids = _unembedded(last, stream.normed), answer_ids(prompt)
        other = rival(logits, ids[:, 0]) if foil is None else _foil(prompt, foil)
        ids, other = ids[:, 0].to(logits.device), other.to(logits.device)
        weight, bias = parameter(last.head), parameter(last.head, "bias")
        towards = (weight[ids] - weight[other]).detach().float().to(stream.last.device)
        frozen = FrozenNorm.at(last.norm, stream.last, stream.normed)
        constant = towards @ frozen.bias
        if bias is not None:
            constant = constant + (bias[ids] - bias[other]).detach().float()
        rows = torch.arange(len(ids), device=logits.device)
        total = logits[rows, ids] - logits[rows, other]
        differs = (ids != other).cpu()
        return cls(stream, frozen.pulled(towards), constant, total, differs, vlm.cfg.n_heads)

    def effects(self) -> dict[str, Tensor]:
        """By part: (batch, layer, head), (batch, layer) or (batch, 1)."""
        stream, n_layers = self.stream, self.stream.attn.shape[1]
        heads = self.direction.new_full((len(self.direction), n_layers, self.n_heads), torch.nan)
        for layer, shares in stream.heads.items():
            heads[:, layer] = torch.einsum("bhm,bm->bh", shares, self.direction)
        found = {"heads": heads, "embed": (stream.embed * self.direction).sum(-1, keepdim=True)}
        for part in ("attn", "mlp", "other"):
            found[part] = torch.einsum("blm,bm->bl", getattr(stream, part), self.direction)
        found |= {"constant": self.constant[:, None], "total": self.total[:, None]}
        return {name: value.cpu() for name, value in found.items()}


def _unembedded(
    last: Unembedding, normed: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_vocab"]:
    """What leaves the unembedding, before a soft cap or a scale."""
    with torch.no_grad():
        return plain(last.head, normed.to(last.head.weight.dtype)).float()


def _foil(prompt: Prompt, text: str) -> Int[Tensor, " batch"]:
    """The first token of a text said in place of the answer."""
    said = prompt.with_answer([text] * len(prompt))
    return torch.stack([ids[0] for ids in said.answers])


# ---- one head's path, changed ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Paths:
    """The streams of a pair, of which ``base`` is changed, head by head, into ``goal``."""

    last: Unembedding
    base: Stream
    goal: Stream
    measure: Measure
    n_heads: int

    @classmethod
    def of(cls, vlm: VLM, clean: Prompt, corrupted: Prompt, direction: str, metric: str) -> _Paths:
        last = Unembedding.of(vlm.family, vlm._module)
        first = answer_ids(clean)[:, :1]
        streams = [Stream.of(vlm, prompt) for prompt in (clean, corrupted)]
        logits = [_unembedded(last, one.normed)[:, None] for one in streams]
        foil = rival(logits[1][:, 0], first[:, 0])
        measure = Measure(metric, first, foil, logits[0].log_softmax(-1))
        base, goal = streams if direction == "noise" else streams[::-1]
        return cls(last, base, goal, measure, vlm.cfg.n_heads)

    @property
    def start(self) -> Float[Tensor, " batch"]:
        return self.measure(_unembedded(self.last, self.base.normed)[:, None]).cpu()

    @property
    def end(self) -> Float[Tensor, " batch"]:
        return self.measure(_unembedded(self.last, self.goal.normed)[:, None]).cpu()

    def patched(self) -> Float[Tensor, "place batch"]:
        """The metric with each head's share of the last stream replaced, all else kept."""
        rows = []
        for layer in range(self.base.attn.shape[1]):
            if layer not in self.base.heads:
                rows.append(self.start.new_full((self.n_heads, len(self.start)), torch.nan))
                continue
            moved = self.goal.heads[layer] - self.base.heads[layer]
            rows.append(torch.stack([self._through(self.base.last + one) for one in moved.unbind(1)]))
        return torch.cat(rows)

    def _through(self, stream: Float[Tensor, "batch d_model"]) -> Float[Tensor, " batch"]:
        dtype = self.last.head.weight.dtype
        with torch.no_grad():
            normed = plain(self.last.norm, stream.to(dtype))
        return self.measure(_unembedded(self.last, normed)[:, None]).cpu()
