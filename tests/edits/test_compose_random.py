"""Random lists of edits against a plain Llama written out: a loop over layers, every edit by its formula.

The reference holds all rows at once, those of the prompt and those of the decoded tokens, so that an edit
"at step t" is an edit of some rows. Of a selection it knows a tree of tuples, not the selector made of it.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny.hand import close

from seeing import edits as E
from seeing.data.plates import plates

LAYERS, HEADS, WIDTH, STEPS = 6, 4, 128, 3
QUESTIONS = ("what digit is on the red square ?", "what digit is on the blue circle on the red square ?")
SIZES = ((100, 84), (76, 112))
BOXES = ((20.0, 12.0, 60.0, 80.0),)
GENERATED = dict(
    max_new_tokens=STEPS,
    min_new_tokens=STEPS,
    do_sample=False,
    suppress_tokens=[4],
    output_logits=True,
    return_dict_in_generate=True,
)
RANDOM = settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

# ---- selections --------------------------------------------------------------------------------------------

LEAVES = ("image", "question", "template", "text", "last", "all", "answer", "box", (-1, -4), (-2,))


def selections() -> st.SearchStrategy:
    """Trees of names, positions and a box."""
    return st.recursive(
        st.sampled_from(LEAVES),
        lambda part: st.one_of(st.tuples(st.sampled_from("&|"), part, part), st.tuples(st.just("~"), part)),
        max_leaves=3,
    )


def as_selector(tree: Any) -> Any:
    if tree == "box":
        return E.Boxes(BOXES)
    if isinstance(tree, str):
        return E.Span(tree)
    if tree[0] == "~":
        return ~as_selector(tree[1])
    if tree[0] in ("&", "|"):
        left, right = map(as_selector, tree[1:])
        return left & right if tree[0] == "&" else left | right
    return E.Positions((tree,))


@dataclass
class Run:
    """A prompt and what was decoded behind it, as masks of all positions."""

    spans: dict[str, torch.Tensor]
    length: int

    @property
    def total(self) -> int:
        return self.length + STEPS - 1

    def mask(self, tree: Any, step: int) -> torch.Tensor:
        """(batch, position) in a step; those that come later are hidden by the mask anyway."""
        place = torch.arange(self.total).expand(len(self.spans["image"]), -1)
        if tree in self.spans:
            return torch.nn.functional.pad(self.spans[tree], (0, STEPS - 1))
        if isinstance(tree, str):
            newest = self.length - 1 + step
            return {"last": place == newest, "all": place >= 0, "answer": place >= self.length}[tree]
        if tree[0] == "~":
            return ~self.mask(tree[1], step)
        if tree[0] in ("&", "|"):
            left, right = (self.mask(part, step) for part in tree[1:])
            return left & right if tree[0] == "&" else left | right
        return torch.stack([place == self.length + back for back in tree]).any(0)

    def of_step(self, step: int) -> torch.Tensor:
        """Rows of a step: the prompt's in step 0, then one each."""
        place = torch.arange(self.total)
        return (place < self.length) if step == 0 else (place == self.length - 1 + step)


# ---- edits -------------------------------------------------------------------------------------------------


@dataclass
class Drawn:
    """An edit, and its formula: ``fn`` of values; of rows, also of keys and of what is seen."""

    edit: E.Edit
    part: str
    layers: tuple[int, ...]
    rows: Any
    steps: tuple[int, ...]
    fn: Callable
    keys: Any = None
    heads: dict[int, list[int]] | None = None

    def chosen(self, run: Run, step: int) -> torch.Tensor:
        return run.mask(self.rows, step) & run.of_step(step)


WHENS = {"both": (0, 1, 2), "prompt": (0,), "decode": (1, 2), range(1, 2): (1,), 2: (2,), range(0, 2): (0, 1)}
WHERE = [
    ("all", tuple(range(LAYERS))),
    ("deep", (3, 4, 5)),
    (1, (1,)),
    ((0, 4), (0, 4)),
    (slice(3), (0, 1, 2)),
    (-1, (5,)),
]


def uniform(p, k, seen):
    mine = k & seen
    share = (p * mine).sum(-1, keepdim=True) / mine.sum(-1, keepdim=True).clamp_min(1)
    return torch.where(mine, share, p)


def scaled(factor, renormalize):
    def fn(p, k, seen):
        new = torch.where(k, factor * p, p)
        left = new.sum(-1, keepdim=True)
        whole = torch.where(left > 0, new * p.sum(-1, keepdim=True) / left, new)
        return whole if renormalize else new

    return fn


def moved_away(share):
    def fn(p, k, seen):
        rest = (p * ~k).sum(-1, keepdim=True)
        gone = share * (p * k).sum(-1, keepdim=True)
        return torch.where(rest > 0, torch.where(k, (1 - share) * p, p * (1 + gone / rest)), p)

    return fn


def flattened(scores):
    return 0.5 * scores


def squared(weights):
    return weights**2


#: Name -> (the edit of keys and a number, the part that it changes, the formula).
ROWS = {
    "Bias": (lambda k, x, w: E.Bias(keys=k, value=x, **w), "scores", lambda x: lambda s, k, _: s + x * k),
    "ScaleAttention": (
        lambda k, x, w: E.ScaleAttention(keys=k, gain=2**x, **w),
        "scores",
        lambda x: lambda s, k, _: s + x * math.log(2) * k,
    ),
    "Knockout": (
        lambda k, x, w: E.Knockout(keys=k, **w),
        "scores",
        lambda x: lambda s, k, _: s.masked_fill(k, -torch.inf),
    ),
    "Temperature": (
        lambda k, x, w: E.Temperature(keys=k, value=2**x, **w),
        "scores",
        lambda x: lambda s, k, _: torch.where(k, s / 2**x, s),
    ),
    "Amplify": (
        lambda k, x, w: E.Amplify(keys=k, share=x / 4, **w),
        "scores",
        lambda x: lambda s, k, _: torch.where(k, s * (1 + x / 4 * s.sign()), s),
    ),
    "MapScores": (
        lambda k, x, w: E.MapScores(flattened, keys=k, **w),
        "scores",
        lambda x: lambda s, k, _: torch.where(k, s / 2, s),
    ),
    "ScalePattern": (
        lambda k, x, w: E.ScalePattern(keys=k, factor=x**2, renormalize=x > 0, **w),
        "pattern",
        lambda x: scaled(x**2, x > 0),
    ),
    "SetPattern": (lambda k, x, w: E.SetPattern("uniform", keys=k, **w), "pattern", lambda x: uniform),
    "SetPattern, zero": (
        lambda k, x, w: E.SetPattern(0.0, keys=k, **w),
        "pattern",
        lambda x: lambda p, k, _: p * ~k,
    ),
    "Redistribute": (
        lambda k, x, w: E.Redistribute(k, E.maybe(~k), x / 4 + 0.5, **w),
        "pattern",
        lambda x: moved_away(x / 4 + 0.5),
    ),
    "MapPattern": (
        lambda k, x, w: E.MapPattern(squared, keys=k, **w),
        "pattern",
        lambda x: lambda p, k, _: torch.where(k, p**2, p),
    ),
}
FUNCTIONS = ("MapScores", "MapPattern")

VECTORS = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))


def rotated(x, v, strength):
    unit, to = x / x.norm(dim=-1, keepdim=True), v / v.norm()
    turned = unit + strength * (1 + (-(unit @ to)).clamp(min=0))[..., None] * to
    return x.norm(dim=-1, keepdim=True) * turned / turned.norm(dim=-1, keepdim=True)


def along(x, v):
    return (x @ v)[..., None] / (v @ v) * v


#: Name -> (the edit of a site by a vector and a number at positions, the formula).
STREAM = {
    "Steer": (lambda s, v, x, p, w: E.Steer(s, v, x, p, when=w), lambda v, x: lambda a: a + x * v),
    "Steer, norm preserving": (
        lambda s, v, x, p, w: E.Steer(s, v, x, p, when=w, norm_preserving=True),
        lambda v, x: (
            lambda a: (a + x * v) * a.norm(dim=-1, keepdim=True) / (a + x * v).norm(dim=-1, keepdim=True)
        ),
    ),
    "Rotate": (
        lambda s, v, x, p, w: E.Rotate(s, v, x, p, when=w),
        lambda v, x: lambda a: rotated(a, v, x),
    ),
    "ProjectOut": (
        lambda s, v, x, p, w: E.ProjectOut(s, v, p, when=w),
        lambda v, x: lambda a: a - along(a, v),
    ),
    "SetResidual": (
        lambda s, v, x, p, w: E.SetResidual(s, v, p, when=w),
        lambda v, x: lambda a: v.expand_as(a),
    ),
}
SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
NUMBERS = st.sampled_from([-1.5, -0.5, 0.0, 0.75, 2.0])


@st.composite
def row_edits(draw: Callable, kinds: tuple[str, ...] = tuple(ROWS), heads: Any = None) -> Drawn:
    kind, number, when = draw(st.sampled_from(kinds)), draw(NUMBERS), draw(st.sampled_from(list(WHENS)))
    make, part, formula = ROWS[kind]
    keys, rows = draw(selections()), draw(st.one_of(st.just("last"), selections()))
    if heads is None:
        heads = draw(st.sampled_from([None, {1: [0, 2], 4: [3]}, {0: [1], 5: [1, 2]}]))
    where, layers = draw(st.sampled_from(WHERE)) if heads is None else ("all", tuple(heads))
    place = dict(queries=E.maybe(as_selector(rows)), layers=where, heads=heads, when=when)
    edit = make(E.maybe(as_selector(keys)), number, place)
    return Drawn(edit, part, layers, rows, WHENS[when], formula(number), keys, heads)


@st.composite
def head_edits(draw: Callable) -> Drawn:
    heads = draw(st.sampled_from([{0: [0], 3: [1, 2]}, {5: [3]}, {2: [0, 1, 2, 3]}]))
    rows, when = draw(selections()), draw(st.sampled_from(list(WHENS)))
    place = dict(positions=E.maybe(as_selector(rows)), when=when)
    kind, number = draw(st.sampled_from(["ablate", "scale", "set"])), draw(NUMBERS)
    edit, fn = {
        "ablate": (E.AblateHeads(heads, **place), torch.zeros_like),
        "scale": (E.ScaleHeads(heads, number, **place), lambda z: number * z),
        "set": (E.SetHeads(heads, number, **place), lambda z: torch.full_like(z, number)),
    }[kind]
    return Drawn(edit, "z", tuple(heads), rows, WHENS[when], fn, heads=heads)


@st.composite
def site_edits(draw: Callable) -> Drawn:
    kind, number = draw(st.sampled_from(list(STREAM))), draw(NUMBERS)
    site, layer, rows = draw(st.sampled_from(SITES)), draw(st.integers(0, LAYERS - 1)), draw(selections())
    vector, when = VECTORS[draw(st.integers(0, 2))], draw(st.sampled_from(list(WHENS)))
    make, formula = STREAM[kind]
    edit = make(f"text.{layer}.{site}", vector, number, E.maybe(as_selector(rows)), when)
    return Drawn(edit, site, (layer,), rows, WHENS[when], formula(vector, number))


ANY = st.one_of(row_edits(), row_edits(), head_edits(), site_edits())
SAVED = st.one_of(
    row_edits(tuple(kind for kind in ROWS if kind not in FUNCTIONS)), head_edits(), site_edits()
)


# ---- the reference -----------------------------------------------------------------------------------------


class Reference:
    """A LLaVA's Llama, layer by layer, from the embeddings of a prompt."""

    def __init__(self, bare):
        self.llama, self.head = bare.model.model.language_model, bare.model.lm_head

    def __call__(self, x: torch.Tensor, real: torch.Tensor, run: Run, drawn: list[Drawn]) -> torch.Tensor:
        self.run, self.drawn = run, drawn
        for number, layer in enumerate(self.llama.layers):
            x = self.edited("resid_pre", number, x)
            x = x + self.edited("attn_out", number, self.attention(number, layer, x, real))
            x = self.edited("resid_mid", number, x)
            normed = self.norm(layer.post_attention_layernorm, x)
            gate = torch.nn.functional.silu(normed @ layer.mlp.gate_proj.weight.T)
            mlp = (gate * (normed @ layer.mlp.up_proj.weight.T)) @ layer.mlp.down_proj.weight.T
            x = self.edited("resid_post", number, x + self.edited("mlp_out", number, mlp))
        return self.norm(self.llama.norm, x) @ self.head.weight.T

    @staticmethod
    def norm(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return module.weight * x / (x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon).sqrt()

    def attention(self, number: int, layer: torch.nn.Module, x: torch.Tensor, real: torch.Tensor):
        attn, place = layer.self_attn, torch.arange(x.shape[1])
        x = self.norm(layer.input_layernorm, x)
        q, k, v = (
            (x @ one.weight.T).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for one in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        angles = place[:, None] / 10000 ** (torch.arange(0, 32, 2) / 32)
        turn = torch.polar(torch.ones_like(angles), angles)
        q, k = (
            torch.view_as_complex(torch.stack(one.chunk(2, -1), -1).contiguous()) * turn for one in (q, k)
        )
        scores = (q @ k.transpose(-1, -2).conj()).real / math.sqrt(32)
        seen = ((place <= place[:, None]) & real[:, None, None, :]).expand_as(scores)
        scores = self.rows("scores", number, scores.masked_fill(~seen, -torch.inf), seen)
        # What cuts left over; a row without a key writes nothing.
        seen = scores > -torch.inf
        pattern = self.rows("pattern", number, scores.softmax(-1).nan_to_num(0), seen)
        z = self.heads(number, (pattern @ v).transpose(1, 2))
        return z.flatten(2) @ attn.o_proj.weight.T

    def each(self, part: str, number: int):
        for one in self.drawn:
            if one.part == part and number in one.layers:
                for step in one.steps:
                    yield one, step, one.chosen(self.run, step)

    def rows(self, part: str, number: int, value: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        for one, step, chosen in self.each(part, number):
            keys = self.run.mask(one.keys, step)[:, None, None, :]
            new = one.fn(value, keys, seen)
            if part == "scores":
                new = new.masked_fill(value == -torch.inf, -torch.inf)
            heads = torch.zeros(HEADS, dtype=torch.bool)
            heads[list(range(HEADS)) if one.heads is None else one.heads[number]] = True
            value = torch.where(chosen[:, None, :, None] & heads[None, :, None, None], new, value)
        return value

    def heads(self, number: int, z: torch.Tensor) -> torch.Tensor:
        for one, _, chosen in self.each("z", number):
            for head in one.heads[number]:
                z = z.clone()
                z[:, :, head] = torch.where(chosen[..., None], one.fn(z[:, :, head]), z[:, :, head])
        return z

    def edited(self, site: str, number: int, x: torch.Tensor) -> torch.Tensor:
        for one, _, chosen in self.each(site, number):
            x = torch.where(chosen[..., None], one.fn(x), x)
        return x


@pytest.fixture(scope="module")
def prompt(random):
    """Two rows, one padded, pictures of other sizes."""
    pictures = [
        plate.image.resize(size, Image.Resampling.BICUBIC) for plate, size in zip(plates("crowded", 2), SIZES)
    ]
    made = random.prompts(list(zip(pictures, QUESTIONS)))
    assert not made.inputs["attention_mask"].all()
    return made


@pytest.fixture(scope="module")
def run(prompt):
    spans = {name: prompt.spans.mask(name) for name in ("image", "question", "template", "text")}
    box = torch.zeros_like(spans["image"])
    for row, grid in enumerate(prompt.grids):
        box[row, grid.positions[torch.as_tensor(grid.labels(BOXES))]] = True
    return Run({**spans, "box": box}, prompt.length)


@pytest.fixture(scope="module")
def embedded(bare, prompt):
    """What goes into the bare model's first layer."""
    kept = []
    hook = bare.model.model.language_model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: kept.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        bare.model(**prompt.inputs)
    hook.remove()
    return kept[0]


def reference(bare, embedded, prompt, run, drawn, ids):
    """(batch, row, d_vocab) over the prompt and all decoded tokens but the last."""
    decoded = bare.model.get_input_embeddings()(ids[:, :-1])
    real = torch.nn.functional.pad(prompt.inputs["attention_mask"].bool(), (0, STEPS - 1), value=True)
    with torch.no_grad():
        return Reference(bare)(torch.cat([embedded, decoded], 1), real, run, drawn)


def generated(vlm, prompt):
    with torch.no_grad(), vlm.generate(prompt, **GENERATED) as tracer:
        result = tracer.result.save()
    return result.sequences[:, -STEPS:], torch.stack(result.logits, 1)


# ---- what holds --------------------------------------------------------------------------------------------


def test_the_reference_is_the_bare_model(bare, embedded, prompt, run):
    ids = torch.tensor([[7, 8, 9]] * 2)
    found = reference(bare, embedded, prompt, run, [], ids)[:, : prompt.length]
    real = prompt.inputs["attention_mask"].bool()
    with torch.no_grad():
        close(found[real], bare.model(**prompt.inputs).logits[real], 2e-5)


@RANDOM
@given(drawn=st.lists(ANY, min_size=1, max_size=5))
def test_random_edits_are_the_references(random, bare, embedded, prompt, run, drawn):
    """The prompt pass in every row, and three steps of decoding."""
    edited = random.with_edits(E.Edits(tuple(one.edit for one in drawn)))
    ids, logits = generated(edited, prompt)
    expected = reference(bare, embedded, prompt, run, drawn, ids)
    close(logits, expected[:, prompt.length - 1 :])
    real = prompt.inputs["attention_mask"].bool()
    close(edited.cache(prompt, "logits")["logits"][real], expected[:, : prompt.length][real])


@pytest.mark.parametrize("kind", ["Bias", "Temperature", "Amplify", "MapScores"])
def test_what_is_cut_stays_cut(random, prompt, kind):
    cut = E.Knockout(keys="image")
    # A cosine of −∞ is no number.
    behind = E.MapScores(torch.cos, keys="image") if kind == "MapScores" else ROWS[kind][0]("image", 2.0, {})
    alone, both = (random.with_edits(some).cache(prompt, "logits")["logits"] for some in (cut, cut + behind))
    assert torch.equal(alone, both)


@settings(RANDOM, max_examples=15)
@given(data=st.data())
def test_edits_of_different_heads_commute(random, prompt, data):
    """Whatever they do, wherever they do it: in any order the same, bit for bit."""
    drawn = [data.draw(row_edits(heads={layer: [head] for layer in (0, 3, 5)})) for head in range(HEADS)]
    edits = [one.edit for one in drawn]
    straight, reverse = (
        random.with_edits(E.Edits(tuple(some))).cache(prompt, "logits")["logits"]
        for some in (edits, edits[::-1])
    )
    assert torch.equal(straight, reverse)


@RANDOM
@given(drawn=st.lists(row_edits(), min_size=2, max_size=4))
def test_a_repr_is_the_expression_that_made_it(drawn):
    edits = sum(one.edit for one in drawn if not isinstance(one.edit, (E.MapScores, E.MapPattern)))
    if edits == 0:
        return
    again = eval(repr(edits), vars(E))
    again, edits = (E.Edits() + one for one in (again, edits))
    assert again == edits
    assert hash(again) == hash(edits)
    assert replace(edits, edits=edits.edits[:-1]) != edits


@RANDOM
@given(drawn=st.lists(SAVED, min_size=1, max_size=4))
def test_edits_come_back_from_json_as_they_were(drawn):
    edits = E.Edits(tuple(one.edit for one in drawn))
    again = E.from_json(edits.to_json())
    assert again == edits
    assert hash(again) == hash(edits)
    assert repr(again) == repr(edits)


JUNK = st.sampled_from([None, True, -7, 1e400, "nothing", "", [], {}, [None], {"kind": "Path"}, [[1]], ["a"]])


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Every place in a document."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        found += places(part, (*path, key))
    return found


@RANDOM
@given(drawn=st.lists(SAVED, min_size=1, max_size=2), data=st.data())
def test_broken_json_raises_bad_edit(drawn, data):
    """Cut off, or with junk in any place: `BadEdit`, unless it means an edit there too."""
    text = sum(one.edit for one in drawn).to_json()
    with pytest.raises(E.BadEdit):
        E.from_json(text[: data.draw(st.integers(1, len(text) - 1))])
    document = json.loads(text)
    *path, last = data.draw(st.sampled_from(places(document)))
    inner = document
    for key in path:
        inner = inner[key]
    inner[last] = data.draw(JUNK)
    broken = json.dumps(document)
    try:
        found = E.from_json(broken)
    except E.BadEdit:
        return
    assert isinstance(found, (E.Edit, E.Edits))
    assert E.from_json(found.to_json()) == found
