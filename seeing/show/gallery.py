"""The gallery: which samples a report shows, and each as the plain data that the page draws.

Samples are drawn in turn from every outcome, so that the rare ones are there to be looked at; their mix is
therefore not the mix of the split, and the page says so.
"""

from dataclasses import dataclass

from seeing.show.pictures import map_uri, picture_uri
from seeing.study.result import DemoResult, GalleryItem

MOST_ITEMS = 48
# What pictures and maps may take together, as characters of the page.
MOST_CHARACTERS = 2_700_000
LONGEST_TEXT = 400

OUTCOMES = ("fixed", "broken", "both right", "both wrong")


@dataclass(frozen=True)
class Answer:
    """What one method said of one sample."""

    method: str
    text: str
    correct: bool


@dataclass(frozen=True)
class Map:
    """One map, ready to be laid over its image. `coarse` maps are token grids and keep their hard edges."""

    name: str
    uri: str
    coarse: bool


@dataclass(frozen=True)
class Rect:
    """A box in pixels of the original image, for SVG."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Card:
    """One sample of the gallery, ready for the template, which escapes every text."""

    number: int
    sample: str
    question: str
    truth: str
    answers: tuple[Answer, ...]
    outcome: str
    seen: bool
    width: int
    height: int
    picture: str
    maps: tuple[Map, ...]
    boxes: tuple[Rect, ...]
    region: Rect | None


def outcome(item: GalleryItem, base: str, method: str) -> str:
    """What became of the base's answer under the method: one of OUTCOMES."""
    before, after = item.correct[base], item.correct[method]
    if before == after:
        return "both right" if before else "both wrong"
    return "broken" if before else "fixed"


def chosen(result: DemoResult) -> list[GalleryItem]:
    """At most MOST_ITEMS samples, one in turn from each outcome × seen, in the order given within each."""
    groups: dict[tuple[str, bool], list[GalleryItem]] = {}
    for item in result.gallery:
        key = outcome(item, result.base.method, result.rule.method), item.seen
        groups.setdefault(key, []).append(item)
    queues = [groups[key] for key in sorted(groups, key=lambda key: (OUTCOMES.index(key[0]), not key[1]))]
    turns = (
        queue[turn]
        for turn in range(max(map(len, queues), default=0))
        for queue in queues
        if turn < len(queue)
    )
    return [item for item, _ in zip(turns, range(MOST_ITEMS), strict=False)]


def cards(result: DemoResult) -> tuple[Card, ...]:
    """The chosen samples, as many as fit in MOST_CHARACTERS."""
    made: list[Card] = []
    room = MOST_CHARACTERS
    for item in chosen(result):
        card = _card(item, len(made) + 1, result)
        room -= len(card.picture) + sum(len(one.uri) for one in card.maps)
        if room < 0:
            break
        made.append(card)
    return tuple(made)


def clean(text: str, longest: int = LONGEST_TEXT) -> str:
    """Text from a model or a data set, cut and fit for UTF-8; the template escapes it."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= longest else f"{text[:longest]} … ({len(text) - longest} more characters)"


def _card(item: GalleryItem, number: int, result: DemoResult) -> Card:
    width, height = item.image.size
    maps = {"where it looked": item.heat, **item.maps}
    return Card(
        number=number,
        sample=clean(item.sample),
        question=clean(item.question),
        truth=clean(" / ".join(item.truth)),
        answers=tuple(Answer(name, clean(text), item.correct[name]) for name, text in item.answers.items()),
        outcome=outcome(item, result.base.method, result.rule.method),
        seen=item.seen,
        width=width,
        height=height,
        picture=picture_uri(item.image),
        maps=tuple(Map(name, map_uri(heat), max(heat.shape) <= 32) for name, heat in maps.items()),
        boxes=tuple(_rect(box) for box in item.boxes),
        region=_rect(item.region) if item.region else None,
    )


def _rect(box: tuple[float, float, float, float]) -> Rect:
    x0, y0, x1, y1 = map(float, box)
    return Rect(x0, y0, x1 - x0, y1 - y0)
