"""Kubernetes quantities and byte counts.

Source: the quantity serialization format of the Kubernetes API (resource.Quantity).
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal

from dbranch.api.errors import InvalidInput

_PATTERN = re.compile(r"^([+-]?[0-9.]+)([eE][+-]?[0-9]+|[numkKMGTPE]i?|)$")
_SUFFIX: dict[str, Decimal] = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}


def parse_quantity(text: str | int) -> Decimal:
    """Parse a quantity: a CPU count, bytes or any other amount. Raises InvalidInput.

    >>> parse_quantity("500m")
    Decimal('0.500')
    """
    match = _PATTERN.match(str(text))
    if match is None:
        raise InvalidInput(f"{text!r} is not a quantity; write it as 512Mi, 10Gi or 2Ti")
    number, suffix = match.groups()
    try:
        if suffix[:1] in ("e", "E") and len(suffix) > 1 and suffix != "Ei":
            return Decimal(number + suffix)
        return Decimal(number) * _SUFFIX[suffix]
    except (ArithmeticError, KeyError) as error:
        raise InvalidInput(f"{text!r} is not a quantity; write it as 512Mi, 10Gi or 2Ti") from error


def parse_bytes(text: str | int) -> int:
    """Parse a quantity into bytes, rounded up as the API server does. Raises InvalidInput.

    >>> parse_bytes("10Gi")
    10737418240
    """
    return int(parse_quantity(text).to_integral_value(rounding=ROUND_CEILING))


def format_bytes(count: int) -> str:
    """Format bytes for people: at most three significant digits and a binary suffix.

    >>> format_bytes(0), format_bytes(38_797_312), format_bytes(41_983_942_656)
    ('0', '37Mi', '39.1Gi')
    """
    if count < 1024:
        return str(count)
    value, suffixes = float(count), ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"]
    suffix = suffixes.pop(0)
    value /= 1024
    while value >= 1023.5 and suffixes:
        value, suffix = value / 1024, suffixes.pop(0)
    text = f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
    return text.removesuffix(".0") + suffix


def parse_seconds(text: str | int | float) -> float:
    """Parse a duration: `60s`, `2m`, `1m30s`, `500ms` or a plain number of seconds. Raises InvalidInput.

    >>> parse_seconds("1m30s"), parse_seconds("500ms")
    (90.0, 0.5)
    """
    if isinstance(text, int | float):
        return float(text)
    if not isinstance(text, str):
        raise InvalidInput(f"{text!r} is not a duration; write it as 500ms, 60s or 2m")
    remaining, total = text, 0.0
    while remaining:
        digits = len(remaining) - len(remaining.lstrip("0123456789."))
        number, tail = remaining[:digits], remaining[digits:]
        unit = next((u for u in ("ms", "s", "m", "h") if tail.startswith(u)), "")
        if unit == "m" and tail.startswith("ms"):
            unit = "ms"
        if not number or (not unit and (tail or total)):
            raise InvalidInput(f"{text!r} is not a duration; write it as 500ms, 60s or 2m")
        try:
            total += float(number) * {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}[unit]
        except ValueError as error:
            raise InvalidInput(f"{text!r} is not a duration; write it as 500ms, 60s or 2m") from error
        remaining = tail[len(unit) :]
    return total
