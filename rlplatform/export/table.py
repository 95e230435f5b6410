"""A verification as a person and as a program read it."""

from typing import Any

from rlplatform.analysis import Interval
from rlplatform.compression import Row, Verification

_HEAD = ("", "return", "IQM", "bytes", "gzip", "µs/decision", "agreement", "where clear")


def table(verification: Verification) -> str:
    """The network beside its files: returns, bytes, microseconds, agreement; then the gates that do not hold.

    `return` is the mean with half the width of its 95 % interval, `IQM` the interquartile mean. `agreement` is the
    share of the states that a file visits in which it takes the network's action, `where clear` that of the states
    whose two best actions lie more than two int8 steps apart.
    """
    lines = [_HEAD, *map(_cells, verification.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    text = [
        f"{verification.environment}: {verification.episodes} episodes for each, on the same seeds "
        f"(random actions: {verification.random_return:.1f})"
    ]
    for name, *cells in lines:
        row = [name.ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        text.append("  ".join(row).rstrip())
    if verification.passed:
        text.append(f"all {len(verification.gates)} gates passed")
    text += verification.failures
    return "\n".join(text)


def to_json(verification: Verification) -> dict[str, Any]:
    """What `--json` prints: the verification and where its bundle lies."""
    return {"bundle": str(verification.path), **verification.to_dict(), "failures": verification.failures}


def _cells(row: Row) -> tuple[str, ...]:
    agreement = ("", "")
    if row.visited is not None:
        agreement = (f"{row.visited.overall:.2%}", f"{row.visited.clear:.2%}")
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
