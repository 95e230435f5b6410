"""What each way of making a policy small keeps of its return: environments x teachers x methods, in one file."""

import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rlplatform import workers
from rlplatform.analysis.retained import scratch_of
from rlplatform.analysis.scores import number
from rlplatform.benchmarks import methods as ways
from rlplatform.benchmarks import results, runs
from rlplatform.benchmarks.methods import Teacher
from rlplatform.benchmarks.results import Form
from rlplatform.benchmarks.runs import Planned
from rlplatform.errors import UserError
from rlplatform.files import exclusive
from rlplatform.workers import Done, Job, bar, say

FORM = Form(
    "rlplatform-compression",
    1,
    "compression",
    {"sessions": [], "configurations": [], "teachers": [], "cells": [], "failed": []},
    records=("teachers", "cells"),
)
METHODS = ("folds", "int8", "auto")
ALWAYS = "folds"  # what every ratio is to
QUIET_SECONDS = 60.0  # between two lines of what a job is at, where no terminal shows a bar


def measure(
    env_ids: Sequence[str],
    preset: str,
    *,
    teachers: int,
    out: pathlib.Path,
    methods: Sequence[str] = METHODS,
    first_seed: int = 0,
    episodes: int = 300,
    compress_episodes: int = 100,
    target: Any = "cpu",
    processes: int = 2,
    steps: int | None = None,
    overrides: Sequence[str] = (),
    kept_runs: pathlib.Path | None = None,
    overwrite: bool = False,
    command: str = "",
) -> dict[str, Any]:
    """Measures what `out` does not hold yet, and writes each part into `out` as it ends.

    A teacher is trained on each environment with each seed. Each method makes its policy small, and the file plays the
    same episodes as the teacher and random actions. Beside every student that was distilled, an agent with the
    student's architecture is trained as the teacher was, exported and measured in the same way: `scratch`. What a kill
    has cut short goes on, and what has failed is tried again. A bundle that a gate refuses is measured and marked.

    Args:
        env_ids: environments.
        preset: a shipped preset's name, or a TOML file.
        teachers: training seeds for each environment.
        out: the JSON file. Runs lie beside it in `NAME.runs` until all that is made of them is done.
        methods: as `methods.parse` takes them; `folds` always comes with them.
        first_seed: the first training seed; the others follow it.
        episodes: greedy episodes of each teacher, each file and random actions, on the same seeds.
        compress_episodes: by which `compress` chooses students and verifies bundles, on other seeds.
        target: as for `compress`.
        processes: jobs side by side. An operation uses one core, unless `overrides` say otherwise.
        steps: env steps of each run; the preset's by default.
        overrides: `key=value` texts over the preset.
        kept_runs: a folder of runs, whose finished ones of the same configuration are the teachers; those that are
            missing are trained there, and stay.
        overwrite: replace rows of the same environment and preset that were made otherwise, not refuse.
        command: what the user has typed, kept in the file.

    Returns:
        The file's content.

    Raises:
        UserError: an environment, the preset, a key or a method is wrong, or `out` holds something else; nothing was
            trained.
        RunError: `out` cannot be written.
    """
    texts = list(dict.fromkeys([ALWAYS, *methods]))
    for text in texts:
        ways.parse(text)
    planned = runs.plan(env_ids, [preset], steps, overrides)
    for row in planned:
        if row.config.is_recurrent:
            raise UserError(f"{preset} has a recurrent network, of which no students are made; choose another preset")
    folder = out.with_name(f"{out.stem}.runs")
    settings = {"target": target, "episodes": episodes, "compress_episodes": compress_episodes}
    with exclusive(folder):
        tree = results.read_or_begin(out, FORM)

        def differs(kept: Mapping[str, Any], _: results.Records) -> str:
            return next(
                (f"{key} {kept[key]}, not {value}" for key, value in settings.items() if kept[key] != value), ""
            )

        results.make_room(tree, FORM, planned, out, overwrite, differs, **settings)
        everyone = [
            Member(row, Teacher(row.env, preset, seed, steps, tuple(overrides), **settings))
            for seed in range(first_seed, first_seed + teachers)
            for row in planned
        ]
        tree["failed"] = [entry for entry in tree["failed"] if not any(member.has(entry) for member in everyone)]
        work = _Work(tree, everyone, texts, folder, kept_runs or folder, results.session(tree, command))
        with _Bar(work.left()) as shown:
            for done in workers.run(work.jobs(), processes, folder, shown.tell):
                shown.finished(work.take(done), work.left())
                results.write(out, tree)
                work.tidy(done)
    if not tree["failed"]:
        shutil.rmtree(folder, ignore_errors=True)
    return tree


def read(path: pathlib.Path) -> dict[str, Any]:
    """A file of this benchmark.

    Raises:
        UserError: it is missing, or holds something else.
    """
    return results.read(path, FORM)


class Member(NamedTuple):
    """One teacher and the row that it belongs to."""

    row: Planned
    teacher: Teacher

    @property
    def key(self) -> dict[str, Any]:
        """What each of its records has."""
        return self.row.key | {"seed": self.teacher.seed}

    @property
    def name(self) -> str:
        """What its run's folder is called."""
        return self.row.name(self.teacher.seed)

    def has(self, record: Mapping[str, Any]) -> bool:
        """Whether a record is about it."""
        return runs.matches(record, self.key)


class _Work:
    """What the file lacks, as jobs: those of a teacher when it is there, those of a student when its teacher's are.

    Args:
        tree: the file's content, which grows by what ends.
        members: all teachers, in the order in which they are wanted.
        texts: the methods.
        folder: where agents with the students' architectures are trained.
        teachers_folder: where teachers are looked for and trained.
        session: the number of this one in the file.
    """

    def __init__(
        self,
        tree: dict[str, Any],
        members: Sequence[Member],
        texts: Sequence[str],
        folder: pathlib.Path,
        teachers_folder: pathlib.Path,
        session: int,
    ) -> None:
        self._tree, self._members, self._session = tree, members, session
        self._folder, self._teachers_folder = folder, teachers_folder
        self._groups: list[list[str]] = []  # methods that share a bundle
        for text in texts:
            group = next((it for it in self._groups if ways.parse(it[0]).bundle == ways.parse(text).bundle), None)
            if group is None:
                self._groups.append([text])
            else:
                group.append(text)
        self._runs: dict[str, pathlib.Path] = {}  # of the teachers that are there
        self._running: dict[str, tuple[Member, str]] = {}
        self._begun: set[str] = set()

    def jobs(self) -> Iterator[Job | None]:
        """Jobs until all that is missing has failed; None where the next one waits for one that is running."""
        while True:
            ready = (found for member in self._members for found in self._ready(member))
            found = next(((job, member, words) for job, member, words in ready if job.name not in self._begun), None)
            if found is None and not self._running:
                return
            if found is not None:
                job, member, words = found
                self._begun.add(job.name)
                self._running[job.name] = member, words
            yield None if found is None else job

    def left(self) -> int:
        """How many jobs the file lacks, as far as it tells now; a student brings one more."""
        return sum(
            (self._record(member) is None) + len(self._missing(member)) + len(self._alone(member))
            for member in self._members
        )

    def take(self, done: Done) -> str | None:
        """Puts what has ended into the file's content; what has gone wrong, if it has, in a sentence."""
        member, words = self._running.pop(done.job.name)
        label = f"{member.row.env} {member.row.preset} seed {member.teacher.seed} {words}"
        if done.error is not None:
            sentence = results.fail(self._tree, member.key | {"method": words}, self._session, done.error)
            say(f"{label}: failed: {sentence}")
            return sentence
        about = member.key | {"session": self._session}
        if done.job.function is ways.teach:
            self._runs[member.name], record = done.result
            if self._record(member) is None:
                config = results.configuration_of(self._tree, member.row.key)
                self._tree["teachers"].append(about | {"config": config} | record)
                say(f"{label}: mean return {number(_mean(record))}, {record['training_seconds']:,.0f} s")
            return None
        for cell in done.result:
            self._tree["cells"].append(about | cell)
            refused = "" if cell["passed"] else f", refused: {cell['failures'][0]}"
            say(f"{label}: {cell['method']}: {cell['bytes']:,} bytes, mean return {number(_mean(cell))}{refused}")
        return None

    def tidy(self, done: Done) -> None:
        """Deletes what nothing will be made of any more."""
        if done.error is not None:
            return
        (self._folder / f"{done.job.name}.log").unlink(missing_ok=True)
        if done.job.function is ways.train_small:
            shutil.rmtree(done.job.arguments[0], ignore_errors=True)
        if self._teachers_folder == self._folder:
            for member in self._members:
                if self._record(member) is not None and not self._missing(member) and not self._alone(member):
                    shutil.rmtree(self._folder / member.name, ignore_errors=True)

    def _ready(self, member: Member) -> Iterator[tuple[Job, Member, str]]:
        """The jobs of a teacher that could begin now, and what each is called."""
        missing, alone = self._missing(member), self._alone(member)
        record, run = self._record(member), self._runs.get(member.name)
        for architecture, variant, method in alone:
            name = f"{member.name}-scratch-{runs.file_name(architecture)}-{variant}-{method}"
            job = Job(name, ways.train_small, (self._folder / name, architecture, variant, method, member.teacher))
            yield job, member, f"scratch {architecture}"
        if run is None and (missing or record is None):
            job = Job(member.name, ways.teach, (self._teachers_folder, member.name, member.teacher, record))
            yield job, member, "teacher"
        elif run is not None and record is not None:
            for group in missing:
                name = f"{member.name}-{runs.file_name('-'.join(group))}"
                job = Job(name, ways.shrink, (run, group, member.teacher, record["architecture"]))
                yield job, member, ", ".join(group)

    def _record(self, member: Member) -> dict[str, Any] | None:
        return next((record for record in self._tree["teachers"] if member.has(record)), None)

    def _missing(self, member: Member) -> list[list[str]]:
        """Methods that the file has no cell of, those of one bundle together."""
        there = {cell["method"] for cell in self._tree["cells"] if member.has(cell)}
        left = [[text for text in group if text not in there] for group in self._groups]
        return [group for group in left if group]

    def _alone(self, member: Member) -> list[tuple[str, ways.Variant, str]]:
        """Students, their files and how those are quantised, without an agent from scratch beside them."""
        cells = [cell for cell in self._tree["cells"] if member.has(cell) and cell["distilled"]]
        return list(
            dict.fromkeys(
                (cell["architecture"], cell["variant"], cell["quantisation"])
                for cell in cells
                if scratch_of(self._tree, cell) is None
            )
        )


def _mean(record: Mapping[str, Any]) -> float:
    return float(sum(record["returns"]) / len(record["returns"]))


class _Bar:
    """Jobs with the time left, and what the one that has spoken last is at; without a terminal, a line now and then."""

    def __init__(self, left: int) -> None:
        self._bar, self._failed = bar(left, " jobs"), 0
        self._said: dict[str, float] = {}  # when each job has begun, or was last told of

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def tell(self, job: Job, words: str) -> None:
        """A job has said what it is at."""
        sentence, now = f"{job.name}: {words}", time.monotonic()
        self._bar.set_postfix_str(sentence)
        if self._bar.disable and now - self._said.setdefault(job.name, now) >= QUIET_SECONDS:
            self._said[job.name] = now
            say(sentence)

    def finished(self, error: str | None, left: int) -> None:
        """A job has ended, and so many are left, as far as is known."""
        self._failed += error is not None
        self._bar.total = self._bar.n + 1 + left - self._failed  # what has failed is lacking, but not tried again now
        self._bar.update()
