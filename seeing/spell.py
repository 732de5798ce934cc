"""Numbers as a reader wants them: percent, signed points, p values. One spelling for table and prose."""

import math

# Narrow no-break space before a unit, so that a line never breaks between the two.
THIN = "\u202f"


def percent(share: float, digits: int = 1) -> str:
    """A fraction of 0..1 as "69.8 %"; NaN as a dash."""
    return "–" if math.isnan(share) else f"{100 * share:.{digits}f}{THIN}%"


def interval(low: float, high: float, digits: int = 1) -> str:
    """Two fractions as "64.0–75.1 %", or "–" where one is NaN."""
    if math.isnan(low) or math.isnan(high):
        return "–"
    return f"{100 * low:.{digits}f}–{100 * high:.{digits}f}{THIN}%"


def value(number: float) -> str:
    """A plain number as "0.942"; NaN as a dash."""
    return "–" if math.isnan(number) else f"{number:.3f}"


def value_interval(mean: float, low: float, high: float) -> str:
    """A number with its interval as "0.942 (0.931–0.953)"; without one where that is NaN."""
    known = not (math.isnan(low) or math.isnan(high))
    return f"{value(mean)} ({value(low)}–{value(high)})" if known else value(mean)


def points(delta: float) -> str:
    """A difference of fractions as "+8.3", in percentage points, with a true minus sign."""
    rounded = f"{100 * delta:+.1f}"
    return "0.0" if rounded in ("+0.0", "-0.0") else rounded.replace("-", "−")


def points_interval(low: float, high: float) -> str:
    """The interval of a difference as "+3.1 to +9.8"."""
    return f"{points(low)} to {points(high)}"


def p_value(p: float) -> str:
    """ "0.031" down to 0.001, then "2 × 10⁻¹⁰"; a p too small for a float as "< 10⁻³⁰⁰"."""
    if p >= 0.001:
        return f"{p:.3f}" if p < 0.0995 else f"{p:.2f}"
    if p < 1e-300:
        return f"<{THIN}10⁻³⁰⁰"
    mantissa, exponent = f"{p:.0e}".split("e")
    return f"{mantissa}{THIN}×{THIN}10{_raised(int(exponent))}"


def p_equals(p: float) -> str:
    """A p value in a sentence: "p = 0.031"."""
    return f"p{THIN}{p_value(p)}" if p < 1e-300 else f"p{THIN}={THIN}{p_value(p)}"


def duration(seconds: float) -> str:
    """Wall time as "48 s" or "3 min 20 s"."""
    whole = round(seconds)
    return f"{whole}{THIN}s" if whole < 120 else f"{whole // 60}{THIN}min {whole % 60}{THIN}s"


def _raised(exponent: int) -> str:
    """An exponent in superscript digits."""
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
