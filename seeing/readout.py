"""Reading several names in one pass: which rows of each, and what is kept of them."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from seeing.names import Name, UnknownName, expand
from seeing.prompt import BadPrompt, Prompt
from seeing.queries import Queries, positions
from seeing.sitemap import SiteMap
from seeing.sites import Derived, Site


def rows_of(
    prompt: Prompt, queries: Queries, device: torch.device
) -> Int[Tensor, " rows"] | Int[Tensor, "batch rows"] | None:
    """``queries`` as positions: None for all, one set for the batch, or one an item."""
    if isinstance(queries, str) and queries not in ("all", "last"):
        queries = prompt.spans.mask(queries)
    elif isinstance(queries, str) and queries == "last" and prompt.answers:
        queries = prompt.n_asked - 1
    return positions(queries, prompt.length, device)


def names_to_read(
    names: str | Iterable[str], sites: SiteMap, n_layers: int, stop: int | None = None
) -> list[str]:
    """The names asked for, in the order of a pass that stops before text layer ``stop``.

    A negative ``stop`` counts from the end. Raises `UnknownName` for a name that the model lacks, or that
    such a pass does not reach.
    """
    if stop is None:
        return expand(names, list(sites), sites.absent)
    if not -n_layers <= stop <= n_layers:
        raise ValueError(f"stop_at_layer={stop}: the text stack has {n_layers} layers")
    first_out = Name("resid_pre", "text", stop if stop >= 0 else stop + n_layers)
    reached = [name for name in sites if Name.parse(name) < first_out]
    try:
        return expand(names, reached, sites.absent)
    except UnknownName as error:
        raise UnknownName(f"{error}; the pass stops before layer {first_out.layer} of the text") from None


class Readout:
    """Names to read in one pass. ``run`` is called in a trace, with a mapping to fill.

    ``grad`` puts what is read on the path to what follows, so that it can be differentiated by it.
    """

    def __init__(
        self,
        sites: Mapping[str, Site],
        prompt: Prompt,
        names: Sequence[str],
        queries: Queries,
        runs_on: torch.device,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        grad: bool = False,
    ):
        self.sites, self.grad = sites, grad
        self.kept = dict(device=device, dtype=dtype)
        rows = rows_of(prompt, queries, runs_on)
        tower = [name for name in names if Name.parse(name).has_rows and name.startswith("vision.")]
        if tower and isinstance(queries, str) and queries not in ("all", "last"):
            raise BadPrompt(
                f"{queries!r} names positions of the text, the rows of {tower[0]!r} are the tower's own "
                f"tokens; read them with queries='all', 'last' or positions, apart from the text's"
            )
        # How many tokens the tower has is known when it runs.
        own = functools.partial(positions, queries, device=runs_on)
        self.rows = {name: own if name in tower else rows for name in names}

    def run(self, values: dict[str, Any]) -> None:
        for name, rows in self.rows.items():
            if name in values:
                continue
            if self.grad:
                values.update(self._on_the_path(name, rows, self.rows))
                continue
            site = self.sites[name]
            value = site.rows(rows) if Name.parse(name).has_rows else site.read()
            # What is served is live: a later edit or in-place sum would change it. What is derived is new.
            values[name] = value.to(**self.kept, copy=not isinstance(site, Derived))

    def _on_the_path(self, name: str, rows: Any, wanted: Iterable[str]) -> dict[str, Tensor]:
        """A value that the run goes on from; scores and pattern of one layer together."""
        site = self.sites[name]
        if Name.parse(name).has_rows:
            stem = name.rsplit(".", 1)[0]
            both = dict(zip((f"{stem}.scores", f"{stem}.pattern"), site.threaded(rows)))
            found = {one: value for one, value in both.items() if one in wanted}
        else:
            found = {name: site.threaded()}
        return {one: value.to(**self.kept) for one, value in found.items()}
