"""From a run to a bundle: canonical form, conversion, writing, verification; then kept, or refused."""

import contextlib
import dataclasses
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np

import rlplatform
from rlplatform import compression
from rlplatform import config as configuration
from rlplatform.agents.acting import masked
from rlplatform.compression import (
    GOLDEN,
    NETWORK,
    ONNX_FILE,
    STUDENT,
    Canonical,
    Files,
    Golden,
    Progress,
    Quantisation,
    Target,
    Verification,
    act_of_network,
    micro,
    onnx_file,
)
from rlplatform.compression.converter import CONVERTER
from rlplatform.envs.naming import Factory
from rlplatform.errors import RunError, UserError, nearest
from rlplatform.export import bundle, c_layers, c_source, recurrent, report
from rlplatform.training import Run

Array = np.ndarray[Any, Any]
Which = Literal["best", "last"]

FORMATS = ("tflite", "saved_model", "onnx", "c")
BY_DEFAULT = ("tflite", "saved_model")
FLOAT_FILE, INT8_FILE = "policy.tflite", "policy_int8.tflite"
POOL = 4_000  # Observations that calibration and golden states are taken from.
POOL_BYTES = 2**26  # Of images, fewer.
GOLDEN_STATES = 1_000
CALIBRATION_STATES = 3_000  # That the ranges of int8 are taken from.
CALIBRATION_BYTES = 2**24  # Of images, fewer, but at least 1,000.
AWARE_STATES = 20_000  # That a network is trained for int8 on.
AWARE_BYTES = 2**28  # Of images, fewer.
SLOWER = 1.5  # An int8 file that takes so many times as long as the float32 file is not what `auto` opens.


class Refused(RunError):
    """A policy was not exported: a gate has failed, or it does not fit into its budget.

    Attributes:
        narrow: whether nothing but its int8 file fails, and that has int8 activations and could have int16 ones, which
            lose less.
    """

    def __init__(self, message: str, narrow: bool = False) -> None:
        super().__init__(message)
        self.narrow = narrow


class TooLarge(Refused):
    """No file of a student fits into its budget."""


class Student(NamedTuple):
    """A network that was distilled from a run's own, and is exported in its place.

    Attributes:
        model: `[B, O...]` float32 to `[B, A]`.
        report: how it was found, for `policy.json`.
        limit: bytes that its smallest file may have; None for any.
    """

    model: Any
    report: dict[str, Any]
    limit: int | None = None


@dataclasses.dataclass(frozen=True)
class _Subject:
    """What is exported: a network, the one that its files are made of, and observations that are met."""

    network: Any
    source: Any
    canonical: Canonical
    files: Files
    golden: Golden


def export(
    run: Run | str | pathlib.Path,
    out: str | pathlib.Path,
    target: Target = "cpu",
    formats: Iterable[str] = BY_DEFAULT,
    episodes: int = 100,
    seed: int = 0,
    force: bool = False,
    overwrite: bool = False,
    *,
    quantisation: Quantisation = "auto",
    qat: bool = False,
    which: Which = "best",
    factory: Factory | None = None,
    progress: Progress | None = None,
    student: Student | None = None,
) -> Verification:
    """Exports a run's policy as a bundle that is verified, or not at all.

    Args:
        run: the run, or its folder.
        out: the folder that becomes the bundle.
        target: what the int8 file is for: `cpu` (float in and out) or `mcu` (integers in and out).
        formats: `tflite` is always written; `saved_model` adds the network as it was trained, which `verify` needs;
            `onnx` adds `policy.onnx`, the float32 file's twin; `c` adds `policy.h` and `policy.c`.
        episodes: of every policy in the verification.
        seed: of the verification's episodes and of the states that are sampled.
        force: keep the bundle though a gate fails; `policy.json` says so.
        overwrite: replace a bundle that lies at `out`.
        quantisation: how the int8 file is made, see `compression.convert`. Where a static file falls short of the gate
            of agreement, quantisation-aware training is tried, and the better file is kept.
        qat: try that training in any case, for a static file.
        which: the policy that evaluated best, or the newest one.
        factory: a callable that makes the environment, for a run that was given one.
        progress: is told, in a few words, what begins.
        student: what the files are made of in place of the run's network, with which it is still compared.

    Returns:
        The verification, whose `path` is `out`.

    Raises:
        UserError: an argument is wrong, or `out` holds something that may not be replaced.
        Refused: a gate fails, or the student does not fit into its budget; `out` is as it was.
        RunError: the converter fails, or the disk is full; `out` is as it was.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    out = pathlib.Path(out)
    chosen = check_formats(formats)
    if target not in compression.TARGETS:
        raise UserError(f"unknown target {target!r}; {nearest(target, compression.TARGETS)}")
    recurrent.refuse(run, target, quantisation, qat, chosen)
    bundle.check(out, overwrite)
    if qat and quantisation not in ("auto", "static"):
        raise UserError(f"quantisation-aware training is for static int8; leave --qat out for {quantisation}")
    quantisation = "static" if qat else quantisation
    subject = _prepare(run, which, target, quantisation, qat, seed, factory, progress, student, "onnx" in chosen)
    manifest, details = _describe(run, which, target, subject)
    in_c = _in_c(run, subject) if "c" in chosen else {}
    if student is not None:
        manifest["compression"] = student.report
        least = min(len(subject.files.float_file), len(subject.files.int8_file))
        if student.limit is not None and least > student.limit:
            raise TooLarge(f"the smallest file takes {least:,} bytes, more than the budget of {student.limit:,}")
    with bundle.draft(out, overwrite) as folder:
        with bundle.writing(out):
            (folder / FLOAT_FILE).write_bytes(subject.files.float_file)
            (folder / INT8_FILE).write_bytes(subject.files.int8_file)
            if subject.files.onnx_file is not None:
                (folder / ONNX_FILE).write_bytes(subject.files.onnx_file)
            for name, text in in_c.items():
                (folder / name).write_text(text)
            golden = {name: array for name, array in subject.golden._asdict().items() if array is not None}
            np.savez_compressed(folder / GOLDEN, **golden)
            mask = subject.golden.masks is not None
            compression.save(subject.network, run.spec.observation_dtype, folder / NETWORK, mask=mask, batch=None)
            if student is not None:
                compression.save(subject.source, run.spec.observation_dtype, folder / STUDENT, mask=mask, batch=None)
            bundle.seal(folder, manifest, details)
        verification = compression.verify(folder, episodes, seed, factory=factory, progress=progress)
        if not verification.passed and not force:
            sentence = f"{verification.failures[0]}{_advice(subject, verification)}; {out} was not written"
            raise Refused(sentence, narrow=_is_narrow(subject, target, verification))
        manifest["default"] = _default(verification)
        verification = dataclasses.replace(verification, path=out)
        manifest["verification"] = {"forced": not verification.passed, **verification.to_json()}
        del manifest["verification"]["path"]
        with bundle.writing(out):
            (folder / report.REPORT).write_text(report.page(manifest), encoding="utf-8")
            if "saved_model" not in chosen:
                shutil.rmtree(folder / NETWORK)
                shutil.rmtree(folder / STUDENT, ignore_errors=True)
            bundle.seal(folder, manifest, details)
    return verification


def check_formats(formats: Iterable[str]) -> set[str]:
    """The formats, each of which can be written.

    Raises:
        UserError: one is unknown, or a package for it is missing.
    """
    chosen = set(formats)
    for name in sorted(chosen.difference(FORMATS)):
        raise UserError(f"unknown format {name!r}; {nearest(name, FORMATS)}")
    if "onnx" in chosen and (missing := onnx_file.missing_converter()) is not None:
        raise UserError(f"the format onnx cannot be written: {missing}")
    return chosen


def _in_c(run: Run, subject: _Subject) -> dict[str, str]:
    """`policy.h` and `policy.c`: of the float32 file, and of the static file where C has all of it."""
    files = subject.files
    whole = compression.inspection.read(files.int8_file).fits_c
    weights = subject.canonical.model.count_params()
    header, source = c_source.write(
        c_layers.read_layers(files.float_file),
        c_layers.read_layers(files.int8_file) if whole else None,
        f"{run.config.environment.id}: the policy of {run.path.resolve().name}, {weights:,} weights",
        None if files.scaling is None else files.scaling._asdict(),
    )
    return {"policy.h": header, "policy.c": source}


def _prepare(
    run: Run,
    which: Which,
    target: Target,
    quantisation: Quantisation,
    qat: bool,
    seed: int,
    factory: Factory | None,
    progress: Progress | None,
    student: Student | None,
    onnx: bool,
) -> _Subject:
    """Collects observations, folds the network and converts it."""
    tell = progress or (lambda words: None)
    tell("collecting observations")
    CONVERTER.start()
    network = run.network(which)
    if run.config.is_recurrent:
        return _prepare_recurrent(run, network, quantisation, seed, factory, tell, onnx)
    source = network if student is None else student.model
    act = run.act(which) if student is None else act_of_network(source)
    frame_bytes = int(np.prod(run.observation_shape)) * np.dtype(run.spec.observation_dtype).itemsize
    count = max(GOLDEN_STATES, min(POOL, POOL_BYTES // frame_bytes))
    pool, masks = compression.visited(act, run.config.environment, count, seed, factory=factory)
    if masks is None:  # What lies in the replay has no masks beside it.
        pool = compression.mixture(pool, run.observations(count, seed), count, seed)
    canonical = compression.canonical(source)
    most = max(1_000, min(CALIBRATION_STATES, CALIBRATION_BYTES // frame_bytes))
    calibration, calibration_masks = pool[:most], None if masks is None else masks[:most]
    if student is not None and (target == "mcu" or quantisation in ("static", "int16x8")):
        canonical = compression.rounded(canonical, calibration, target)
        source = canonical.model
    golden = _golden(source, canonical, pool, masks)
    tell(f"converting for {target}")
    model = canonical.model
    form, _ = compression.static_form(model, calibration, target)
    if qat:
        compression.aware.refuse_unknown(form)
    files = compression.convert(model, calibration, target, quantisation, calibration_masks, onnx=onnx)
    golden_labels = compression.Labels(golden.observations, golden.q, golden.masks)
    falls_short = compression.aware.knows(form) and compression.falls_short(files, golden_labels)
    may_widen = student is not None and target == "mcu" and quantisation == "auto"
    if falls_short and may_widen and compression.refuses_int16x8(model, target) is None:
        files = compression.convert(model, calibration, target, "int16x8", calibration_masks, onnx=onnx)
    elif qat or falls_short:
        tell("training for int8")
        environment, count = run.config.environment, min(AWARE_STATES, max(GOLDEN_STATES, AWARE_BYTES // frame_bytes))
        labels, held_out = (
            compression.gather(model, act, environment, size, seed, stream, factory=factory)
            for size, stream in ((count, "aware"), (max(GOLDEN_STATES, count // 5), "aware-held-out"))
        )
        files = compression.retrain(model, files, calibration, calibration_masks, target, labels, held_out, seed=seed)
    return _Subject(network, source, canonical, files, golden)


def _prepare_recurrent(
    run: Run,
    network: Any,
    quantisation: Quantisation,
    seed: int,
    factory: Factory | None,
    tell: Progress,
    onnx: bool,
) -> _Subject:
    """The same for a network that remembers: its golden states are sequences, and int8 is calibrated on them too."""
    canonical = compression.canonical(network)
    golden = compression.golden_sequences(
        network, canonical.model, run.config.environment, GOLDEN_STATES, seed, factory=factory
    )
    tell("converting for cpu")
    files = compression.convert(
        canonical.model, golden.observations, "cpu", quantisation, golden.masks, states=golden.states, onnx=onnx
    )
    return _Subject(network, network, canonical, files, golden)


def _advice(subject: _Subject, verification: Verification) -> str:
    """What may help where int8 has lost a network's choices."""
    failed = {gate.name for gate in verification.gates if not gate.passed}
    static = subject.files.quantisation["method"] == "static"
    if (
        static
        and "agreement" in failed
        and any(isinstance(layer, compression.Normalize) for layer in subject.canonical.model.layers)
    ):
        return (
            ". LayerNorm loses its precision in int8; --quantisation int16x8 keeps it, and --budget makes a smaller "
            "network without it"
        )
    return ""


def _is_narrow(subject: _Subject, target: Target, verification: Verification) -> bool:
    """Whether int16 activations may pass: int8 ones have failed, and nothing that is in float32 has."""
    static = subject.files.quantisation["method"] == "static"
    by_int8 = all(gate.file == INT8_FILE for gate in verification.gates if not gate.passed)
    return static and by_int8 and compression.refuses_int16x8(subject.canonical.model, target) is None


def _golden(network: Any, canonical: Canonical, pool: Array, masks: Array | None) -> Golden:
    """The golden states (the pool is in random order)."""
    q = canonical.model.predict(pool.astype(np.float32), batch_size=512, verbose=0)
    chosen = compression.hard_half(q, GOLDEN_STATES, masks)
    observations, allowed = pool[chosen], None if masks is None else masks[chosen]
    actions = masked(network.predict(observations, batch_size=512, verbose=0), allowed).argmax(axis=1)
    return Golden(observations, q[chosen], actions.astype(np.int64), allowed)


def _describe(
    run: Run, which: Which, target: Target, subject: _Subject
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What `policy.json` says, and what it says of the single files."""
    environment, spec, files = run.config.environment, run.spec, subject.files
    best = run.best() if which == "best" else None  # The newest policy's step stands in its checkpoint alone.
    machine = compression.machine()
    manifest = {
        "environment": {
            "id": environment.id,
            "kwargs": environment.kwargs,
            "max_episode_steps": environment.max_episode_steps,
            "gymnasium": machine["gymnasium"],
        },
        "observation": {
            "shape": list(run.observation_shape),
            "dtype": spec.observation_dtype,
            "frame_shape": list(spec.observation_shape),
            "frame_stack": environment.frame_stack,
            "layout": spec.layout,
            "binary": spec.binary,
        },
        "action": {
            "count": spec.num_actions,
            "start": spec.action_start,
            "mask": subject.golden.masks is not None,
            "layout": spec.action_layout,
        },
        **recurrent.described(run),
        "preprocessing": _preprocessing(environment.frame_stack, spec.layout) + recurrent.preprocessing(run),
        "variants": {"float": FLOAT_FILE, "int8": INT8_FILE},
        "default": "float",
        "network": {
            "parameters": int(subject.network.count_params()),
            "canonical_parameters": int(subject.canonical.model.count_params()),
            "folds": list(subject.canonical.folds),
            "centred": subject.canonical.centred,
        },
        "provenance": {
            "rlplatform": rlplatform.__version__,
            "run": run.path.resolve().name,
            "seed": run.config.seed,
            "policy": which,
            "steps": None if best is None else best.step,
            "config": configuration.to_toml(run.config),
            "machine": machine,
        },
    }
    int8: dict[str, Any] = {"quantisation": files.quantisation}
    if files.scaling is not None:
        int8["input_scaling"] = {name: array.tolist() for name, array in files.scaling._asdict().items()}
    if target == "mcu" and micro.missing() is None:
        with contextlib.suppress(RunError):  # What it does not run, the verification refuses.
            answers = micro.run(files.int8_file, subject.golden.observations[:1], int8.get("input_scaling"))
            int8["arena_bytes"] = answers.arena_bytes
    return manifest, {FLOAT_FILE: {}, INT8_FILE: int8}


def _preprocessing(frame_stack: int, layout: dict[str, Any] | None) -> list[str]:
    """What must happen to a frame before the files see it, in sentences."""
    sentences = []
    if layout is not None:
        sentences.append(
            "the environment's own observation becomes one array, as observation.layout says (Policy.act and "
            "Policy.step do this)"
        )
    if frame_stack > 1:
        sentences.append(
            f"the newest {frame_stack} frames are joined along the last axis, oldest first; an episode's first frame "
            "fills all of them (Policy.reset and Policy.step do this)"
        )
    return sentences


def _default(verification: Verification) -> str:
    """The int8 file where all its gates hold, it is smaller, and it is not much slower here; else the float32 file.

    Convolutions with int8 weights are slower than in float32 on processors without instructions for them.
    """
    rows = {row.variant: row for row in verification.rows}
    if not {"float", "int8"} <= set(rows):
        return next(iter(rows.keys() - {"network"}), "float")
    int8 = rows["int8"]
    sound = all(gate.passed for gate in verification.gates if gate.file == int8.name)
    fast = int8.microseconds <= SLOWER * rows["float"].microseconds
    return "int8" if sound and int8.bytes < rows["float"].bytes and fast else "float"
