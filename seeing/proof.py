"""The proof at load: the view of a model is held against the model before it is handed out.

A view can be wrong without an error: a hook that never fires, a mask read from the wrong side, a head
order off by a group. So one small picture is put through the model, and what the view says is
compared with what the model did:

* rows: pattern · v is the kernel's output, rows sum to one, masked keys are exactly zero, in the
  first, middle and last layer of both stacks;
* names: every listed name fires and has its declared shape; tracing leaves the logits as they were;
* the text layers are as many as the configuration says, and each takes up what the one before left;
* the residual stream adds up, and so do the heads: resid_pre + attn_out = resid_mid,
  resid_mid + mlp_out = resid_post, Σ attn.result + bias = attn_out;
* the image arrives: what enters the text model at the image's tokens is projector.out, in order;
* writes: an identity write moves the logits by rounding only; an edit of the last row moves the last
  logits and, where no earlier row sees it, no earlier one; a write of resid_mid reaches the logits.

Whether an earlier row sees the last token is found out on the way, and kept as ``vlm.last_unseen``.

Five forward passes of one small prompt. What fails raises `FamilyContractError`, which names the
family, the site, what was found and what was expected. Comparisons are in float32, to a tolerance
that goes with the model's dtype and with the largest of the values that went in: a head that writes
small numbers is held to them.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from nnsight.intervention.interleaver import Mediator, OutOfOrderError
from PIL import Image
from torch import Tensor

from seeing.branches import Result
from seeing.edits import Knockout
from seeing.families import FamilyContractError
from seeing.names import LAYER_SITES, ROW_SITES, Name
from seeing.prompt import BadPrompt, Prompt
from seeing.sites import Derived
from seeing.vlm import VLM, Config, StackConfig

#: Largest error allowed, relative to the largest value that went into what is compared.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def prove(vlm: VLM) -> None:
    """Hold the view of ``vlm`` against the model. Raises `FamilyContractError` where it fails."""
    Proof(vlm).run()


class Proof:
    """The checks, on one model and one small prompt."""

    def __init__(self, vlm: VLM):
        self.vlm = vlm
        self.prompt = _small_prompt(vlm)
        self.tolerance = TOLERANCE.get(vlm._module.dtype, 3e-2)

    def run(self) -> None:
        with torch.no_grad():
            inputs = {key: value.to(self.vlm.device) for key, value in self.prompt.inputs.items()}
            bare = self.vlm._module(**inputs).logits
            values = self._values()
            self._equal("logits", values["logits"], bare, "the bare model's", exact=True)
            self._shapes(values)
            self._sizes(values)
            self._chain(values)
            self._residual_stream(values)
            self._heads(values)
            self._image(values)
            for stack in self.vlm.sites.kernels:
                self._rows(stack, values)
            self.vlm.last_unseen = self._last_is_unseen(values)
            self._writes(bare)

    def _values(self) -> dict[str, Tensor]:
        """Every name, read in one pass. A site that lies elsewhere than its name says comes out of order."""
        values: dict[str, Tensor] = {}
        try:
            with self.vlm.trace(self.prompt):
                for name in self.vlm.names():
                    stem, _, part = name.rpartition(".")
                    if part == "z":
                        kernel = self.vlm.sites.kernels[Name.parse(name).stack][Name.parse(name).layer]
                        given = kernel.take(Mediator.value(kernel.target))
                        values[f"{stem}.given"] = given.clone()
                    values[name] = self.vlm.sites[name].read().clone()
        except OutOfOrderError as error:
            location = str(error).split("'")[1]
            places = {name: getattr(site, "location", None) for name, site in self.vlm.sites.items()}
            places |= {n: s.source for n, s in self.vlm.sites.items() if isinstance(s, Derived)}
            late = [name for name, place in places.items() if place and location.startswith(place)]
            # Of several at one location the first was served there, and the last came too late.
            self._fail(late[-1] if late else location, f"that the model ran past {location}", "it ahead")
        self.given = {
            name.removesuffix(".given"): values.pop(name) for name in list(values) if ".given" in name
        }
        return values

    # -- checks ----------------------------------------------------------------------------------

    def _shapes(self, values: dict[str, Tensor]) -> None:
        n_text = self.prompt.length
        for name, value in values.items():
            parsed = Name.parse(name)
            if parsed.stack is None:
                continue
            config = self.vlm.cfg if parsed.stack == "text" else self.vlm.cfg.vision
            kernel = self.vlm.sites.kernels[parsed.stack].get(parsed.layer)
            keys = values[f"{parsed.stack}.{parsed.layer}.attn.k"].shape[1] if kernel else None
            n_pos = n_text if parsed.stack == "text" else value.shape[2 if parsed.has_rows else 1]
            batch = len(self.prompt) if parsed.stack == "text" else None
            expected = (batch, *_declared(parsed.site, config, n_pos, keys))
            found = tuple(value.shape)
            if len(found) != len(expected) or any(e not in (f, None) for f, e in zip(found, expected)):
                self._fail(name, f"shape {found}", f"{expected} (None is any)")
        logits, width = values["logits"], self.vlm.cfg.d_vocab
        if logits.shape[:2] != (len(self.prompt), n_text):
            self._fail("logits", f"shape {tuple(logits.shape)}", f"{(len(self.prompt), n_text, width)}")

    def _sizes(self, values: dict[str, Tensor]) -> None:
        """cfg's sizes of heads are those of some layer: layers may differ, a size that none has is wrong."""
        for stack, config in (("vision", self.vlm.cfg.vision), ("text", self.vlm.cfg)):
            found = {
                tuple(values[f"{stack}.{layer}.attn.k"].shape[2:]) for layer in self.vlm.sites.kernels[stack]
            }
            expected = (config.n_kv_heads, config.d_head)
            if expected not in found:
                self._fail(
                    f"{stack}.*.attn.k", f"(n_kv_heads, d_head) of {sorted(found)}", f"cfg's {expected}"
                )

    def _chain(self, values: dict[str, Tensor]) -> None:
        """What leaves a text layer enters the next one, at the words: no layer is missing between."""
        words = self.prompt.spans.mask("text").to(self.vlm.device)
        layers = self.vlm.cfg.n_layers
        stated = getattr(self.vlm._module.config.get_text_config(), "num_hidden_layers", layers)
        if stated != layers:
            self._fail("text", f"{layers} layers", f"{stated}, as the configuration says")
        for layer in range(1, layers):
            left, entered = values[f"text.{layer - 1}.resid_post"], values[f"text.{layer}.resid_pre"]
            what = f"text.{layer - 1}.resid_post at the words is"
            self._equal(f"text.{layer}.resid_pre", entered[words], left[words], what)

    def _residual_stream(self, values: dict[str, Tensor]) -> None:
        """The sums of every layer, those of them that its sites make."""
        for stack, config in (("vision", self.vlm.cfg.vision), ("text", self.vlm.cfg)):
            for layer in range(config.n_layers):
                part = {site: values.get(f"{stack}.{layer}.{site}") for site in LAYER_SITES}
                name = f"{stack}.{layer}.{{}}".format
                pre, mid, post = part["resid_pre"], part["resid_mid"], part["resid_post"]
                branches = part["attn_out"], part["mlp_out"]
                scale = self._scale(stack, layer)
                if mid is None:
                    total = pre + sum(branches)
                    self._equal(
                        name("resid_post"),
                        total,
                        post,
                        "resid_pre + attn_out + mlp_out is",
                        size=_largest(pre),
                    )
                    continue
                total = pre + branches[0]
                self._equal(name("resid_mid"), total, mid, "resid_pre + attn_out is", size=_largest(pre))
                total = mid + branches[1] if part["ple_out"] is None else mid + branches[1] + part["ple_out"]
                self._equal(
                    name("resid_post"), total * scale, post, "resid_mid + mlp_out is", size=_largest(mid)
                )

    def _heads(self, values: dict[str, Tensor]) -> None:
        for name, site in self.vlm.sites.items():
            if not isinstance(site, Result):
                continue
            stem = name.removesuffix("attn.result")
            z = values[f"{stem}attn.z"]
            total = site.map.total(values[name], z)
            size = max(_largest(values[name]), _largest(values[f"{stem}attn_out"]))
            self._equal(name, total, values[f"{stem}attn_out"], "Σ over heads + bias is", size=size)

    def _scale(self, stack: str, layer: int) -> float | Tensor:
        """What a layer multiplies its whole output by, where it does (Gemma 4)."""
        parts = self.vlm.family.text(self.vlm._module) if stack == "text" else None
        return 1.0 if parts is None else getattr(parts.layers[layer], "layer_scalar", 1.0)

    def _image(self, values: dict[str, Tensor]) -> None:
        """The image's tokens enter the text model as the projector's features, in order.

        A family that packs tiles leaves some features out and puts row ends between them: there each
        token that has a place is one of the features.
        """
        if self.prompt.cross is not None:
            name = next(n for n in values if n.endswith("attn.k") and self._crosses(n))
            n_keys, expected = values[name].shape[1], self.prompt.cross.length
            if n_keys != expected:
                self._fail(name, f"{n_keys} image keys", f"{expected}, as the grid counts them")
            return
        entered = values["text.embed"][self.prompt.spans.mask("image")]
        features = values["projector.out"].flatten(0, -2)
        if features.shape[-1] != entered.shape[-1]:
            self._fail("projector.out", f"width {features.shape[-1]}", f"{entered.shape[-1]}, as text.embed")
        placed = self.prompt.grids[0].placed.to(entered.device)
        if not self.vlm.family.packs:
            if len(features) != len(entered):
                self._fail(
                    "projector.out", f"{len(features)} features", f"{len(entered)}, one an image token"
                )
            self._equal("projector.out", features, entered, "text.embed at the image's tokens is")
        elif placed.any():
            nearest = torch.cdist(entered[placed].float(), features.float()).argmin(1)
            self._equal("projector.out", features[nearest], entered[placed], "text.embed at placed tokens is")

    def _crosses(self, name: str) -> bool:
        parsed = Name.parse(name)
        return parsed.stack == "text" and self.vlm.sites.kernels["text"][parsed.layer].cross

    def _rows(self, stack: str, values: dict[str, Tensor]) -> None:
        layers = list(self.vlm.sites.kernels[stack])
        for layer in sorted({layers[0], layers[(len(layers) - 1) // 2], layers[-1]}):
            name = f"{stack}.{layer}.attn.pattern"
            pattern, v = values[name], values[f"{stack}.{layer}.attn.v"]
            v = v.float().repeat_interleave(pattern.shape[1] // v.shape[2], dim=2)
            z = torch.einsum("bhqk,bkhd->bqhd", pattern, v)
            kernels = self.given[f"{stack}.{layer}.attn"]
            self._equal(name, z, kernels, "pattern · v is the kernel's output,", size=_largest(v))
            self._equal(name, pattern.sum(-1), torch.ones_like(pattern[..., 0]), "rows sum to")
            masked = values[f"{stack}.{layer}.attn.scores"] <= torch.finfo(torch.float16).min
            # A row with nothing to see is uniform under some kernels: there no key is told from another.
            masked &= ~masked.all(-1, keepdim=True)
            if (worst := float(pattern[masked].abs().max()) if masked.any() else 0.0) > 0:
                self._fail(name, f"weight {worst} on a masked key", "0")

    def _writes(self, bare: Float[Tensor, "batch pos vocab"]) -> None:
        layer = self._middle()
        logits = self._traced(lambda view: setattr(view.attn, "pattern", view.attn.pattern.clone()), layer)
        self._equal(
            f"text.{layer}.attn.pattern", logits, bare, "after an identity write the logits are", scale=10
        )
        # In all layers: in one alone the last row may have nothing on the image, to half precision.
        cut = self.vlm.with_edits(Knockout(keys="image"))
        logits = cut.cache(self.prompt, "logits")["logits"]
        if torch.equal(logits[:, -1], bare[:, -1]):
            self._fail(
                f"text.{layer}.attn.pattern",
                "unmoved logits",
                "logits that move when the last row loses the image",
            )
        if self.vlm.last_unseen:
            self._equal(
                "logits", logits[:, :-1], bare[:, :-1], "before an edited last row the logits are", exact=True
            )
        site = "resid_mid" if f"text.{layer}.resid_mid" in self.vlm.sites else "attn_out"
        logits = self._traced(lambda view: setattr(view, site, -getattr(view, site)), layer)
        if torch.equal(logits, bare):
            self._fail(f"text.{layer}.{site}", "unmoved logits", f"logits that move when {site} is negated")

    def _middle(self) -> int:
        """The layer that is written to: one with attention, over image keys where some have no others."""
        layers = [
            layer
            for layer, kernel in self.vlm.sites.kernels["text"].items()
            if kernel.cross or self.prompt.cross is None
        ]
        return layers[len(layers) // 2]

    def _last_is_unseen(self, values: dict[str, Tensor]) -> bool:
        """Whether no earlier row has weight on the last token, in any layer that attends to tokens."""
        kernels = self.vlm.sites.kernels["text"]
        rows = (values[f"text.{layer}.attn.pattern"] for layer in kernels if not kernels[layer].cross)
        return all(bool((pattern[:, :, :-1, -1] == 0).all()) for pattern in rows)

    def _traced(self, write, layer: int) -> Tensor:
        kept = []
        with self.vlm.trace(self.prompt):
            write(self.vlm.text[layer])
            kept.append(self.vlm.logits)
        return kept[0]

    # -- verdicts --------------------------------------------------------------------------------

    def _equal(self, site, found, expected, what, *, exact=False, scale=1.0, size=0.0) -> None:
        """``size`` is the largest value that went in, where what came out may be smaller."""
        if found.shape != expected.shape:
            self._fail(site, f"shape {tuple(found.shape)}", f"{what} {tuple(expected.shape)}")
        if exact and torch.equal(found, expected):
            return
        error = float((found.float() - expected.float()).abs().max())
        allowed = 0.0 if exact else scale * self.tolerance * max(size, _largest(expected))
        if not error <= allowed:
            self._fail(site, f"an error of {error:.2e}", f"{what} equal within {allowed:.1e}")

    def _fail(self, site: str, found: str, expected: str) -> None:
        raise FamilyContractError(
            f"family {self.vlm.cfg.family!r} does not fit this {type(self.vlm._module).__name__}: "
            f"at {site!r} found {found}, expected {expected}"
        )


def _largest(values: Tensor) -> float:
    return float(values.float().abs().max())


def _declared(
    site: str, config: StackConfig | Config, n_pos: int, n_keys: int | None
) -> tuple[int | None, ...]:
    """The shape of a site behind its batch axis; None where it is free (heads may differ by layer)."""
    if site in ROW_SITES:
        return config.n_heads, n_pos, n_keys
    if site in ("attn.k", "attn.v"):
        return n_keys, None, None
    if site in ("attn.q", "attn.z"):
        return n_pos, config.n_heads, None
    if site == "attn.result":
        return n_pos, config.n_heads, config.d_model
    return n_pos, None if site == "mlp.post" else config.d_model


def _small_prompt(vlm: VLM) -> Prompt:
    """A small oblong picture of noise, and a few words that the tokenizer knows."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    try:
        return vlm.prompt(image, "What is in the picture?")
    except BadPrompt:
        words = [word for word in sorted(vlm.processor.tokenizer.get_vocab()) if word.isalpha()]
        return vlm.prompt(image, " ".join(words[:4]))
