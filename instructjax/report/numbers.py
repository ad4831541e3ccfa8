"""Numbers as a person reads them."""

from __future__ import annotations

import math

from instructjax.generalization.estimate import Estimate, decimals_for

MINUS = "\u2212"


def show_number(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, and a real minus sign.

    >>> show_number(-0.41234), show_number(12345.6), show_number(0.0), show_number(float("nan"))
    ('−0.412', '12,346', '0', '–')
    """
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if value == 0 or abs(value) < 1e-12:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{abs(value):,.{min(decimals, 6)}f}"
    return f"{MINUS}{text}" if value < 0 else text


def show_signed(value: float, digits: int = 3) -> str:
    """The same with a plus sign where it is one.

    >>> show_signed(0.0215)
    '+0.0215'
    """
    text = show_number(value, digits)
    return f"+{text}" if value > 0 and text not in ("0", "–") else text


def show_with_spread(value: float, half: float) -> str:
    """A number and half the width of its interval, to two digits of that.

    >>> show_with_spread(0.41321, 0.0612), show_with_spread(-1.5, float("inf"))
    ('0.413 ± 0.061', '−1.50 (no interval)')
    """
    if not math.isfinite(half):
        return f"{show_number(value)} (no interval)"
    if half <= 0:
        return f"{show_number(value)} (no variation)"
    decimals = decimals_for(half)
    sign = MINUS if round(value, decimals) < 0 else ""
    return f"{sign}{abs(value):,.{decimals}f} ± {half:,.{decimals}f}"


def show_estimate(estimate: Estimate) -> str:
    """The same of an estimate; where it has no interval, why.

    >>> ends = {"low": -math.inf, "high": math.inf}
    >>> show_estimate(Estimate(estimate=0.5, **ends, se=0.0, df=9.0, contrast="m0"))
    '0.500 (no variation)'
    """
    if math.isfinite(estimate.half_width):
        return show_with_spread(estimate.estimate, estimate.half_width)
    return f"{show_number(estimate.estimate)} ({estimate.why_unbounded})"


def show_interval(low: float, high: float) -> str:
    """Both ends, in brackets.

    >>> show_interval(-0.012, 0.3456), show_interval(-math.inf, math.inf)
    ('[−0.01, 0.35]', 'no interval')
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return "no interval"
    decimals = decimals_for((high - low) / 2)
    ends = (f"{MINUS if round(x, decimals) < 0 else ''}{abs(x):,.{decimals}f}" for x in (low, high))
    return f"[{', '.join(ends)}]"


def show_percent(share: float) -> str:
    """A share as per cent.

    >>> show_percent(0.1234), show_percent(0.0004), show_percent(1.0)
    ('12%', '<1%', '100%')
    """
    if 0 < share < 0.01:
        return "<1%"
    return f"{100 * share:.0f}%"


def show_tick(value: float) -> str:
    """A round number as an axis has it.

    >>> show_tick(-10.0), show_tick(0.05)
    ('−10', '0.05')
    """
    return f"{value:g}".replace("-", MINUS)
