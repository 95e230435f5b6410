"""The network and its files side by side, as a person reads them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlplatform.analysis import Interval

if TYPE_CHECKING:
    from rlplatform.compression.verification import Row

_HEAD = ("", "return", "IQM", "bytes", "gzip", "µs/decision", "agreement", "where clear")


def table(rows: "Sequence[Row]") -> str:
    """One line for the network and for each file, under a line of names.

    `return` is the mean with half the width of its 95 % interval, `IQM` the interquartile mean. `agreement` is the
    share of the states that a file visits in which it takes the network's action, `where clear` that of the states
    whose two best actions lie more than two int8 steps apart, `-` if there is none.
    """
    lines = [_HEAD, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    text = []
    for name, *cells in lines:
        row = [name.ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        text.append("  ".join(row).rstrip())
    return "\n".join(text)


def _cells(row: "Row") -> tuple[str, ...]:
    agreement = ("", "")
    if row.visited is not None:
        clear = "-" if row.visited.clear is None else f"{row.visited.clear:.2%}"
        agreement = (f"{row.visited.overall:.2%}", clear)
    return (
        row.name,
        _interval(row.mean),
        f"{row.interquartile_mean.estimate:.1f}",
        f"{row.bytes:,}",
        f"{row.gzip_bytes:,}",
        f"{row.microseconds:.1f}",
        *agreement,
    )


def _interval(interval: Interval) -> str:
    return f"{interval.estimate:.1f} ± {(interval.high - interval.low) / 2:.1f}"
