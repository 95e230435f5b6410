"""From a run to the smallest bundle that plays as well, or to the best one within a budget."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rlplatform import compression
from rlplatform.compression import (
    Candidate,
    Distillery,
    Progress,
    Quantisation,
    Target,
    Teacher,
    Verification,
    students,
)
from rlplatform.compression.students import Architecture
from rlplatform.envs.naming import Factory
from rlplatform.errors import RunError, UserError
from rlplatform.export import bundle
from rlplatform.export.exporting import (
    BY_DEFAULT,
    Refused,
    Student,
    TooLarge,
    Which,
    check_formats,
    export,
)
from rlplatform.export.recurrent import refuse_students
from rlplatform.training import Run

# What files take beside their weights; measured on networks of 700 to 8,000 bytes, good to a tenth, or
# to a quarter where ai-edge-quantizer makes the file.
BYTES, HIDDEN_BYTES, LAYER_BYTES, IMAGE_BYTES = (
    660,
    320,
    100,
    560,
)  # in int8: at least; for hidden layers; for each more
FILTER_BYTES, AROUND_BYTES = 12, 350  # for each filter, the scale of its own; for floats in and out around int8
FLOAT_BYTES, FLOAT_LAYER_BYTES = 740, 110  # in float32: at least; for each layer more
SIZING_STATES = 1_000  # that ranges are calibrated on where only the size of a file is asked for


def compress(
    run: Run | str | pathlib.Path,
    out: str | pathlib.Path,
    budget: int | str | None = None,
    *,
    target: Target = "cpu",
    formats: Iterable[str] = BY_DEFAULT,
    quantisation: Quantisation = "auto",
    qat: bool = False,
    episodes: int = 100,
    seed: int = 0,
    prune: float | None = None,
    clusters: int | None = None,
    force: bool = False,
    overwrite: bool = False,
    which: Which = "best",
    factory: Factory | None = None,
    log_dir: str | pathlib.Path | None = None,
    progress: Progress | None = None,
) -> Verification:
    """The small, verified bundle of a run's policy: lossless folds, then int8; with a budget, a distilled student.

    Args:
        run: the run, or its folder.
        out: the folder that becomes the bundle.
        budget: bytes that the smaller of the bundle's files may have, as a number or like `4kB`; `auto` for as few as
            pass the verification; None for the run's own network.
        target: as for `export`.
        formats: as for `export`.
        quantisation: as for `export`.
        qat: as for `export`.
        episodes: of every policy in the verification, and of every student in the search.
        seed: of all that is drawn.
        prune: the share of weights that become zero before the network is converted; units that it leaves without
            inputs or outputs are removed.
        clusters: how many values each kernel's weights may have.
        force: as for `export`.
        overwrite: as for `export`.
        which: as for `export`.
        factory: as for `export`.
        log_dir: where TensorBoard finds the losses of the students; nothing is written if None.
        progress: is told, in a few words, what begins.

    Raises:
        UserError: an argument is wrong, nothing fits into the budget, or the network is none that students are made of.
        Refused: nothing within the budget passes the verification; `out` is as it was.
        RunError: as for `export`; or no student has learned anything.
    """
    options: dict[str, Any] = {
        "target": target,
        "formats": check_formats(formats),
        "quantisation": quantisation,
        "qat": qat,
        "episodes": episodes,
        "seed": seed,
        "overwrite": overwrite,
        "which": which,
        "factory": factory,
        "progress": progress,
    }
    if budget is None and prune is None and clusters is None:
        return _itself(run, out, force, options)
    limit = None if budget is None else compression.parse_budget(budget)
    if prune is not None and not 0.0 < prune < 1.0:
        raise UserError(f"the share of weights to prune lies between 0 and 1; got {prune}")
    if clusters is not None and clusters < 2:
        raise UserError(f"clustering needs at least 2 values for a kernel; got {clusters}")
    run = run if isinstance(run, Run) else Run.open(run)
    out = pathlib.Path(out)
    refuse_students(run)
    bundle.check(out, overwrite)
    folded = compression.canonical(run.network(which)).model
    ladder = [] if budget is None else _ladder(run, folded, target, limit)
    distillery = Distillery(
        Teacher(
            folded,
            run.act(which),
            run.config.environment,
            "uint8" if run.spec.binary else run.spec.observation_dtype,
            factory,
        ),
        seed,
        episodes=episodes,
        log_dir=None if log_dir is None else pathlib.Path(log_dir),
        progress=progress,
    )
    order: list[Candidate | None] = [None] if budget is None else [*_found(distillery, ladder, limit)]
    if limit is None and budget is not None:
        order.append(None)  # in the end, the network itself is the smallest that plays as well
    sizes: dict[Architecture, int] = {}
    forced: tuple[Candidate | None, Student, Quantisation] | None = None  # the first choice, if nothing passes
    while order:
        candidate = order.pop(0)
        candidate = candidate and distillery.improve(candidate)
        if budget is not None:
            _measure(sizes, distillery, run.spec.observation_dtype, target, quantisation, progress)
        if candidate is not None and candidate.architecture not in sizes:
            if order:
                continue
            raise RunError(
                f"the student {candidate.architecture} gives the same values everywhere: its units have died; a larger "
                "budget makes larger students"
            )
        student = _student(distillery, candidate, sizes, folded, prune, clusters, seed, progress)
        if student is None:
            return _itself(run, out, force, options)
        student = student._replace(report={"budget": budget, **student.report}, limit=limit)
        try:
            return export(run, out, student=student, **options)
        except TooLarge:  # Sizes were predicted, and this one too small.
            assert candidate is not None
            options["quantisation"] = quantisation
            ladder = ladder[ladder.index(candidate.architecture) + 1 :]
            order = [*_found(distillery, ladder, limit)]
            if not order:
                raise
        except Refused as refused:
            wider = target == "mcu" and options["quantisation"] == "auto" and refused.narrow
            if forced is None or forced[0] is candidate:
                forced = candidate, student, options["quantisation"]
            options["quantisation"] = "int16x8" if wider else quantisation
            if wider:  # int16 activations take four bytes a unit more, and lose less.
                order.insert(0, candidate)
            elif not order and limit is not None and candidate is not None and candidate.passed:
                # On other episodes none of the best few plays as well as where they were chosen: a smaller one may.
                known = {tried.architecture for tried in distillery.candidates}
                ladder = [rung for rung in ladder if rung not in known]
                order = [found for found in _found(distillery, ladder, limit) if found.passed]
            if order:
                continue
            if not force:
                raise
            _, student, options["quantisation"] = forced
            return export(run, out, force=True, student=student, **options)
    raise AssertionError("there is always a last one")


def _itself(
    run: Run | str | pathlib.Path, out: str | pathlib.Path, force: bool, options: dict[str, Any]
) -> Verification:
    """The run's own network; for a microcontroller with int16 activations, where int8 ones lose too much."""
    if options["target"] == "mcu" and options["quantisation"] == "auto":
        try:
            return export(run, out, **options)
        except Refused as refused:
            if refused.narrow:
                options = options | {"quantisation": "int16x8"}
            elif not force:
                raise
    return export(run, out, force=force, **options)


def _measure(
    sizes: dict[Architecture, int],
    distillery: Distillery,
    observation_dtype: str,
    target: Target,
    quantisation: Quantisation,
    progress: Progress | None,
) -> None:
    """Puts the bytes of the smaller file of each student that was tried into `sizes`, as the converter makes it.

    A student whose units have all died, so that it gives the same values everywhere, is left out: ranges of no width
    make an int8 file that LiteRT does not run.
    """
    seen = distillery.labels.at(np.arange(min(SIZING_STATES, len(distillery.labels.values))))
    new = [
        tried.architecture
        for tried in distillery.candidates
        if tried.architecture not in sizes and _lives(distillery.model(tried.architecture), seen.observations)
    ]
    if not new:
        return
    (progress or (lambda words: None))("measuring the students' files")
    models = [compression.canonical(distillery.model(architecture)).model for architecture in new]
    files = compression.convert_all(
        models, seen.observations.astype(observation_dtype), target, quantisation, seen.masks
    )
    for architecture, made in zip(new, files, strict=True):
        sizes[architecture] = min(len(made.float_file), len(made.int8_file))


def _student(
    distillery: Distillery,
    candidate: Candidate | None,
    sizes: Mapping[Architecture, int],
    folded: Any,
    prune: float | None,
    clusters: int | None,
    seed: int,
    progress: Progress | None,
) -> Student | None:
    """A candidate's network, or the teacher's own, pruned and clustered as asked for; None where nothing is done."""
    tell = progress or (lambda words: None)
    model = folded if candidate is None else distillery.model(candidate.architecture)
    report = _report(distillery, candidate, sizes, folded)
    if prune is not None:
        tell(f"pruning {prune:.0%} of the weights")
        pruned = compression.prune(model, distillery.labels, distillery.held_out, prune, seed=seed)
        model = pruned.model
        report["pruning"] = {"sparsity": prune, "layers": pruned.sparsities}
    if clusters is not None:
        tell(f"clustering weights into {clusters} values")
        clustered = compression.cluster(model, distillery.labels, distillery.held_out, clusters, seed=seed)
        model = clustered.model
        report["clustering"] = {"clusters": clusters, "values": clustered.values}
    return None if model is folded else Student(model, report)


def _ladder(run: Run, folded: Any, target: Target, limit: int | None) -> list[Architecture]:
    """The students that come into question, most weights first."""
    shape = students.of_teacher(folded)
    if shape is None:
        raise UserError(
            f"{run.path} has a network of layers that no student has, so there is no smaller one of its kind; compress "
            "it without a budget"
        )
    observation, num_actions = run.observation_shape, run.spec.num_actions
    whole = int(folded.count_params())  # LayerNorm counts: without it, the teacher's own shape is a smaller network.
    ladder = students.ladder(shape, observation, num_actions)
    ladder = [rung for rung in ladder if students.parameters(rung, observation, num_actions) < whole]
    if limit is None:
        return ladder
    sizes = [predicted_bytes(rung, observation, num_actions, target) for rung in ladder]
    fitting = [rung for rung, size in zip(ladder, sizes, strict=True) if size <= limit]
    if not fitting:
        raise UserError(f"no policy fits into {limit:,} bytes: the smallest here takes about {min(sizes):,}")
    return fitting


def predicted_bytes(architecture: Architecture, shape: tuple[int, ...], num_actions: int, target: Target) -> int:
    """About how many bytes the smaller file of a student will have."""
    filters = [layer.filters for layer in architecture.convolutions]
    units = [*architecture.hidden, num_actions]
    parameters = students.parameters(architecture, shape, num_actions)
    int8 = BYTES + parameters + 3 * (sum(filters) + sum(units)) + FILTER_BYTES * sum(filters)
    for kind, first in ((filters, IMAGE_BYTES), (architecture.hidden, HIDDEN_BYTES)):
        int8 += first + LAYER_BYTES * (len(kind) - 1) if kind else 0
    if target == "mcu":
        return int8
    in_float = FLOAT_BYTES + 4 * parameters + FLOAT_LAYER_BYTES * (len(filters) + len(units) - 1)
    return min(int8 + AROUND_BYTES + parameters // 20, in_float)  # Small layers may stay float32.


def _found(distillery: Distillery, ladder: list[Architecture], limit: int | None) -> list[Candidate]:
    """Students to export, the first choice first: the smallest that passes; within a limit the one that loses least."""
    find = compression.smallest if limit is None else compression.best_of
    best = find(distillery, ladder)
    passing = [it for it in distillery.candidates if it.passed and it.architecture in ladder]
    if passing or best is None:
        if limit is None:
            return sorted(passing, key=lambda candidate: candidate.parameters)
        return sorted(passing, key=compression.of_budget, reverse=True)
    return [best] if limit is not None else []


def _lives(model: Any, observations: np.ndarray[Any, Any]) -> bool:
    """Whether a network's values depend on what it sees."""
    values = np.asarray(model(observations.astype(np.float32), training=False))
    return bool((np.ptp(values, axis=0) > 0).any())


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each point, whether no other is less in one coordinate and not more in the other."""
    return [not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points) for x, y in points]


def _report(
    distillery: Distillery, chosen: Candidate | None, sizes: Mapping[Architecture, int], folded: Any
) -> dict[str, Any]:
    tried = distillery.candidates
    measured = [candidate for candidate in tried if candidate.architecture in sizes]
    points = [(sizes[candidate.architecture], -candidate.interquartile_mean) for candidate in measured]
    front = {candidate.architecture for candidate, best in zip(measured, pareto(points), strict=True) if best}
    report: dict[str, Any] = {
        "teacher_parameters": int(folded.count_params()),
        "teacher_interquartile_mean": distillery.teacher_interquartile_mean,
        "labelled_states": len(distillery.labels.values),
        "candidates": [
            candidate.to_json()
            | {"bytes": sizes.get(candidate.architecture), "on_front": candidate.architecture in front}
            for candidate in tried
        ],
    }
    if chosen is not None:
        report["architecture"] = str(chosen.architecture)
    return report
