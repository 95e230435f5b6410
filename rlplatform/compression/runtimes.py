"""Every other runtime that a bundle's files are for, beside LiteRT as it plays: the same values, or a gate fails.

A runtime that is not on this machine fails nothing; that it was not tried is said.
"""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rlplatform.compression import agreement, compiled, gates, micro, onnx_file
from rlplatform.compression.gates import Gate
from rlplatform.compression.inspection import Contents
from rlplatform.compression.onnx_file import ONNX_FILE
from rlplatform.compression.playing import Answers
from rlplatform.compression.reference import Golden
from rlplatform.errors import RunError
from rlplatform.runtime import open_graph, read_file

Array = np.ndarray[Any, Any]

STATES = 500  # The reference kernels take their time.


class _Case(NamedTuple):
    """A file of a bundle, and what LiteRT answers by it.

    Attributes:
        folder: the bundle.
        manifest: its `policy.json`.
        variant: `float` or `int8`.
        name: the file's.
        content: its bytes.
        contents: what stands in them.
        observations: `[N, O...]`, golden states.
        masks: `[N, A]` bool, the actions that are allowed there; all of them if None.
        states: `[N, H]`, what a network that remembers had in mind before each.
        q: `[N, A]`, LiteRT's values.
        next_states: `[N, H]`, and what a file that remembers has in mind after, by LiteRT.
        step: one int8 step, in units of value; 0 for a file without int8 weights.
    """

    folder: pathlib.Path
    manifest: dict[str, Any]
    variant: str
    name: str
    content: bytes
    contents: Contents
    observations: Array
    masks: Array | None
    states: Array | None
    q: Array
    next_states: Array | None
    step: float

    @property
    def details(self) -> dict[str, Any]:
        """What the manifest says of the file."""
        return self.manifest["files"][self.name]  # type: ignore[no-any-return]


class Compared(NamedTuple):
    """One gate for each runtime that was tried, and one sentence for each that was not."""

    gates: list[Gate]
    unchecked: list[str]


def compare(
    folder: pathlib.Path, manifest: dict[str, Any], variant: str, contents: Contents, golden: Golden, given: Answers
) -> Compared:
    """Asks all runtimes that a file is for, on some of the golden states.

    Args:
        folder: the bundle.
        manifest: its `policy.json`.
        variant: of the file.
        contents: what stands in the file.
        golden: the N golden states.
        given: what LiteRT answers there.
    """
    chosen = spread(len(given.q))

    def some(column: Array | None) -> Array | None:
        return None if column is None else column[chosen]

    name, masks = manifest["variants"][variant], golden.masks
    case = _Case(
        folder,
        manifest,
        variant,
        name,
        read_file(folder, manifest, name),
        contents,
        golden.observations[chosen],
        some(masks),
        some(golden.states),
        given.q[chosen],
        some(given.states),
        agreement.step_of(golden.q, contents.q_step, masks) if "int8" in contents.weights else 0.0,
    )
    found, unchecked = [], []
    for runtime in RUNTIMES:
        if not runtime.is_for(case):
            continue
        file = runtime.file or case.name
        if (missing := runtime.missing()) is not None:
            unchecked.append(f"gate 'runtime {runtime.name}' was not tried for {file}: {missing}")
            continue
        try:
            q, actions, states = runtime.answers(case)
        except RunError as error:
            found.append(Gate(f"runtime {runtime.name}", file, False, str(error)))
            continue
        found.append(gates.runtimes(file, runtime.name, case.q, q, case.step, case.masks, actions))
        if case.next_states is not None and states is not None:
            found.append(gates.runtime_state(file, runtime.name, case.next_states, states, case.step > 0))
    return Compared(found, unchecked)


def spread(count: int, most: int = STATES) -> Array:
    """`[min(count, most)]` int64: which of `count` golden states to take, evenly over all of them.

    The first half are those with the smallest gaps; beside their values alone, rounding would look large.
    """
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


class _Given(NamedTuple):
    """What a runtime gives for N golden states."""

    q: Array  # [N, A]
    actions: Array | None = None  # [N], where it chooses itself
    states: Array | None = None  # [N, H], where the file remembers


class _Runtime(NamedTuple):
    """A way to run a bundle's file, or another form of it.

    Attributes:
        name: what its gate is called after `runtime`.
        is_for: whether it should run a file of the bundle.
        missing: what this machine lacks for it; None if nothing.
        answers: what it gives; raises a `RunError`.
        file: the form of the file that it runs; None for the file itself.
    """

    name: str
    is_for: Callable[[_Case], bool]
    missing: Callable[[], str | None]
    answers: Callable[[_Case], "_Given"]
    file: str | None = None


def _reference(case: _Case) -> _Given:
    """LiteRT's own plain kernels."""
    graph = open_graph(case.content, case.name, scaling=case.details.get("input_scaling"), reference=True)
    after = graph.next_state
    if case.states is None or after is None:
        return _Given(graph.q_batch(case.observations))
    rows = [
        (graph.q_values(observation, state), graph.read(after.index, 0)[0])
        for observation, state in zip(case.observations, case.states, strict=True)
    ]
    q, states = map(np.stack, zip(*rows, strict=True))
    return _Given(q, states=states)


def _in_c(case: _Case) -> _Given:
    """`policy.c`, whose whole-number part is there where C has all of the static file."""
    policy = compiled.CompiledPolicy(case.folder, case.manifest["action"]["count"])
    if case.variant == "float":
        return _Given(np.stack([policy.q_values(observation) for observation in case.observations]))
    if policy.whole != case.contents.activations:
        raise RunError(f"{compiled.SOURCE} has no {case.contents.activations} part")
    scale, (low, _) = case.contents.q_step, case.contents.q_range
    q = np.stack([policy.q_whole(observation) for observation in case.observations])
    return _Given((q.astype(np.float64) - np.iinfo(policy.whole).min) * scale + low)


def _by_onnx(case: _Case) -> _Given:
    """The float32 file's twin."""
    content = read_file(case.folder, case.manifest, ONNX_FILE)
    return _Given(*onnx_file.run(content, case.observations, case.masks, case.states))


def _by_micro(case: _Case) -> _Given:
    """A microcontroller's kernels, in the arena that the manifest promises to suffice."""
    scaling, arena = case.details.get("input_scaling"), case.details.get("arena_bytes")
    return _Given(micro.run(case.content, case.observations, scaling, arena).q)


def _is_for_micro(case: _Case) -> bool:
    return case.variant == "int8" and case.details.get("quantisation", {}).get("target") == "mcu"


def _has_c(case: _Case) -> bool:
    return compiled.SOURCE in case.manifest["files"] and (case.variant == "float" or case.contents.fits_c)


RUNTIMES = (
    _Runtime("reference", lambda case: True, lambda: None, _reference),
    _Runtime("C", _has_c, compiled.missing, _in_c),
    _Runtime(
        "ONNX",
        lambda case: case.variant == "float" and ONNX_FILE in case.manifest["files"],
        onnx_file.missing_runtime,
        _by_onnx,
        ONNX_FILE,
    ),
    _Runtime("tflite-micro", _is_for_micro, micro.missing, _by_micro),
)
