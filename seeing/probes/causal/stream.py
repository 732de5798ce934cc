"""The stream at the row that answers, part by part, and the linear way on from it to the logits.

What a head, an MLP or an embedding adds to the residual stream stays in it up to the last layer, multiplied
by the factors that a family puts behind its layers. So the last stream is a sum of parts, and the final norm,
its statistic frozen, is linear in them. That the model goes on from it in no other way is checked in the run:
an edit of the final norm or of the logits stands between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seeing.families import FamilyContractError
from seeing.names import expand
from seeing.prompt import Prompt
from seeing.proof import TOLERANCE
from seeing.unembedding import Unembedding, plain
from seeing.vlm import VLM


@dataclass(frozen=True)
class Stream:
    """What is in the stream at the row that predicts the answer's first token.

    Attributes:
        embed: (batch, d_model).
        heads: by layer (batch, head, d_model); layers whose heads can't be told apart are missing.
        attn, mlp, other: (batch, layer, d_model), as they arrive in the last stream: multiplied by the
            factors of the layers behind them, where a family has those.
        last: (batch, d_model) their sum, which the final norm is given.
        normed: (batch, d_model) what the norm gave.
    """

    embed: Float[Tensor, "batch d_model"]
    heads: dict[int, Float[Tensor, "batch head d_model"]]
    attn: Float[Tensor, "batch layer d_model"]
    mlp: Float[Tensor, "batch layer d_model"]
    other: Float[Tensor, "batch layer d_model"]
    last: Float[Tensor, "batch d_model"]
    normed: Float[Tensor, "batch d_model"]

    @classmethod
    def of(cls, vlm: VLM, prompt: Prompt) -> Stream:
        """Read in one pass of the prompt as it is shown; of every name the one position only is kept.

        Raises `UnknownName` for a model whose final norm is not known, `FamilyContractError` where the model
        does not go on from the stream by its final norm and unembedding.
        """
        n_layers, layers = vlm.cfg.n_layers, range(vlm.cfg.n_layers)
        apart = [layer for layer in layers if f"text.{layer}.attn.result" in vlm.sites]
        names = [f"text.{layer}.{site}" for layer in layers for site in ("resid_pre", "attn_out", "mlp_out")]
        names += [f"text.{layer}.attn.z" for layer in apart]
        names += [f"text.{n_layers - 1}.resid_post", "text.norm", "logits"]
        read = _read(vlm, vlm.shown(prompt), expand(names, list(vlm.sites), vlm.sites.absent))
        _hold(vlm, read[f"text.{n_layers - 1}.resid_post"], read["logits"])
        # The layers of a model may lie on several devices; what is left of them is small.
        end = read["text.norm"].device

        def along(site: str) -> Tensor:
            return torch.stack([read[f"text.{layer}.{site}"].to(end) for layer in layers], 1).float()

        pre, attn, mlp = along("resid_pre"), along("attn_out"), along("mlp_out")
        last = read[f"text.{n_layers - 1}.resid_post"].float().to(end)
        scale = torch.tensor([float(_factor(layer)) for layer in vlm.family.text(vlm._module).layers])
        # What a layer adds is multiplied by its own factor and by those of all layers behind it.
        arrives = scale.flip(0).cumprod(0).flip(0).to(last.device)
        own = (scale.to(last.device)[:, None] * (pre + attn + mlp)).to(last)
        other = torch.cat([pre[:, 1:], last[:, None]], 1) - own
        behind = torch.cat([arrives[1:], arrives.new_ones(1)])
        heads = {
            layer: _heads(vlm, layer, read[f"text.{layer}.attn.z"]).to(end) * arrives[layer]
            for layer in apart
        }
        return cls(
            embed=pre[:, 0] * arrives[0],
            heads=heads,
            attn=attn * arrives[:, None],
            mlp=mlp * arrives[:, None],
            other=other * behind[:, None],
            last=last,
            normed=read["text.norm"].float(),
        )


def _read(vlm: VLM, prompt: Prompt, names: Sequence[str]) -> dict[str, Tensor]:
    """Values at the row that predicts the answer's first token, one pass."""
    # Counted from the end: of the logits only the last rows may be made.
    column, values, settings = -prompt.n_given - 1, {}, {}
    if vlm._module._supports_logits_to_keep():
        settings["logits_to_keep"] = torch.arange(column, 0, device=vlm.device)
    with torch.no_grad(), vlm.trace(prompt, **settings):
        for name in names:
            # A copy: what is served is live, and the whole of it need not be kept.
            values[name] = vlm.sites[name].read()[:, column].clone()
    return values


def _hold(vlm: VLM, last: Float[Tensor, "batch d_model"], logits: Float[Tensor, "batch d_vocab"]) -> None:
    """The logits of the run are those of its last stream: nothing stands between the two."""
    with torch.no_grad():
        found = Unembedding.of(vlm.family, vlm._module)(last).to(logits).float()
    gap, size = float((found - logits.float()).abs().max()), float(logits.float().abs().max())
    if not gap <= TOLERANCE.get(vlm._module.dtype, 3e-2) * max(size, 1e-12):
        edits = "" if vlm.edits is None else f"; the model runs under {vlm.edits!r:.200}"
        raise FamilyContractError(
            f"{vlm.family.name}: the last stream, put through the final norm and the unembedding, is off by "
            f"{gap:.3g} from the logits of the run (largest {size:.3g}){edits}. What acts between the stream "
            f"and the logits is the part of no head and no layer, so the logits can't be taken apart"
        )


def _heads(
    vlm: VLM, layer: int, z: Float[Tensor, "batch head d_head"]
) -> Float[Tensor, "batch head d_model"]:
    """What each head adds to the stream, `attn.result`, of one position."""
    with torch.no_grad():
        return vlm.sites[f"text.{layer}.attn.result"].map.heads(z[:, None])[:, 0].float()


def _factor(layer: nn.Module) -> Tensor | float:
    """By what a layer multiplies the stream at its end (Gemma 4); 1 in all other families."""
    return getattr(layer, "layer_scalar", 1.0)


@dataclass(frozen=True)
class FrozenNorm:
    """The final norm at some values of the stream, its statistic frozen: centre(x) · gain + bias.

    ``gain`` is (batch, d_model), the norm's own over the root mean square; ``centred`` says whether the mean
    is taken away first, as layer norm does and RMS norm does not.
    """

    gain: Float[Tensor, "batch d_model"]
    bias: Float[Tensor, " d_model"]
    centred: bool

    @classmethod
    def at(
        cls, norm: nn.Module, stream: Float[Tensor, "batch d_model"], normed: Float[Tensor, "batch d_model"]
    ) -> FrozenNorm:
        """Found by asking the norm itself; ``normed`` is what it made of ``stream`` in the run.

        Raises FamilyContractError when it is no such norm, or made that of something else.
        """
        dtype = next(norm.parameters()).dtype
        with torch.no_grad():

            def ask(value: Tensor) -> Tensor:
                return plain(norm, value.to(dtype)).to(stream)

            bias = ask(torch.zeros_like(stream[:1]))[0]
            # Of mean 0, root mean square 1, so that its size stands for itself in either kind of norm.
            probe = torch.ones_like(stream[:1])
            probe[:, 1::2] = -1
            probe = probe - probe.mean()
            probe = 1e3 * probe / probe.pow(2).mean().sqrt()
            weight = (ask(probe) - bias) * probe.pow(2).mean().sqrt() / probe
            centred = bool((ask(torch.ones_like(probe)) - bias).abs().max() < 0.01 * weight.abs().max())
            inner = stream - stream.mean(-1, keepdim=True) if centred else stream
            size = (inner * weight).norm(dim=-1, keepdim=True)
            found = cls(weight * (normed - bias).norm(dim=-1, keepdim=True) / size, bias, centred)
        gap = float((found(stream) - normed).abs().max() / normed.abs().max())
        if not gap < (1e-3 if dtype == torch.float32 else 3e-2):
            raise FamilyContractError(
                f"the final norm ({type(norm).__name__}) is no RMS norm and no layer norm of the last "
                f"layer's stream: with its statistic frozen it misses what it gave in the run by {gap:.2g}, "
                f"so the logits can't be taken apart"
            )
        return found

    def __call__(self, stream: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_model"]:
        inner = stream - stream.mean(-1, keepdim=True) if self.centred else stream
        return inner * self.gain + self.bias

    def pulled(self, direction: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_model"]:
        """The direction of the stream that a direction behind the norm reads."""
        found = direction * self.gain
        return found - found.mean(-1, keepdim=True) if self.centred else found
