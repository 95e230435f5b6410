"""Ways to make a policy small, and what the benchmark of compression measures of each, in a process of its own."""

import hashlib
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rlplatform import envs
from rlplatform.benchmarks import runs
from rlplatform.config import Config
from rlplatform.errors import RunError, UserError
from rlplatform.workers import Ask

if TYPE_CHECKING:
    from rlplatform.compression import Target, Verification

Variant = Literal["float", "int8"]


class Method(NamedTuple):
    """One way to make a policy small.

    Attributes:
        budget: bytes or `auto`, for a student that is distilled; None for the network itself.
        prune: the share of weights that become zero; None for none.
        clusters: how many values each kernel's weights may have; None for any.
        variant: the file that is measured; None for the smallest whose gates hold, of those within the budget.
        int16: whether the file has int16 activations.
    """

    budget: str | None = None
    prune: float | None = None
    clusters: int | None = None
    variant: Variant | None = None
    int16: bool = False

    @property
    def bundle(self) -> "Method":
        """What methods have in common that have one bundle."""
        return self._replace(variant=None)

    def options(self, target: "Target") -> dict[str, Any]:
        """What `compress` is given."""
        quantisation = "int16x8" if self.int16 else "auto"
        if target == "mcu" and self.bundle == Method():  # `auto` would take int16 where int8 loses too much.
            quantisation = "static"
        return {"budget": self.budget, "prune": self.prune, "clusters": self.clusters, "quantisation": quantisation}


PLAIN = {
    "folds": Method(variant="float"),
    "int8": Method(variant="int8"),
    "int16x8": Method(variant="int8", int16=True),
}


def parse(text: str) -> Method:
    """The method of a name: `folds`, `int8`, `int16x8`, `auto`, a size like `2.7kB`, `prune=0.9`, `clusters=16`.

    The last four may be joined: `auto+prune=0.5`.

    Raises:
        UserError: it is none.
    """
    if text in PLAIN:
        return PLAIN[text]
    from rlplatform import compression

    found: dict[str, Any] = {}
    for part in text.split("+"):
        name, is_setting, value = part.partition("=")
        try:
            if is_setting and name == "prune" and 0.0 < float(value) < 1.0:
                found["prune"] = float(value)
            elif is_setting and name == "clusters" and int(value) > 1:
                found["clusters"] = int(value)
            else:
                compression.parse_budget(part)
                found["budget"] = part
        except (UserError, ValueError):
            raise UserError(
                f"unknown method {text!r}; methods are folds, int8, int16x8, auto, a size like 2.7kB, prune=0.9 and "
                "clusters=16, and the last four joined by +"
            ) from None
    return Method(**found)


def from_scratch(architecture: str) -> list[str]:
    """The settings of an agent whose network has a student's architecture.

    Args:
        architecture: as `compression.students` writes it.
    """
    from rlplatform.compression import students

    shape = students.parse(architecture)
    torso = "cnn" if shape.convolutions else "mlp" if shape.hidden else "linear"
    settings = ["network.dueling=false", "network.layer_norm=false", f"network.torso={torso}"]
    if shape.convolutions:  # Before these, statistics of single pixels do not fold, and no student has them.
        settings += [
            "network.normalize_observations=false",
            f"network.convolutions={[list(layer) for layer in shape.convolutions]}",
        ]
    return [*settings, f"network.hidden_units={list(shape.hidden)}"]


class Teacher(NamedTuple):
    """What the jobs of one teacher have in common."""

    env: str
    preset: str
    seed: int
    steps: int | None
    overrides: Sequence[str]
    target: "Target"
    episodes: int  # on which the teacher, every file and random actions are compared
    compress_episodes: int  # by which `compress` chooses and verifies

    @property
    def training(self) -> tuple[str, str, int, int | None, Sequence[str]]:
        """What it is trained with, as `runs.train` takes it."""
        return self.env, self.preset, self.seed, self.steps, self.overrides

    @property
    def config(self) -> Config:
        """The same as a configuration."""
        return runs.config_of(*self.training)

    @property
    def episode_seeds(self) -> list[int]:
        """Neither training, nor the choice of a student, nor the verification has used them."""
        return envs.seeds(self.seed, self.episodes, "evaluation")


# --- in a process of its own ----------------------------------------------------------------------------------------


def teach(folder: pathlib.Path, name: str, teacher: Teacher, known: Mapping[str, Any] | None, ask: Ask) -> Any:
    """Trains a teacher, goes on with it, or takes the finished run of the same configuration that is there.

    Args:
        folder: where runs lie.
        name: of the teacher's run there, where no other one fits.
        teacher: what it is trained with.
        known: its record, if there is one already.
        ask: hands words on.

    Returns:
        The run's folder, and the record.

    Raises:
        RunError: it is not the policy that the record was made of.
    """
    from rlplatform import api, compression, devices
    from rlplatform.compression import students
    from rlplatform.training import Run

    found = finished(folder, teacher.config)
    if found is not None:
        run = Run.open(found)
    else:
        run, _ = runs.train(folder / name, *teacher.training, _steps(ask))
    best = run.best()
    assert best is not None
    policy = hashlib.sha256(b"".join(weight.tobytes() for weight in best.weights)).hexdigest()
    if known is not None:
        if known["policy"] != policy:
            raise RunError(
                f"{run.path} plays another policy than the teacher in the file, so its figures do not belong beside "
                "those; give the folder of the old runs by --runs, or another --out"
            )
        return run.path, dict(known)
    folded = compression.canonical(run.network()).model
    shape = students.of_teacher(folded)
    newest = runs.newest_row(run.path)
    ask("playing")
    return run.path, {
        "steps": newest["step"],
        "best_step": best.step,
        "training_seconds": round(float(newest["seconds"]), 1),
        "device": devices.describe(run.config.device, run.config.replicas),
        "policy": policy,
        "architecture": "" if shape is None else str(shape),
        "parameters": int(run.network().count_params()),
        "returns": runs.compact(api.evaluate(run, episodes=teacher.episodes, seed=teacher.seed).evaluation.returns),
        "random_returns": runs.play_random(run.config.environment, teacher.episode_seeds),
    }


def shrink(run: pathlib.Path, texts: Sequence[str], teacher: Teacher, own: str, ask: Ask) -> list[dict[str, Any]]:
    """The cells of methods that have one bundle.

    Args:
        run: the teacher's folder.
        texts: the methods.
        teacher: whose network it is.
        own: its architecture.
        ask: hands words on.
    """
    from rlplatform import api, compression

    method = parse(texts[0])

    def make(out: pathlib.Path) -> "Verification":
        return api.compress(run, out, **method.options(teacher.target), **_options(teacher, ask))

    wanted = [parse(text).variant for text in texts]
    limit = None if method.budget is None else compression.parse_budget(method.budget)
    cells, report = _measured(make, wanted, teacher, limit)
    about = {"architecture": report.get("architecture", own), "distilled": "architecture" in report}
    return [{"method": text, **about, **cell} for text, cell in zip(texts, cells, strict=True)]


def train_small(
    folder: pathlib.Path, architecture: str, variant: Variant, quantisation: str, teacher: Teacher, ask: Ask
) -> list[dict[str, Any]]:
    """The cell of an agent with a student's architecture that is trained as the teacher was.

    Its files are made as the student's are: of whole steps, and with the same activations.

    Args:
        folder: the agent's run.
        architecture: the student's.
        variant: the file of the student that was measured.
        quantisation: how that file was made, as `policy.json` names it; `none` for float32.
        teacher: whose training it repeats, and whose episodes it plays.
        ask: hands words on.
    """
    from rlplatform.export import Student, export

    small = teacher._replace(overrides=[*teacher.overrides, *from_scratch(architecture)])
    run, _ = runs.train(folder, *small.training, _steps(ask))

    def make(out: pathlib.Path) -> "Verification":
        asked = quantisation if quantisation in ("static", "int16x8") else "auto"
        own = Student(run.network(), {})
        return export(run, out, student=own, quantisation=asked, **_options(teacher, ask))  # type: ignore[arg-type]

    (cell,), _ = _measured(make, [variant], teacher)
    about = {"method": "scratch", "architecture": architecture, "distilled": False}
    seconds = round(float(runs.newest_row(run.path)["seconds"]), 1)
    return [about | cell | {"golden": None, "visited": None, "clear": None, "training_seconds": seconds}]


def finished(folder: pathlib.Path, config: Config) -> pathlib.Path | None:
    """A run of this configuration and this seed in a folder of runs that has had its last evaluation."""
    from rlplatform.training import Run

    for path in sorted(folder.glob("*/config.toml")):
        try:
            run = Run.open(path.parent)
            row = runs.newest_row(run.path)
            evaluated = row["step"] >= config.training.total_steps and "eval/return" in row
        except (UserError, RunError, OSError, ValueError, LookupError):  # no run, or one that has only begun
            continue
        if evaluated and run.config.seed == config.seed and not runs.differences(run.config, config):
            return run.path
    return None


def _steps(ask: Ask) -> Callable[[int], object]:
    return lambda step: ask(f"step {step:,}")


def _options(teacher: Teacher, ask: Ask) -> dict[str, Any]:
    """How every bundle is made: what fails a gate is measured too, and marked."""
    return {
        "target": teacher.target,
        "episodes": teacher.compress_episodes,
        "seed": teacher.seed,
        "force": True,
        "progress": ask,
    }


def _measured(
    make: Callable[[pathlib.Path], "Verification"],
    wanted: Iterable[Variant | None],
    teacher: Teacher,
    limit: int | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What each of the wanted files of a bundle is, and how it plays; and what the bundle says of its compression.

    Args:
        make: makes the bundle.
        wanted: the files, or None for the best one: of those within the limit the smallest whose gates hold.
        teacher: whose episodes they play.
        limit: bytes that a file may take; None for any number.
    """
    from rlplatform import training
    from rlplatform.compression.playing import act_of
    from rlplatform.runtime import Policy

    with tempfile.TemporaryDirectory() as place:
        out = pathlib.Path(place, "bundle")
        begin = time.perf_counter()
        verification = make(out)
        seconds = round(time.perf_counter() - begin, 1)
        rows = {row.variant: row for row in verification.rows if row.variant != "network"}
        failures = {variant: _failures(verification, rows, variant) for variant in rows}
        smallest = best_file({variant: row.bytes for variant, row in rows.items()}, failures, limit)
        cells = []
        for variant in wanted:
            chosen = variant or smallest
            if chosen not in rows:
                raise RunError(f"the {chosen} file does not run: {verification.failures[0]}")
            row, policy = rows[chosen], Policy(out, chosen)  # type: ignore[arg-type]
            played = training.evaluate(act_of(policy), teacher.config.environment, teacher.episode_seeds)
            # `compress` refuses a bundle with any file that fails; a file that is asked for stands for itself.
            failed = failures[chosen] if variant else verification.failures
            cells.append(
                {
                    "variant": chosen,
                    "quantisation": policy.manifest["files"][row.name].get("quantisation", {}).get("method", "none"),
                    "parameters": policy.manifest["network"]["canonical_parameters"],
                    "bytes": row.bytes,
                    "gzip_bytes": row.gzip_bytes,
                    "microseconds": round(row.microseconds, 2),
                    "golden": None if row.golden is None else round(row.golden.overall, 5),
                    "visited": None if row.visited is None else round(row.visited.overall, 5),
                    "clear": None if row.golden is None or row.golden.clear is None else round(row.golden.clear, 5),
                    "passed": not failed,
                    "failures": failed,
                    "gates": {gate.name: gate.sentence for gate in verification.gates if gate.file == row.name},
                    "seconds": seconds,
                    "returns": runs.compact(played.returns),
                }
            )
        return cells, policy.manifest.get("compression", {})


def best_file(sizes: Mapping[str, int], failures: Mapping[str, Sequence[str]], limit: int | None) -> str:
    """Of those within `limit` bytes the smallest whose gates hold; where there is none, the next best."""

    def rank(variant: str) -> tuple[bool, bool, int]:
        return limit is not None and sizes[variant] > limit, bool(failures[variant]), sizes[variant]

    return min(sizes, key=rank)


def _failures(verification: "Verification", rows: Mapping[str, Any], variant: str) -> list[str]:
    """The gates that do not hold for one file, or for the bundle as a whole."""
    others = {row.name for name, row in rows.items() if name != variant}
    failed = zip((gate for gate in verification.gates if not gate.passed), verification.failures, strict=True)
    return [sentence for gate, sentence in failed if gate.file not in others]
