"""Whether the files of a bundle play as well as the network they came from: gates, or refusal."""

import dataclasses
import gzip
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rlplatform import envs
from rlplatform.analysis import Interval, bootstrap, compare, interquartile_mean, mean
from rlplatform.compression import agreement, contract, gates, inspection, latency, playing, runtimes
from rlplatform.compression.agreement import Agreement
from rlplatform.compression.calibration import Reservoir
from rlplatform.compression.gates import Gate
from rlplatform.compression.reference import (
    NETWORK,
    STUDENT,
    Golden,
    Network,
    environment_of,
    golden_of,
    has_model,
    network_of,
    open_bundle,
    source_of,
)
from rlplatform.compression.table import table
from rlplatform.config import EnvironmentConfig
from rlplatform.envs.naming import Factory
from rlplatform.errors import RunError, UserError
from rlplatform.machine import describe, versions
from rlplatform.runtime import MANIFEST, Policy, read_file
from rlplatform.training import Act, Evaluation, evaluate, random_actions

Array = np.ndarray[Any, Any]
Progress = Callable[[str], None]

VISITED_STATES = 10_000
VISITED_BYTES = 2**27  # Of images, fewer states are compared.
TIMED_STATES = 64
PACKAGES = ("ai-edge-litert", "gymnasium", "numpy", "onnxruntime", "tensorflow", "tflite-micro")


@dataclasses.dataclass(frozen=True)
class Row:
    """What was measured of the network or of one file.

    Attributes:
        name: `network`, or the file's name.
        variant: `network`, `float` or `int8`.
        interquartile_mean: of the returns, with its 95 % interval.
        mean: of the returns, with its 95 % interval.
        bytes: on the disk.
        gzip_bytes: compressed.
        microseconds: for one decision, one thread.
        golden: agreement with the network on the golden states; None for the network.
        visited: and on the states that the file itself visits.
    """

    name: str
    variant: str
    interquartile_mean: Interval
    mean: Interval
    bytes: int
    gzip_bytes: int
    microseconds: float
    golden: Agreement | None
    visited: Agreement | None


@dataclasses.dataclass(frozen=True)
class Verification:
    """The outcome of all gates, and what they measured.

    Attributes:
        path: the bundle.
        environment: its id.
        episodes: of each policy, paired by seed.
        seed: what the episodes' seeds follow from.
        random_return: interquartile mean of random actions on the same seeds.
        margin: what a file may lose, in units of return.
        gates: in the order in which they were tried.
        unchecked: one sentence for each gate that this machine could not try.
        rows: the network, then the files.
        machine: where this was measured, and with which versions.
    """

    path: pathlib.Path
    environment: str
    episodes: int
    seed: int
    random_return: float
    margin: float
    gates: tuple[Gate, ...]
    unchecked: tuple[str, ...]
    rows: tuple[Row, ...]
    machine: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether every gate holds."""
        return all(gate.passed for gate in self.gates)

    @property
    def failures(self) -> list[str]:
        """One sentence for each gate that does not hold."""
        return [f"gate {gate.name!r} failed for {gate.file}: {gate.sentence}" for gate in self.gates if not gate.passed]

    def require(self) -> None:
        """Does nothing if every gate holds.

        Raises:
            RunError: a gate does not hold; it names the first.
        """
        if not self.passed:
            raise RunError(self.failures[0])

    def table(self) -> str:
        """For a terminal: the network beside its files, the gates that do not hold, and those that were not tried."""
        head = (
            f"{self.environment}: {self.episodes} episodes for each, on the same seeds "
            f"(random actions: {self.random_return:.1f})"
        )
        foot = self.failures or [f"all {len(self.gates)} gates passed"]
        return "\n".join([head, table(self.rows), *foot, *self.unchecked])

    def to_json(self) -> dict[str, Any]:
        """For a program: numbers, texts, lists and dicts."""
        tree = dataclasses.asdict(self)
        tree["path"] = str(self.path)
        tree["gates"] = [gate._asdict() for gate in self.gates]
        for entry, row in zip(tree["rows"], self.rows, strict=True):
            for states in ("golden", "visited"):
                found: Agreement | None = getattr(row, states)
                if found is not None:
                    entry[states] = found._asdict() | {"bins": [part._asdict() for part in found.bins]}
        return {"passed": self.passed, "failures": self.failures} | tree


def verify(
    path: str | pathlib.Path,
    episodes: int = 100,
    seed: int = 0,
    *,
    factory: Factory | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Runs all gates on a bundle, on this machine, from nothing but the bundle.

    Args:
        path: the bundle.
        episodes: of the network, of each file and of random actions, on the same seeds.
        seed: what those seeds follow from (stream `verification`).
        factory: a callable that makes the environment, where `policy.json` names none that can be made.
        progress: is told, in a few words, what begins.

    Raises:
        UserError: the folder is no bundle, has no network to compare with, or its environment cannot be made.
        RunError: a file is not what it was when the bundle was written.
    """
    if episodes < 1:
        raise UserError(f"a verification needs at least 1 episode; got {episodes}")
    folder = pathlib.Path(path)
    manifest = open_bundle(folder)
    network, source, golden = network_of(folder, manifest), source_of(folder, manifest), golden_of(folder, manifest)
    distilled = has_model(manifest, STUDENT)
    environment = environment_of(manifest)
    arena = _Arena(environment, envs.seeds(seed, episodes, "verification"), factory, progress)
    found = [Gate("hashes", MANIFEST, True, f"{len(manifest['files'])} files are as they were written")]
    next_states = golden.next_states
    if golden.states is None:
        source_q, source_states = source.q_values(golden.observations), None
    else:
        source_q, source_states = source.answers(golden.observations, golden.states)
    found.append(gates.algebra(source_q, golden.q, golden.actions, manifest["network"]["centred"], golden.masks))
    if source_states is not None and next_states is not None:
        found.append(gates.state("network", source_states, next_states, gates.ALGEBRA))
    network_q = network.q_values(golden.observations) if distilled else source_q
    network_step = agreement.step_of(network_q, 0.0, golden.masks)

    random_returns = arena.play("random actions", random_actions(manifest["action"]["count"], seed)).returns
    network_returns = arena.play("network", playing.act_of_reference(network)).returns
    margin = gates.margin(network_returns, random_returns)
    rows = [_network_row(manifest, network, network_returns, golden, seed)]
    unchecked: list[str] = []
    for variant, name in manifest["variants"].items():
        content = read_file(folder, manifest, name)
        contents = inspection.read(content)
        found.append(gates.operators(name, contents))
        if contents.foreign:  # It does not run.
            continue
        policy = Policy(folder, variant)
        if variant == "float":
            found += contract.examine(policy, environment, seed, factory)
        reservoir = Reservoir(_visited_count(golden.observations), seed)
        met = _met(arena, policy, name, source, network if distilled else source, reservoir)
        given = playing.answers(policy, golden)
        golden_q = playing.unrolled(policy, golden) if policy.remembers else given.q
        step, limits = agreement.step_of(golden.q, contents.q_step, golden.masks), contents.q_range
        other = runtimes.compare(folder, manifest, variant, contents, golden, given)
        found, unchecked = [*found, *other.gates], [*unchecked, *other.unchecked]
        on_golden = agreement.measure(source_q, golden_q, step, limits, golden.masks)
        on_visited = agreement.measure(met.source_q, met.file_q, step, limits, met.masks)
        if variant == "float":
            found.append(gates.converter(name, source_q, golden.q, given.q, given.actions, golden.masks))
            if given.states is not None and next_states is not None:
                found.append(gates.state(name, next_states, given.states, gates.CONVERTER))
        else:
            found += gates.quantised(name, "golden", on_golden)
            found += gates.quantised(name, "visited", on_visited)
        found += gates.returns(
            name,
            compare(met.returns, network_returns, margin, seed=seed),
            compare(met.returns, network_returns, margin, mean, seed=seed),
        )
        if distilled:  # What a person wants to know is how often the file acts as the network that was trained.
            on_golden = agreement.measure(network_q, given.q, network_step, masks=golden.masks)
            on_visited = agreement.measure(met.network_q, met.file_q, network_step, masks=met.masks)
        speed = _microseconds(policy, golden)
        sizes = len(content), len(gzip.compress(content, 9, mtime=0))
        rows.append(Row(name, variant, *_intervals(met.returns, seed), *sizes, speed, on_golden, on_visited))
    random_return = float(interquartile_mean(random_returns))
    env_id = manifest["environment"]["id"]
    return Verification(
        folder,
        env_id,
        episodes,
        seed,
        random_return,
        margin,
        tuple(found),
        tuple(unchecked),
        tuple(rows),
        machine(),
    )


def machine() -> dict[str, str]:
    """The processor and the versions that figures are measured with."""
    return describe() | versions(PACKAGES)


class _Arena:
    """The same episodes for everyone."""

    def __init__(
        self, environment: EnvironmentConfig, seeds: list[int], factory: Factory | None, progress: Progress | None
    ) -> None:
        self._environment, self._seeds, self._factory, self._progress = environment, seeds, factory, progress

    def play(self, name: str, act: Act, reservoir: Reservoir | None = None) -> Evaluation:
        """All episodes under one policy; what one that remembers nothing sees goes into the reservoir."""
        if self._progress is not None:
            self._progress(f"playing {len(self._seeds)} episodes: {name}")
        if reservoir is None:
            return evaluate(act, self._environment, self._seeds, factory=self._factory)

        def watched(observations: Array, *masks: Array) -> Array:
            reservoir.add(observations, *masks)
            return act(observations, *masks)

        return evaluate(watched, self._environment, self._seeds, factory=self._factory)


class _Met(NamedTuple):
    """Episodes of a file, and what it and the networks say of the M states in which it is there."""

    returns: Array  # [E]
    source_q: Array  # [M, A], of what the file was converted from
    network_q: Array  # [M, A], of the network that was trained
    file_q: Array  # [M, A]
    masks: Array | None  # [M, A] bool


def _met(arena: "_Arena", policy: Policy, name: str, source: Network, network: Network, reservoir: Reservoir) -> _Met:
    """Plays a file, and asks the networks about what it meets; one that remembers goes through the same episodes."""
    if policy.remembers:
        played = arena.play(name, playing.beside(policy, source, reservoir))
        pairs, masks = reservoir.states()
        return _Met(played.returns, pairs[:, 0], pairs[:, 0], pairs[:, 1], masks)
    played = arena.play(name, playing.act_of(policy), reservoir)
    states, masks = reservoir.states()
    source_q = source.q_values(states)
    network_q = source_q if network is source else network.q_values(states)
    file_q = np.stack([policy.q_values(observation) for observation in states])
    return _Met(played.returns, source_q, network_q, file_q, masks)


def _microseconds(player: Policy | Network, golden: Golden) -> float:
    columns = [column for column in (golden.observations, golden.states, golden.masks) if column is not None]
    if len(columns) == 1:
        return latency.microseconds(player.act, columns[0][:TIMED_STATES])
    call: Callable[..., Any] = player.act if golden.states is None else player.decide
    rows = list(zip(*(column[:TIMED_STATES] for column in columns), strict=True))
    return latency.microseconds(lambda row: call(*row), rows)


def _visited_count(observations: Array) -> int:
    return max(1, min(VISITED_STATES, VISITED_BYTES // int(observations[0].nbytes)))


def _network_row(manifest: dict[str, Any], network: Network, returns: Array, golden: Golden, seed: int) -> Row:
    files = [entry for name, entry in manifest["files"].items() if name.startswith(f"{NETWORK}/")]
    sizes = sum(entry["bytes"] for entry in files), sum(entry["gzip_bytes"] for entry in files)
    speed = _microseconds(network, golden)
    return Row("network", "network", *_intervals(returns, seed), *sizes, speed, None, None)


def _intervals(returns: Array, seed: int) -> tuple[Interval, Interval]:
    return bootstrap(returns, seed=seed), bootstrap(returns, mean, seed=seed)
