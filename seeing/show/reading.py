"""The report's prose, written from the numbers of the run at hand: it claims what they show, nothing else.

The best of several methods is a choice made after looking, so the reading counts how many of them differ from
base after Holm's correction before it names one.
"""

import math

from seeing.spell import interval, p_equals, percent, points, points_interval
from seeing.stats import holm
from seeing.study.result import DemoResult, MethodRow, Rule

LEVEL = 0.05


def reading(result: DemoResult) -> tuple[str, str]:
    """Two sentences: what the model saw when it was wrong, and what emphasis on what it saw changed."""
    return _saw(result), _changed(result)


def _saw(result: DemoResult) -> str:
    base, seen = result.base, result.wrong_seen
    start = (
        f"{result.model} answers {percent(base.accuracy)} of {result.n:,} samples of the split "
        f"“{result.split}” correctly ({interval(base.low, base.high)})"
    )
    if seen.n == 0:
        return f"{start}; it gives no wrong answer, so nothing can be said about what wrong answers saw."
    answers = "wrong answer" if seen.n == 1 else "wrong answers"
    return (
        f"{start}; in {percent(seen.value)} of its {seen.n:,} {answers} ({interval(seen.low, seen.high)}) "
        "the region that it looked at most lies on the evidence."
    )


def _changed(result: DemoResult) -> str:
    rows = [row for row in result.table if row.acts_on == "own"]
    if not rows:
        return (
            "No method of this run acts on the region the model looked at: what emphasis changes stays open."
        )
    adjusted = holm([row.p for row in rows])
    sure = [row for row, p in zip(rows, adjusted, strict=True) if p < LEVEL]
    up = sorted((row for row in sure if row.delta > 0), key=lambda row: -row.delta)
    down = sorted((row for row in sure if row.delta < 0), key=lambda row: row.delta)
    if up:
        named, what = up[0], "the largest gain" if len(up) > 1 else "the gain"
    elif down:
        named, what = down[0], "the largest loss" if len(down) > 1 else "the loss"
    else:
        named, what = max(rows, key=lambda row: abs(row.delta)), "the largest difference"
    verdict, sign = _verdict(len(rows), len(up), len(down)), "<" if sure else "≥"
    return (
        f"{verdict} (p {sign} {LEVEL} after Holm's correction); "
        f"{what} is {_effect(named)}{_control(result, named)}."
    )


def _verdict(rows: int, up: int, down: int) -> str:
    """How many of the methods raise accuracy and how many lower it: the second sentence's main clause."""
    region = "the region the model looked at"
    if rows == 1:
        verb = "raises" if up else "lowers" if down else "doesn't measurably change"
        return f"The one method that emphasises {region} {verb} accuracy"
    if not up and not down:
        return f"None of the {rows} methods that emphasise {region} measurably changes accuracy"
    raising = f"{up or 'none'} {'raise' if up > 1 else 'raises'} accuracy"
    lowering = f" and {down} {'lower' if down > 1 else 'lowers'} it" if down else ""
    return f"Of the {rows} methods that emphasise {region}, {raising}{lowering}"


def _effect(row: MethodRow) -> str:
    return (
        f"{row.method} with {points(row.delta)} points ({points_interval(row.delta_low, row.delta_high)}; "
        f"{row.fixed} fixed, {row.broken} broken, {p_equals(row.p)})"
    )


def _control(result: DemoResult, best: MethodRow) -> str:
    """The same channel on a random region: a gain that it has too can't be laid to where the model looked."""
    controls = [row for row in result.table if row.acts_on == "random" and row.through == best.through]
    if not controls:
        return ""
    control = max(controls, key=lambda row: row.delta)
    matched = best.delta > 0 and control.delta >= best.delta
    return (
        f", where a random region through the same channel gives {points(control.delta)} "
        f"({p_equals(control.p)})" + (", no less than the model's own" if matched else "")
    )


def rule_verdict(rule: Rule, row: MethodRow) -> str:
    """What the rule says for these numbers, beside what the method did."""
    if math.isnan(rule.fix_rate) and math.isnan(rule.break_rate):
        return "Neither of the rule's two cells holds a sample, so it says nothing here."
    side, word = ("more", "a gain") if rule.predicts_gain else ("not more", "no gain")
    gain, loss = (points(value).lstrip("+") for value in (rule.gain, rule.loss))
    return (
        f"{gain} points is {side} than {loss} points, so the rule expects {word}; {rule.method} in fact "
        f"changed accuracy by {points(row.delta)} points ({points_interval(row.delta_low, row.delta_high)}), "
        "the two cells that the rule leaves out included."
    )


def quadrants(result: DemoResult) -> dict[str, float]:
    """P(seen or not & right or wrong) of the base: the four shares sum to 1 (none below 0)."""
    right, rule = result.base.accuracy, result.rule
    return {
        "seen right": max(0.0, right - rule.unseen_right),
        "seen wrong": rule.seen_wrong,
        "unseen right": rule.unseen_right,
        "unseen wrong": max(0.0, 1 - right - rule.seen_wrong),
    }
