"""How numbers are printed for people."""

from __future__ import annotations


def number(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, thousands grouped, a true minus sign."""
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{max(digits - 3, 0) if abs(value) >= 100 else 1}f}"
    else:
        text = f"{value:#.{digits}g}" if abs(value) >= 1e-4 else f"{value:.1e}"
    return text.rstrip(".").replace("-", "\u2212")


def percent(share: float) -> str:
    """A share as whole percents, with a digit more below 10."""
    return f"{100 * share:.1f}%" if 0 < abs(share) < 0.0995 else f"{100 * share:.0f}%"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
