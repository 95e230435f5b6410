"""Averages of returns that a few odd episodes do not move, and what is certain about them. numpy only, seeded."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Statistic = Callable[[Array], Array]

_CHUNK = 4_000_000  # Numbers that are drawn at once, so that many episodes need no more memory.


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval."""

    estimate: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A candidate against a reference, on the same episodes.

    Attributes:
        difference: candidate minus reference, with its confidence interval.
        margin: what may be lost, in units of return.
    """

    difference: Interval
    margin: float

    @property
    def not_inferior(self) -> bool:
        """Whether all of the interval lies above a loss of `margin`: the loss is shown to be smaller."""
        return self.difference.low >= -self.margin

    @property
    def inferior(self) -> bool:
        """Whether the loss is real and at least `margin`: the interval excludes zero and the estimate reaches it."""
        return self.difference.high < 0 and self.difference.estimate < -self.margin


def interquartile_mean(values: Array) -> Array:
    """The mean of the middle half along the last axis (Agarwal et al. 2021): a quarter is left out at either end.

    Args:
        values: `[..., E]`, E >= 1. Of E values, `E // 4` are left out at each end, as `scipy.stats.trim_mean` does.

    Returns:
        `[...]` float64.
    """
    values = np.asarray(values, np.float64)
    low, high = values.shape[-1] // 4, values.shape[-1] - values.shape[-1] // 4
    values = np.partition(values, [low, high - 1], axis=-1)  # a third of what a sort takes
    return values[..., low:high].mean(axis=-1)  # type: ignore[no-any-return]


def mean(values: Array) -> Array:
    """The mean along the last axis, float64."""
    return np.asarray(values, np.float64).mean(axis=-1)  # type: ignore[no-any-return]


def bootstrap(
    values: Array,
    statistic: Statistic = interquartile_mean,
    *,
    groups: Sequence[Any] | Array | None = None,
    confidence: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Interval:
    """The percentile bootstrap of a statistic of episodes.

    Args:
        values: `[E]`, one per episode; or `[P, E]`, P columns that are resampled together, which keeps pairs paired.
        statistic: from `[R, E]`, or `[R, P, E]`, to `[R]`.
        groups: `[E]` labels; episodes are drawn within their own group (training run, task): each keeps its share.
        confidence: probability between the ends of the interval.
        resamples: R.
        seed: of the resampling.
    """
    values = np.asarray(values, np.float64)
    if not values.shape[-1]:
        raise ValueError("a bootstrap needs at least one episode")
    labels = np.zeros(values.shape[-1], int) if groups is None else np.asarray(groups)
    strata = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def draw(rng: np.random.Generator, size: int) -> Array:
        picks = [stratum[rng.integers(0, len(stratum), (size, len(stratum)))] for stratum in strata]
        samples = values[..., np.concatenate(picks, axis=1)]  # [R, E], or [P, R, E]
        return np.moveaxis(samples, 0, 1) if values.ndim == 2 else samples

    return _percentiles(draw, statistic, values, confidence, resamples, seed)


def nested_bootstrap(
    values: Array,
    statistic: Statistic,
    *,
    confidence: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Interval:
    """The percentile bootstrap over training runs and, within each that is drawn, over its episodes.

    Args:
        values: `[P, S, E]`: P columns that are resampled together, which keeps pairs paired, of S runs with E episodes.
        statistic: from `[R, P, S * E]` to `[R]`.
        confidence: as in `bootstrap`.
        resamples: as in `bootstrap`.
        seed: as in `bootstrap`.

    Raises:
        ValueError: there are no runs, or they have no episodes.
    """
    values = np.asarray(values, np.float64)
    columns, runs, episodes = values.shape
    if not runs * episodes:
        raise ValueError("a bootstrap needs at least one run with one episode")
    limits = np.array([runs] + [episodes] * episodes)

    def draw(rng: np.random.Generator, size: int) -> Array:
        picks = (rng.random((size, runs, 1 + episodes)) * limits).astype(np.intp)  # one call: chunks do not show
        samples = values[:, picks[..., :1], picks[..., 1:]]  # [P, R, S, E]
        return np.moveaxis(samples.reshape(columns, size, runs * episodes), 0, 1)

    return _percentiles(draw, statistic, values.reshape(columns, -1), confidence, resamples, seed)


def _percentiles(
    draw: Callable[[np.random.Generator, int], Array],
    statistic: Statistic,
    values: Array,
    confidence: float,
    resamples: int,
    seed: int,
) -> Interval:
    """The statistic of the values, and its percentiles over what `draw` makes of them, so many resamples at once."""
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // values.size)
    sizes = [min(chunk, resamples - start) for start in range(0, resamples, chunk)]
    drawn = np.concatenate([statistic(draw(rng, size)) for size in sizes])
    tail = 100 * (1 - confidence) / 2
    with np.errstate(invalid="ignore"):  # a statistic that is infinite for some resamples
        low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(float(statistic(values[None])[0]), float(low), float(high))


def stratified_bootstrap(
    scores: Sequence[Array],
    statistic: Statistic = interquartile_mean,
    *,
    confidence: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Interval:
    """The percentile bootstrap over training runs (Agarwal et al. 2021, section 4.1): runs are drawn within each task.

    The statistic is that of all tasks' scores together, as the paper's interquartile mean over runs and tasks. With one
    task it is the ordinary bootstrap over its runs.

    Args:
        scores: one `[S]` array of scores for each task (the stratum), a score for each training run; S may differ.
        statistic: from `[R, E]` to `[R]`, E the scores of all tasks together.
        confidence: as in `bootstrap`.
        resamples: as in `bootstrap`.
        seed: as in `bootstrap`.

    Raises:
        ValueError: there are no tasks, or one has no scores.
    """
    if not len(scores) or not all(len(task) for task in scores):
        raise ValueError("a stratified bootstrap needs at least one score for each task")
    return bootstrap(
        np.concatenate([np.asarray(task, np.float64) for task in scores]),
        statistic,
        groups=np.repeat(np.arange(len(scores)), [len(task) for task in scores]),
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def compare(
    candidate: Array,
    reference: Array,
    margin: float,
    statistic: Statistic = interquartile_mean,
    *,
    groups: Sequence[Any] | Array | None = None,
    confidence: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Comparison:
    """Whether a candidate loses no more than `margin` against a reference that played the same episodes.

    Args:
        candidate: `[E]` returns.
        reference: `[E]` returns of the same seeds, in the same order.
        margin: what may be lost, at least 0.
        statistic: what is compared, from `[..., E]` to `[...]`; the difference is of the two statistics.
        groups: as in `bootstrap`.
        confidence: of the interval.
        resamples: as in `bootstrap`.
        seed: as in `bootstrap`.

    Raises:
        ValueError: the returns are not paired, or the margin is negative.
    """
    if np.shape(candidate) != np.shape(reference):
        raise ValueError(f"paired returns are needed; got {np.shape(candidate)} and {np.shape(reference)}")
    if not margin >= 0:
        raise ValueError(f"a margin is at least 0; got {margin}")

    def difference(pairs: Array) -> Array:
        return statistic(pairs[:, 0]) - statistic(pairs[:, 1])

    interval = bootstrap(
        np.stack([candidate, reference]),
        difference,
        groups=groups,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    return Comparison(interval, float(margin))
