"""The gates that a file passes before it leaves: each a comparison of numbers, with a sentence where it fails."""

from typing import Any, NamedTuple

import numpy as np

from rlplatform.agents.acting import masked
from rlplatform.analysis import Comparison, interquartile_mean
from rlplatform.compression import agreement
from rlplatform.compression.agreement import Agreement
from rlplatform.compression.inspection import Contents

Array = np.ndarray[Any, Any]

ALGEBRA = 1e-4  # Largest error of the canonical network's values, relative to the largest value.
CONVERTER = 1e-5  # And of the float32 file's.
CLEAR_AGREEMENT = 0.99  # Where the gap is clear, an int8 file takes the network's action this often.
TIED = 0.001  # Share of clear states in which an int8 file's best two values may both lie at an end of its range.
RUNTIMES = 1e-5  # Largest difference between runtimes of a float32 file, relative to the largest value.
STEPS = 2.0  # And of an int8 file, in int8 steps.
CLEAR_STEPS = 4.0  # Where the gap is greater, no other action may be taken.
SLOPE = (0.8, 1.25)  # Of an int8 file's values against the network's.
LOSS = 0.05  # Of what the network gains over random actions, a file may lose this share.


class Gate(NamedTuple):
    """One gate for one file.

    Attributes:
        name: what is examined: hashes, algebra, contract, frames, memory, state, converter, operators, agreement,
            saturation, scale, return, mean return, or that a runtime (`reference`, `C`, `ONNX`, `tflite-micro`) gives
            the same values, and the same `state`.
        file: the file, or `network`.
        passed: whether it holds.
        sentence: what was found.
    """

    name: str
    file: str
    passed: bool
    sentence: str


def algebra(
    network_q: Array, golden_q: Array, golden_actions: Array, is_centred: bool, masks: Array | None = None
) -> Gate:
    """Whether the canonical network, by its golden values, is the network.

    Args:
        network_q: `[N, A]`, the network's values on the golden observations.
        golden_q: `[N, A]`, the canonical network's.
        golden_actions: `[N]`, the network's actions when the bundle was written.
        is_centred: whether the canonical network's rows have mean zero.
        masks: `[N, A]` bool, the actions that are allowed; all of them if None.
    """
    expected = agreement.centred(network_q) if is_centred else network_q.astype(np.float64)
    scale = _scale(network_q, golden_q)
    error = float(np.abs(expected - golden_q).max()) / scale
    allowed = masked(network_q, masks)
    clear = agreement.gaps(allowed) > CONVERTER * scale
    actions = allowed.argmax(axis=1)
    other = int(((actions != masked(golden_q, masks).argmax(axis=1)) | (actions != golden_actions))[clear].sum())
    return Gate(
        "algebra",
        "network",
        error <= ALGEBRA and not other,
        f"the canonical network's values differ from the network's by {error:.1e} of their size (at most "
        f"{ALGEBRA:.0e}), and its actions in {other} of {int(clear.sum())} states",
    )


def converter(
    file: str, network_q: Array, golden_q: Array, file_q: Array, file_actions: Array, masks: Array | None = None
) -> Gate:
    """Whether the float32 file computes the canonical network, and answers with its action.

    Args:
        file: its name.
        network_q: `[N, A]`, the network's values, whose size tells how exact float32 can be.
        golden_q: `[N, A]`, the canonical network's.
        file_q: `[N, A]`.
        file_actions: `[N]`.
        masks: `[N, A]` bool, the actions that are allowed; all of them if None.
    """
    scale = _scale(network_q, golden_q)
    error = float(np.abs(golden_q - file_q).max()) / scale
    allowed = masked(golden_q, masks)
    clear = agreement.gaps(allowed) > 2 * CONVERTER * scale
    other = int((allowed.argmax(axis=1) != file_actions)[clear].sum())
    return Gate(
        "converter",
        file,
        error <= CONVERTER and not other,
        f"the file's values differ from the canonical network's by {error:.1e} of their size (at most "
        f"{CONVERTER:.0e}), and its actions in {other} of {int(clear.sum())} states",
    )


def state(file: str, expected: Array, given: Array, limit: float) -> Gate:
    """Whether a network or a file that remembers has the same in mind after each golden step.

    Since each of those steps goes on from the one before, it then remembers whole sequences alike.

    Args:
        file: its name, or `network`.
        expected: `[N, H]`.
        given: `[N, H]`.
        limit: how far they may be apart, relative to the largest number.
    """
    error = float(np.abs(expected.astype(np.float64) - given).max()) / _scale(expected, given)
    return Gate(
        "state",
        file,
        error <= limit,
        f"what is remembered after each golden step differs by {error:.1e} of its size (at most {limit:.0e})",
    )


def runtime_state(file: str, runtime: str, given: Array, other: Array, is_int8: bool) -> Gate:
    """Whether another runtime has the same in mind after each golden step.

    Args:
        file: its name.
        runtime: what the other one is called.
        given: `[N, H]`, by the runtime that plays.
        other: `[N, H]`, by the other one.
        is_int8: whether the file has int8 weights: an int8 step is then 1/255 of what is remembered.
    """
    scale = _scale(given, other)
    error = float(np.abs(given.astype(np.float64) - other).max())
    step = float(np.ptp(given)) / 255.0
    limit = STEPS * step if is_int8 else RUNTIMES * scale
    return Gate(
        f"runtime {runtime} state",
        file,
        error <= limit,
        f"what is remembered by {runtime} differs by {error / scale:.1e} of its size (at most {limit / scale:.1e})",
    )


def operators(file: str, contents: Contents) -> Gate:
    """Whether a plain LiteRT runtime has all operators, and an int8 file stays int8 throughout."""
    if contents.foreign:
        sentence = f"the file needs {', '.join(sorted(set(contents.foreign)))}, which a plain LiteRT runtime lacks"
    elif contents.float_islands:
        sentence = f"{', '.join(sorted(set(contents.float_islands)))} compute in float between int8 operators"
    else:
        sentence = f"{len(contents.operators)} operators, all built in"
    return Gate("operators", file, not contents.foreign and not contents.float_islands, sentence)


def quantised(file: str, states: str, found: Agreement) -> list[Gate]:
    """Whether int8 kept the network's choices where they are clear, told values apart, and kept their scale.

    Args:
        file: its name.
        states: what kind of states these are, `golden` or `visited`.
        found: the comparison over them.
    """
    if found.clear is None or found.slope is None:
        none = f"no {states} state has a gap of more than {agreement.CLEAR:g} int8 steps"
        return [Gate(name, file, True, none) for name in ("agreement", "saturation", "scale")]
    clear = f"{found.clear_states} {states} states with a gap of more than {agreement.CLEAR:g} int8 steps"
    return [
        Gate(
            "agreement",
            file,
            found.clear >= CLEAR_AGREEMENT,
            f"the file takes the network's action in {found.clear:.2%} of {clear} (at least {CLEAR_AGREEMENT:.0%})",
        ),
        Gate(
            "saturation",
            file,
            found.tied <= TIED,
            f"the file's two best values both lie at an end of its range in {found.tied:.2%} of {clear} "
            f"(at most {TIED:.1%})",
        ),
        Gate(
            "scale",
            file,
            SLOPE[0] <= found.slope <= SLOPE[1],
            f"the file's values are {found.slope:.3f} times the network's in {clear} ({SLOPE[0]:g} to {SLOPE[1]:g})",
        ),
    ]


def runtimes(
    file: str,
    runtime: str,
    given: Array,
    other: Array,
    step: float,
    masks: Array | None = None,
    other_actions: Array | None = None,
) -> Gate:
    """Whether another runtime gives a file's values.

    Args:
        file: its name.
        runtime: what the other one is called.
        given: `[N, A]`, the values by the runtime that plays.
        other: `[N, A]`, by the other one.
        step: one int8 step, in units of value; 0 for a float32 file.
        masks: `[N, A]` bool, the actions that are allowed; all of them if None.
        other_actions: `[N]`, what the other runtime answers, where that is more than values.
    """
    scale = _scale(given, other)
    error = float(np.abs(given.astype(np.float64) - other).max())
    # Values come in float32: two that lie exactly STEPS apart may differ by a little more, in proportion to their size.
    bound = STEPS * step + 2 * float(np.finfo(np.float32).eps) * scale if step > 0 else RUNTIMES * scale
    allowed = masked(given, masks)
    clear = agreement.gaps(allowed) > (CLEAR_STEPS * step if step > 0 else 2 * RUNTIMES * scale)
    actions = masked(other, masks).argmax(axis=1) if other_actions is None else other_actions
    flips = int((allowed.argmax(axis=1) != actions)[clear].sum())
    if step > 0:
        size = f"{error / step:.3g} int8 steps (at most {STEPS:g})"
    else:
        size = f"{error / scale:.1e} of the largest one (at most {RUNTIMES:.0e})"
    return Gate(
        f"runtime {runtime}",
        file,
        error <= bound and flips == 0,
        f"values by {runtime} differ by {size}, and {flips} of {int(clear.sum())} clear actions",
    )


def margin(network_returns: Array, random_returns: Array) -> float:
    """What a file may lose, in units of return: 5 % of what the network gains over random actions.

    Both are interquartile means over the same seeds, so the sign and the offset of the returns do not matter (Acrobot's
    are negative). For a network that hardly beats random actions, 5 % of the standard deviation of its returns: less is
    no loss that anyone could see.
    """
    gain = float(interquartile_mean(network_returns) - interquartile_mean(random_returns))
    return LOSS * max(gain, float(np.std(network_returns)))


def returns(file: str, by_interquartile_mean: Comparison, by_mean: Comparison) -> list[Gate]:
    """Whether the file plays as well: not inferior by interquartile mean, and no shown loss by the mean.

    The interquartile mean is blind to a quarter of bad episodes, so a file whose mean has fallen beyond the margin,
    with an interval that excludes zero, is refused too.
    """
    gates = []
    for name, comparison in (("return", by_interquartile_mean), ("mean return", by_mean)):
        difference = comparison.difference
        kind = "interquartile mean" if name == "return" else "mean"
        sentence = (
            f"the {kind} of the paired returns changed by {difference.estimate:+.4g} "
            f"(95 % interval {difference.low:+.4g} to {difference.high:+.4g}, and a loss of {comparison.margin:.4g} "
            "is allowed)"
        )
        passed = comparison.not_inferior if name == "return" else not comparison.inferior
        if not passed and difference.high >= -comparison.margin:
            sentence += "; more episodes would tell"
        gates.append(Gate(name, file, passed, sentence))
    return gates


def _scale(*values: Array) -> float:
    return max(float(np.abs(value).max()) for value in values) or 1.0
