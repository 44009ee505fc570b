"""Tables as aligned text and as Markdown, and numbers as people read them."""

from __future__ import annotations

from collections.abc import Sequence

Row = Sequence[str]


def aligned(header: Row, rows: Sequence[Row], left: Sequence[int] = (0,)) -> str:
    """A table in columns of equal width, numbers to the right; `left` are the columns of text."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    last = len(header) - 1

    def cell(text: str, i: int) -> str:
        if i not in left:
            return text.rjust(widths[i])
        return text if i == last else text.ljust(widths[i])

    return "\n".join("  ".join(cell(text, i) for i, text in enumerate(line)).rstrip() for line in lines)


def markdown(header: Row, rows: Sequence[Row], left: Sequence[int] = (0,)) -> str:
    """The same table in Markdown."""
    rule = ["---" if i in left else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows))


def count(value: float) -> str:
    """A count with a letter for thousands: 950, 12.3 k, 4.56 M."""
    for unit in ("", "k", "M", "G"):
        if abs(value) < 1000:
            return _three(value) + (f" {unit}" if unit else "") if unit else f"{value:.0f}"
        value /= 1000
    return f"{_three(value)} T"


def size(nbytes: float) -> str:
    """Bytes: 512 B, 1.50 KiB, 3.20 MiB."""
    if nbytes < 1024:
        return f"{nbytes:.0f} B"
    for unit in ("KiB", "MiB"):
        nbytes /= 1024
        if nbytes < 1024:
            return f"{_three(nbytes)} {unit}"
    return f"{_three(nbytes / 1024)} GiB"


def duration(seconds: float) -> str:
    """A time: 85 ns, 1.20 µs, 33.1 ms, 2.00 s."""
    for factor, unit in ((1e9, "ns"), (1e6, "µs"), (1e3, "ms")):
        if abs(seconds) * factor < 1000:
            return f"{_three(seconds * factor)} {unit}"
    return f"{_three(seconds)} s"


def _three(value: float) -> str:
    """Three significant digits, none dropped before the point."""
    whole = len(str(int(abs(value))))
    return f"{value:.{max(0, 3 - whole)}f}"
