"""Tables of what small policies keep of their teachers' return, beside the honest baselines. Numbers in, text out.

Returns are 0 for random actions and 1 for the teacher, by interquartile means over all teachers and episodes (Agarwal
et al. 2021). The bootstrap draws teachers, then episodes of each: what is said is to hold for teachers not seen here.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlplatform.analysis.scores import FEW, laid_out, number
from rlplatform.analysis.scores import interval as in_words
from rlplatform.analysis.statistics import Interval, Statistic, interquartile_mean, mean, nested_bootstrap

Array = np.ndarray[Any, Any]
Cell = Mapping[str, Any]

KEPT = 0.95  # The lower end of the interval of what a policy keeps must reach this.
SCRATCH = "scratch"  # the method of an agent with a student's architecture that was trained without a teacher


@dataclasses.dataclass(frozen=True)
class Retained:
    """One method on one environment, over teachers. Sizes, times and shares are medians over them.

    Attributes:
        env: the environment's id.
        preset: the teachers' preset.
        method: its name; `scratch as METHOD` for agents with the architectures of that method's students.
        teachers: how many.
        networks: architectures, and how many teachers have each, most first.
        ratio: bytes of the teacher's float32 file after lossless folds, over those of this one; None if it is missing.
        bytes: of the file.
        gzip_bytes: compressed.
        retention: of the interquartile mean, with its 95 % interval; None where the teachers are no better than random.
        mean_retention: the same of the mean, which sees every episode.
        worst: the least that is kept of a single teacher's; None where a teacher is no better than random actions.
        kept: whether the interval of `retention` lies above 0.95; None for fewer than 3 teachers.
        golden: how often the file acts as the teacher where that is least sure; None for `scratch`.
        visited: the same, in states that the file itself visits.
        clear: the same as `golden`, where the teacher's two best values lie more than two of the file's steps apart.
        microseconds: for one decision, one thread.
        seconds: that compressing and verifying took.
        refused: teachers whose bundle a gate has refused.
    """

    env: str
    preset: str
    method: str
    teachers: int
    networks: dict[str, int]
    ratio: float | None
    bytes: float
    gzip_bytes: float
    retention: Interval | None
    mean_retention: float | None
    worst: float | None
    kept: bool | None
    golden: float | None
    visited: float | None
    clear: float | None
    microseconds: float
    seconds: float
    refused: int


@dataclasses.dataclass(frozen=True)
class Contest:
    """Students against agents from scratch with the same architectures, over the teachers that have both.

    Attributes:
        env: the environment's id.
        preset: the teachers' preset.
        method: the students'.
        teachers: how many have both.
        networks: architectures, and how many teachers have each, most first.
        bytes: median of the students' files.
        distilled: what the students keep, as `Retained.retention`.
        scratch: and the others, of the same teachers' return.
        difference: scratch less distilled.
    """

    env: str
    preset: str
    method: str
    teachers: int
    networks: dict[str, int]
    bytes: float
    distilled: float
    scratch: float
    difference: Interval

    @property
    def winner(self) -> str | None:
        """`scratch` or `distilled`; None where no difference is shown, or by too few teachers."""
        if self.teachers < FEW or self.difference.low <= 0 <= self.difference.high:
            return None
        return SCRATCH if self.difference.low > 0 else "distilled"

    def sentence(self) -> str:
        """Who wins at the same bytes; where that is the agent from scratch, it is recommended."""
        found = (
            f"{self.env}, {self.preset}, {self.method}: at {self.bytes:,.0f} bytes the distilled network keeps "
            f"{self.distilled:.3f} and the same network trained from scratch {self.scratch:.3f}"
        )
        change = in_words(self.difference, self.teachers, 3)
        if self.teachers < FEW:
            return f"{found}; {self.teachers} of both are too few to tell which is better"
        if self.winner is None:
            return f"{found}; no difference is shown ({change})"
        if self.winner == SCRATCH:
            name = next(iter(self.networks))
            return f"{found}; scratch wins ({change}): rather than compress, train a network {name} from scratch"
        return f"{found}; distilled wins ({change})"


def rows(tree: Mapping[str, Any]) -> list[Retained]:
    """The rows of a file, by environment and preset; under a method whose students have rivals, those.

    Args:
        tree: `teachers`, each with `env`, `preset`, `seed`, `returns` and `random_returns`; and `cells`, with the same
            key, `method`, `architecture`, `variant`, `quantisation`, `distilled`, `bytes`, `gzip_bytes`,
            `microseconds`, `golden`, `visited`, `clear`, `passed`, `seconds` and `returns`. All returns of a teacher
            are of the same episodes.
    """
    table = []
    for (env, preset), method, cells in _by_method(tree):
        table.append(_row(tree, env, preset, method, cells))
        rivals = [rival for cell in cells if cell["distilled"] and (rival := scratch_of(tree, cell)) is not None]
        if rivals:
            table.append(_row(tree, env, preset, f"{SCRATCH} as {method}", rivals))
    return table


def contests(tree: Mapping[str, Any]) -> list[Contest]:
    """Each method's students against their rivals from scratch, where there are any and the teachers have learned."""
    found = []
    for (env, preset), method, cells in _by_method(tree):
        pairs = [(cell, rival) for cell in cells if cell["distilled"] and (rival := scratch_of(tree, cell)) is not None]
        if not pairs:
            continue
        students, rivals = zip(*pairs, strict=True)
        teacher, random = _references(tree, students)
        values = np.stack([_returns(rivals), _returns(students), teacher, random])
        difference = _finite(nested_bootstrap(values, _retained_difference))
        if difference is None:
            continue
        found.append(
            Contest(
                env,
                preset,
                method,
                teachers=len(pairs),
                networks=_counted(students),
                bytes=_median(students, "bytes"),
                distilled=_estimate(values[1:]),
                scratch=_estimate(values[[0, 2, 3]]),
                difference=difference,
            )
        )
    return found


def retention(returns: Array, teacher: Array, random: Array) -> Interval | None:
    """What is kept: `(R - R_random) / (R_teacher - R_random)`, each R an interquartile mean over teachers and episodes.

    Args:
        returns: `[T, E]`, of T teachers' small policies.
        teacher: `[T, E]`, of the teachers in the same episodes.
        random: `[T, E]`, of random actions in the same episodes.

    Returns:
        The estimate with its 95 % interval, by a bootstrap that draws teachers, then episodes (2,000 resamples). None
        where teachers are no better than random actions, or are not in more than a fortieth of the resamples.
    """
    return _finite(nested_bootstrap(np.stack([returns, teacher, random]), _retained))


def scratch_of(tree: Mapping[str, Any], cell: Cell) -> dict[str, Any] | None:
    """The agent from scratch beside a student: the same teacher's training, the same architecture, the same file."""
    same = ("env", "preset", "seed", "architecture", "variant", "quantisation")
    for other in tree["cells"]:
        if other["method"] == SCRATCH and all(other[key] == cell[key] for key in same):
            return dict(other)
    return None


def as_table(tree: Mapping[str, Any], *, markdown: bool = False) -> str:
    """The rows, who wins at the same bytes, and what has failed, as text for a terminal or as Markdown."""
    head = ["environment", "preset", "method", "teachers", "network", "bytes", "ratio", "retention [95 %]", "kept"]
    head += ["mean", "worst", "agreement", "golden", "clear", "µs", "refused"]
    body = [
        [
            row.env,
            row.preset,
            row.method,
            str(row.teachers),
            ", ".join(name if count == row.teachers else f"{name} ×{count}" for name, count in row.networks.items()),
            f"{row.bytes:,.0f}",
            "-" if row.ratio is None else f"{row.ratio:.1f}×",
            "-" if row.retention is None else in_words(row.retention, row.teachers, 3),
            {True: "yes", False: "no", None: "-"}[row.kept],
            "-" if row.mean_retention is None else number(row.mean_retention, 3),
            "-" if row.worst is None else number(row.worst, 3),
            _percent(row.visited),
            _percent(row.golden),
            _percent(row.clear),
            f"{row.microseconds:.1f}",
            str(row.refused) if row.refused else "-",
        ]
        for row in rows(tree)
    ]
    parts = [laid_out(head, body, markdown) if body else "no method has finished"]
    parts += [contest.sentence() for contest in contests(tree)]
    parts += [
        f"failed: {it['env']} {it['preset']} seed {it['seed']} {it['method']}: {it['error']}" for it in tree["failed"]
    ]
    return ("\n\n" if markdown else "\n").join(parts)


def _by_method(tree: Mapping[str, Any]) -> list[tuple[tuple[str, str], str, list[Cell]]]:
    """The cells of each method but `scratch`: environments and presets in the order of their teachers."""
    order = list(dict.fromkeys((teacher["env"], teacher["preset"]) for teacher in tree["teachers"]))
    found: dict[tuple[tuple[str, str], str], list[Cell]] = {}
    for cell in tree["cells"]:
        if cell["method"] != SCRATCH:
            found.setdefault(((cell["env"], cell["preset"]), cell["method"]), []).append(cell)
    return [(*key, cells) for key, cells in sorted(found.items(), key=lambda item: order.index(item[0][0]))]


def _row(tree: Mapping[str, Any], env: str, preset: str, method: str, cells: Sequence[Cell]) -> Retained:
    teacher, random = _references(tree, cells)
    values = np.stack([_returns(cells), teacher, random])
    kept, each = retention(*values), _retained(values.swapaxes(0, 1))
    floats = {cell["seed"]: cell["bytes"] for cell in tree["cells"] if _is_base(cell, env, preset)}
    ratios = [floats[cell["seed"]] / cell["bytes"] for cell in cells if cell["seed"] in floats]
    return Retained(
        env=env,
        preset=preset,
        method=method,
        teachers=len(cells),
        networks=_counted(cells),
        ratio=float(np.median(ratios)) if ratios else None,
        bytes=_median(cells, "bytes"),
        gzip_bytes=_median(cells, "gzip_bytes"),
        retention=kept,
        mean_retention=None if kept is None else _estimate(values, mean),
        worst=float(each.min()) if np.isfinite(each).all() else None,
        kept=None if len(cells) < FEW else kept is not None and kept.low >= KEPT,
        golden=None if method.startswith(SCRATCH) else _median(cells, "golden"),
        visited=None if method.startswith(SCRATCH) else _median(cells, "visited"),
        clear=_clear(cells),
        microseconds=_median(cells, "microseconds"),
        seconds=_median(cells, "seconds"),
        refused=sum(not cell["passed"] for cell in cells),
    )


def _is_base(cell: Cell, env: str, preset: str) -> bool:
    return (cell["env"], cell["preset"], cell["method"]) == (env, preset, "folds")


def _references(tree: Mapping[str, Any], cells: Sequence[Cell]) -> tuple[Array, Array]:
    """`[T, E]` each: the returns of the cells' teachers, and of random actions, in the same episodes."""
    key = ("env", "preset", "seed")
    known = {tuple(teacher[part] for part in key): teacher for teacher in tree["teachers"]}
    teachers = [known[tuple(cell[part] for part in key)] for cell in cells]
    return _returns(teachers), np.array([teacher["random_returns"] for teacher in teachers], np.float64)


def _returns(records: Sequence[Cell]) -> Array:
    return np.array([record["returns"] for record in records], np.float64)


def _retained(samples: Array, statistic: Statistic = interquartile_mean) -> Array:
    """`[R]` from `[R, 3, E]`: a policy, its teacher, random actions; -inf where the teacher is no better than those."""
    policy, teacher, random = (statistic(samples[:, column]) for column in range(3))
    return _over(policy - random, teacher - random)


def _retained_difference(samples: Array) -> Array:
    """`[R]` from `[R, 4, E]`: two policies, their teacher, random actions."""
    one, other, teacher, random = (interquartile_mean(samples[:, column]) for column in range(4))
    return _over(one - other, teacher - random)


def _estimate(values: Array, statistic: Statistic = interquartile_mean) -> float:
    """Of `[3, T, E]`, all teachers and episodes together."""
    return float(_retained(values.reshape(1, 3, -1), statistic)[0])


def _over(kept: Array, gain: Array) -> Array:
    return np.where(gain > 0, kept / np.where(gain > 0, gain, 1.0), -np.inf)


def _finite(interval: Interval) -> Interval | None:
    return interval if np.isfinite([interval.estimate, interval.low, interval.high]).all() else None


def _counted(cells: Sequence[Cell]) -> dict[str, int]:
    return dict(Counter(str(cell["architecture"]) for cell in cells).most_common())


def _clear(cells: Sequence[Cell]) -> float | None:
    """The median of those that have any clear state."""
    found = [cell["clear"] for cell in cells if cell["clear"] is not None]
    return float(np.median(found)) if found else None


def _median(cells: Sequence[Cell], name: str) -> float:
    return float(np.median([cell[name] for cell in cells]))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
