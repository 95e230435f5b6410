"""The smallest student that plays as well as its teacher, or the best one within a budget of bytes."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlplatform import envs
from rlplatform.agents import make_actor
from rlplatform.agents.acting import flatten
from rlplatform.analysis import Comparison, Interval, compare, interquartile_mean, mean
from rlplatform.compression import gates, students
from rlplatform.compression.calibration import States
from rlplatform.compression.distillation import Recipe, distil
from rlplatform.compression.labels import Labels, gather, label, together
from rlplatform.compression.students import Architecture
from rlplatform.config import EnvironmentConfig
from rlplatform.envs.naming import Factory
from rlplatform.errors import UserError
from rlplatform.training import Act, evaluate, greedy, random_actions

Array = np.ndarray[Any, Any]
Progress = Callable[[str], None]

STATES = 40_000  # that the teacher labels before the first student
STATES_BYTES = 2**28  # of large images, fewer
ROUND_STATES = 10_000  # and in each round, those that a student has met
GROWTH = 4  # times the first states, at most: of more, a random choice is kept
ROUNDS = 4  # of students' rollouts (DAgger), at most, until a student plays as well as its teacher
EPISODES = 100  # by which a student is chosen
# Of a fixed budget: so many students, the largest first, get so many rounds; the better ones of them go on.
STAGES = ((4, 0), (2, 1), (2, 2), (1, ROUNDS))
UNITS = {"b": 1, "kb": 1_000, "kib": 1_024, "mb": 1_000_000, "mib": 2**20}


@dataclasses.dataclass(frozen=True)
class Teacher:
    """What is to become smaller.

    Attributes:
        model: its canonical network, `[B, O...]` float32 to `[B, A]`.
        act: its policy.
        environment: where it plays.
        observation_dtype: in which labelled states are kept: bytes where they hold what is observed.
        factory: makes the environment, where it has no id.
    """

    model: Any
    act: Act
    environment: EnvironmentConfig
    observation_dtype: str = "float32"
    factory: Factory | None = None


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One student that was tried.

    Attributes:
        architecture: its layers.
        parameters: its weights.
        rounds: of its own rollouts that it was trained on.
        agreement: how often it takes the teacher's action on held-out states of the teacher.
        own_agreement: and on the states that it meets itself.
        interquartile_mean: of its returns in the episodes by which students are chosen.
        comparison: with the teacher's returns there, by interquartile means.
        by_mean: the same by means.
        passed: whether it is not inferior there, by the gates of the verification.
    """

    architecture: Architecture
    parameters: int
    rounds: int
    agreement: float
    own_agreement: float
    interquartile_mean: float
    comparison: Comparison
    by_mean: Comparison
    passed: bool

    @property
    def change(self) -> Interval:
        """In units of return, by the measure that loses more: the gates ask for both."""
        return min(self.comparison.difference, self.by_mean.difference, key=lambda interval: interval.low)

    def to_json(self) -> dict[str, Any]:
        """For a program and a report."""
        tree = dataclasses.asdict(self)
        return tree | {"architecture": str(self.architecture)}


@dataclasses.dataclass
class _Student:
    """A network in training: its best round, that round's weights, and the rounds of its own rollouts so far."""

    model: Any
    best: Candidate | None = None
    weights: list[Array] = dataclasses.field(default_factory=list)
    rounds: int = -1


def parse_budget(text: str | int) -> int | None:
    """Bytes, from `4kB`, `1.5 KiB`, `900` or a number; None for `auto`.

    Raises:
        UserError: it is none of these.
    """
    if isinstance(text, int) and not isinstance(text, bool) and text > 0:
        return text
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmM]?i?[bB]?)\s*", str(text))
    if str(text).strip().lower() == "auto":
        return None
    unit = found.group(2).lower() if found else ""
    size = round(float(found.group(1)) * UNITS.get(unit if unit.endswith("b") else f"{unit}b", 0)) if found else 0
    if size < 1:
        raise UserError(f"a budget is a size like 4kB, 1.5KiB or 900, or `auto`; got {text!r}")
    return size


class Distillery:
    """Trains and tries students on one growing set of labelled states.

    Args:
        teacher: who labels.
        seed: of everything that is drawn.
        recipe: how a student is trained.
        episodes: by which students are chosen.
        log_dir: where TensorBoard finds each student's losses; nothing is written if None.
        progress: is told, in a few words, what begins.
    """

    def __init__(
        self,
        teacher: Teacher,
        seed: int = 0,
        recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
        episodes: int = EPISODES,
        log_dir: pathlib.Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._teacher, self._seed, self._log_dir = teacher, seed, log_dir
        self._report = progress or (lambda words: None)
        self._shape = tuple(teacher.model.input_shape[1:])
        self._num_actions = int(teacher.model.output_shape[-1])
        self._parameters = int(teacher.model.count_params())
        self._report("labelling states of the teacher")
        frame_bytes = int(np.prod(self._shape)) * np.dtype(teacher.observation_dtype).itemsize
        count = max(1_000, min(STATES, STATES_BYTES // frame_bytes))
        self._round_states, self._most = min(ROUND_STATES, count), GROWTH * count
        # A later round, with more states, takes no longer than the first: of large images it would take minutes.
        self._recipe = dataclasses.replace(recipe, epoch_states=min(recipe.epoch_states, count))
        self._labels = self._gather(teacher.act, count, "distillation")
        self._held_out = self._gather(teacher.act, max(1_000, count // 10), "held-out")
        self._seeds = envs.seeds(seed, episodes, "student")
        self._teacher_returns = self._play(teacher.act)
        self._margin = gates.margin(self._teacher_returns, self._play(random_actions(self._num_actions, seed)))
        self._rounds = 0
        self._students: dict[Architecture, _Student] = {}

    @property
    def teacher_interquartile_mean(self) -> float:
        """Of the teacher's returns in the episodes by which students are chosen."""
        return float(interquartile_mean(self._teacher_returns))

    @property
    def labels(self) -> Labels:
        """All states that were labelled so far."""
        return self._labels

    @property
    def held_out(self) -> Labels:
        """Labelled states of other episodes."""
        return self._held_out

    @property
    def candidates(self) -> list[Candidate]:
        """The best round of every student that was tried."""
        return [student.best for student in self._students.values() if student.best is not None]

    def model(self, architecture: Architecture) -> Any:
        """The network of a student that was tried, with the weights of its best round."""
        return self._students[architecture].model

    def try_out(self, architecture: Architecture, rounds: int = ROUNDS) -> Candidate:
        """Trains a student, until it plays as well as the teacher or its rounds are over; the best round is kept.

        Asked again for more rounds, it goes on.
        """
        return self._train(architecture, rounds, lambda best: best.passed)

    def improve(self, candidate: Candidate) -> Candidate:
        """Trains a student of `try_out` for the rounds that it has left, while it loses anything; the best is kept."""
        return self._train(candidate.architecture, ROUNDS, lambda best: best.change.estimate >= 0)

    def _train(self, architecture: Architecture, rounds: int, enough: Callable[[Candidate], bool]) -> Candidate:
        student = self._students.get(architecture)
        if student is None:
            model = students.build(architecture, self._labels.observations, self._num_actions, self._seed)
            student = _Student(model)
            self._students[architecture] = student
        model = student.model
        while student.best is None or (student.rounds < rounds and not enough(student.best)):
            student.rounds += 1
            self._distil(architecture, model, student.rounds)
            candidate, visited = self._judge(architecture, model, student.rounds)
            if student.best is None or _rank(candidate) > _rank(student.best):
                student.best, student.weights = candidate, model.get_weights()
            self._add(visited)
        model.set_weights(student.weights)
        return student.best

    def _add(self, visited: Labels) -> None:
        """What a student has met is there for all that are trained later."""
        self._labels = together(self._labels, visited)
        surplus = len(self._labels.values) - self._most
        if surplus > 0:
            rows = np.random.default_rng(self._seed + self._rounds).permutation(len(self._labels.values))[surplus:]
            self._labels = self._labels.at(np.sort(rows))

    def _distil(self, architecture: Architecture, model: Any, number: int) -> None:
        size = students.parameters(architecture, self._shape, self._num_actions)
        self._report(f"distilling {architecture} ({size:,} weights), round {number}")
        name = f"{architecture}-round{number}".replace(" ", "_")
        distil(
            model,
            self._labels,
            self._held_out,
            self._recipe,
            self._seed + number,
            teacher_parameters=self._parameters,
            log_dir=None if self._log_dir is None else self._log_dir / name,
        )

    def _judge(self, architecture: Architecture, model: Any, number: int) -> tuple[Candidate, Labels]:
        """How a student does, and labelled states that it has met in episodes of their own."""
        act = act_of_network(model)
        returns = self._play(act)
        comparison = compare(returns, self._teacher_returns, self._margin, seed=self._seed)
        self._rounds += 1
        visited = self._gather(act, self._round_states, f"round-{self._rounds}")
        by_mean = compare(returns, self._teacher_returns, self._margin, mean, seed=self._seed)
        candidate = Candidate(
            architecture,
            students.parameters(architecture, self._shape, self._num_actions),
            number,
            self._agreement(model, self._held_out),
            self._agreement(model, visited),
            float(interquartile_mean(returns)),
            comparison,
            by_mean,
            all(gate.passed for gate in gates.returns(str(architecture), comparison, by_mean)),
        )
        return candidate, visited

    def _agreement(self, model: Any, labels: Labels) -> float:
        given = label(model, States(labels.observations, labels.masks))
        return float((given.actions() == labels.actions()).mean())

    def _gather(self, act: Act, count: int, stream: str) -> Labels:
        teacher = self._teacher
        found = gather(teacher.model, act, teacher.environment, count, self._seed, stream, factory=teacher.factory)
        return found._replace(observations=found.observations.astype(teacher.observation_dtype, copy=False))

    def _play(self, act: Act) -> Array:
        return evaluate(act, self._teacher.environment, self._seeds, factory=self._teacher.factory).returns


def smallest(distillery: Distillery, ladder: Sequence[Architecture]) -> Candidate | None:
    """The smallest student that plays as well as the teacher; None where not even the largest one does.

    The ladder is halved again and again: what is smaller than a student that fails is taken to fail, and what is larger
    than one that passes, to pass. That is not always so; the two rungs below the smallest that has passed are tried in
    the end.

    Args:
        distillery: trains them.
        ladder: most weights first.
    """
    passed, failed = -1, len(ladder)
    while failed - passed > 1:
        middle = (passed + failed) // 2
        if distillery.try_out(ladder[middle]).passed:
            passed = middle
        else:
            failed = middle
    for below in range(passed + 1, min(passed + 3, len(ladder))):
        if distillery.try_out(ladder[below]).passed:
            passed = below
    return distillery.try_out(ladder[passed]) if passed >= 0 else None


def best_of(distillery: Distillery, ladder: Sequence[Architecture]) -> Candidate | None:
    """The best of the first few students: the one that loses least, of those that pass if any does.

    Of those that lose the same, it is the smallest. The worse half goes without further rounds, again and again
    (successive halving: Jamieson & Talwalkar 2016), since most of the time is training. In each stage the better ones
    come last, at first the larger ones: they learn from what the others have met.

    Args:
        distillery: trains them.
        ladder: most weights first.
    """
    going_on, best = list(ladder), None
    for kept, rounds in STAGES:
        tried = [distillery.try_out(architecture, rounds) for architecture in reversed(going_on[:kept])]
        tried.sort(key=of_budget, reverse=True)
        going_on = [candidate.architecture for candidate in tried]
        best = tried[0] if tried else None
    return best


def of_budget(candidate: Candidate) -> tuple[bool, float, int]:
    """Better is greater, for different students that all fit: whether it passes, what it surely loses, its size."""
    return candidate.passed, candidate.change.low, -candidate.parameters


def _rank(candidate: Candidate) -> tuple[bool, float, float]:
    """Better is greater, for rounds of one student: whether it passes, what it surely loses, how often it agrees."""
    return candidate.passed, candidate.change.low, candidate.agreement


def act_of_network(model: Any) -> Act:
    """The greedy policy of a Keras model, `[B, O...]` to `[B, A]`, with the weights that it has now."""
    actor = make_actor(model)
    actor.load(flatten(model.get_weights()))
    return greedy(actor)
