"""Which of several int8 files to keep: the smallest one that is as faithful as the one that takes no risks."""

from typing import Any

import numpy as np

from rlplatform.compression import agreement, gates, inspection
from rlplatform.runtime import open_graph

Array = np.ndarray[Any, Any]

WORTHWHILE = 0.9  # A file must be this much smaller than that of dynamic int8 to be taken for it.
AS_GOOD = 0.005  # And agree with the network almost as often: this much less at most.
ENOUGH = 0.99  # And always where the network's choice is clear: the gate of the verification.
STEADY_STATES = 300  # By which runtimes are compared; the reference kernels take their time.
WORDS = {
    "static": "int8 weights and activations, with ranges from calibration",
    "int16x8": "int8 weights and int16 activations, with ranges from calibration",
    "dynamic_all": "int8 weights in layers of any size, by ai-edge-quantizer; float activations",
}


def choose(
    made: dict[str, bytes], observations: Array, q: Array, masks: Array | None = None, states: Array | None = None
) -> tuple[str, str]:
    """The name of the file to keep, and a sentence that says why.

    Args:
        made: one file, by how it was quantised; or `dynamic`, which is safe, and others that may be smaller.
        observations: `[N, O...]` that the files take.
        q: `[N, A]`, the network's values there.
        masks: `[N, A]` bool, the actions that are allowed there; all of them if None.
        states: `[N, H]`, what a network that remembers had in mind before each of them.
    """
    if "dynamic" not in made:
        ((mode, _),) = made.items()
        return mode, WORDS[mode]
    nothing = "int8" not in inspection.read(made["dynamic"]).weights
    words = (
        "no layer has the 1,024 weights from which on dynamic int8 changes it: all of it is float32"
        if nothing
        else "int8 weights in layers of at least 1,024 weights; float activations"
    )
    limit = WORTHWHILE * len(made["dynamic"])
    smaller = sorted((len(content), mode) for mode, content in made.items() if len(content) <= limit)
    if not smaller:
        return "dynamic", words
    safe = fidelity(made["dynamic"], observations, q, masks=masks, states=states)
    for _, mode in smaller:
        found = fidelity(made[mode], observations, q, masks=masks, states=states)
        if not is_enough(found) or (not nothing and found.overall < safe.overall - AS_GOOD):
            words += (
                f"; {mode} int8 would be smaller, but takes the network's action in only {found.overall:.1%} of "
                f"{len(observations)} states"
            )
        elif mode == "dynamic_all" and not _is_steady(made[mode], observations, q, masks, states):
            words += f"; {mode} int8 would be smaller, but its values depend on the kernels that compute them"
        else:
            return mode, f"{WORDS[mode]}: smaller than dynamic int8 here, and faithful"
    return "dynamic", words


def fidelity(
    content: bytes,
    observations: Array,
    q: Array,
    scaling: Any = None,
    masks: Array | None = None,
    states: Array | None = None,
) -> agreement.Agreement:
    """How often a file acts as the network whose values are given; `scaling` as for `runtime.open_graph`."""
    graph, contents = open_graph(content, "the converted file", scaling=scaling), inspection.read(content)
    given = graph.q_batch(observations, states)
    return agreement.measure(q, given, agreement.step_of(q, contents.q_step, masks), contents.q_range, masks)


def _is_steady(content: bytes, observations: Array, q: Array, masks: Array | None, states: Array | None) -> bool:
    """Whether other kernels give the same values, within half of what the gate of the verification allows.

    What is quantised anew for every observation, LiteRT's kernels round in different ways; where the features of an
    observation have very different ranges, that is seen in the values.
    """
    graphs = [open_graph(content, "the converted file", reference=reference) for reference in (False, True)]
    rows, before = observations[:STEADY_STATES], None if states is None else states[:STEADY_STATES]
    own, other = (graph.q_batch(rows, before) for graph in graphs)
    return bool(np.abs(own - other).max() <= gates.STEPS / 2 * agreement.step_of(q, 0.0, masks))


def is_enough(found: agreement.Agreement) -> bool:
    """Whether the gate of the verification would hold."""
    return found.clear is None or found.clear >= ENOUGH
