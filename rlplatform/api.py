"""What the platform does, as functions: the command line and Python programs are two doors to them."""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from PIL import Image

import rlplatform
from rlplatform import compression, devices, envs, training
from rlplatform import config as configuration
from rlplatform.agents import torsos
from rlplatform.analysis.statistics import Interval, bootstrap, mean
from rlplatform.compression.playing import act_of
from rlplatform.compression.reference import environment_of
from rlplatform.config import Config, Device, EnvironmentConfig
from rlplatform.envs.naming import Factory
from rlplatform.errors import UserError
from rlplatform.export import Verification, compress, export
from rlplatform.files import exclusive
from rlplatform.presets import resolve
from rlplatform.runtime import MANIFEST, Policy, read_manifest
from rlplatform.training import Act, Callback, Evaluation, Loop, Outcome, Run
from rlplatform.training.transfer import prepared

__all__ = ["Evaluated", "compress", "evaluate", "export", "load", "session", "train", "transfer", "verify"]

# What may change when a run goes on: how long and how it is watched, not what it is.
MAY_CHANGE = ("training.total_steps", "evaluation.", "checkpoint.", "logging.", "callbacks.", "device", "replicas")


def train(
    env: str | Factory,
    *,
    steps: int | None = None,
    preset: str | None = None,
    seed: int | None = None,
    num_envs: int | None = None,
    device: Device | None = None,
    out: str | pathlib.Path | None = None,
    resume: bool = False,
    overrides: Iterable[str] = (),
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> Run:
    """Trains an agent and returns its run.

    Args:
        env: a registered id, `module:id`, `file.py:Name`, or a callable that makes a Gymnasium environment.
        steps: env steps in all; the preset's by default.
        preset: a shipped preset or a TOML file; by default the one that lists the environment, else `dqn`.
        seed: what every random number of the run follows from.
        num_envs: environments side by side.
        device: where to learn: `auto`, `cpu`, `gpu`, `mirrored`, `multiworker` (`TF_CONFIG` names the workers), `tpu`.
        out: the run's folder; by default the first free `runs/ID-N`.
        resume: go on with the run in `out` from its newest checkpoint.
        overrides: `key=value` texts over the preset, like `replay.capacity=100000`.
        callbacks: called after those that the configuration names.
        progress: show a bar on standard error.

    Raises:
        UserError: something asked for is wrong; nothing was written.
        RunError: the run has diverged or could not write; its checkpoints are as they were.
    """
    return session(
        env,
        steps=steps,
        preset=preset,
        seed=seed,
        num_envs=num_envs,
        device=device,
        out=out,
        resume=resume,
        overrides=overrides,
        callbacks=callbacks,
        progress=progress,
    )[0]


def session(
    env: str | Factory,
    *,
    steps: int | None = None,
    preset: str | None = None,
    seed: int | None = None,
    num_envs: int | None = None,
    device: Device | None = None,
    out: str | pathlib.Path | None = None,
    resume: bool = False,
    overrides: Iterable[str] = (),
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    on_start: Callable[[Run], None] | None = None,
) -> tuple[Run, Outcome]:
    """Like `train`; says how the session ended too, and calls `on_start` with the run before its first step.

    With device `multiworker`, every worker calls it with the same arguments; the folder is one that all of them see,
    and the first worker alone writes to it.
    """
    factory = None if isinstance(env, str) else env
    env_id = env if isinstance(env, str) else envs.id_of(env)
    sections: dict[str, Any] = {
        "seed": seed,
        "training": None if steps is None else {"total_steps": steps},
        "environment": None if num_envs is None else {"num_envs": num_envs},
        "device": device,
    }
    if out is None and resume:
        raise UserError("to resume, say which run: --out runs/NAME")
    path = _free(env_id) if out is None else pathlib.Path(out)
    started = resume and (path / "config.toml").is_file() and (path / "run.json").is_file()
    if started:
        config = _resumed(Run.open(path), env_id, preset, overrides, sections)
    else:
        config = resolve(env_id, preset, overrides, **sections)
    place = devices.place(config.device)
    if place.workers > 1 and out is None:
        raise UserError("several workers must name one folder that all of them see: --out runs/NAME")
    if not started and place.worker == 0:
        _refuse_occupied(path, resume)
    if config.evaluation.video:
        training.check_filming(config.environment, factory)
    own = config.divided(place.workers).environment  # this worker's part of the environments
    vector = envs.make(own, factory)
    try:
        run = Run(path, config, envs.spec_of(vector, env_id))
        dense = torsos.is_dense(config.network, run.observation_shape)
        devices.limit_threads(config.threads or (1 if dense else 0))
        strategy = devices.strategy(config.device, config.replicas)  # before TensorFlow is used: workers join then
        config.divided(strategy.num_replicas_in_sync)  # or is refused before anything is written
        if not started:
            run = prepared(run)
        with contextlib.ExitStack() as held:
            if place.worker == 0:
                held.enter_context(exclusive(run.path))
                run.create(rlplatform.__version__)
            if on_start is not None:
                on_start(run)
            loop = Loop(
                run,
                vector,
                callbacks=callbacks,
                factory=factory,
                resume=started,
                progress=progress and place.worker == 0,
                strategy=strategy,
            )
            return run, loop.train()
    finally:
        vector.close()


def transfer(
    source: Run | str | pathlib.Path,
    env: str | Factory,
    *,
    freeze: int | None = None,
    fine_tune: int = 0,
    preset: str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    out: str | pathlib.Path | None = None,
    resume: bool = False,
    overrides: Iterable[str] = (),
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    on_start: Callable[[Run], None] | None = None,
) -> tuple[Run, Outcome]:
    """Trains on another environment, with the layers of a network that has learned already.

    Args:
        source: a run, its folder, a tf_keras model as a `.keras` file, or the `.h5` file of the weights of the backbone
            that `network.torso` names. A run also gives the shape of the network and its value head, where no preset is
            asked for.
        env: as for `train`.
        freeze: how many layers with weights, from the observation on, do not learn; None for all that are taken over,
            but for the last one; 0 lets all of them learn from the start.
        fine_tune: the last so many of those learn after all, in the second half of the updates and at a tenth of the
            rate (`transfer.fine_tune_from`, `transfer.fine_tune_rate`).
        preset: as for `train`.
        steps: as for `train`.
        seed: as for `train`.
        out: as for `train`.
        resume: as for `train`.
        overrides: as for `train`.
        callbacks: as for `train`.
        progress: as for `train`.
        on_start: as for `session`.

    Raises:
        UserError: there is no such source, or no layer of it has the shape of one that is needed.
        RunError: as for `train`.
    """
    path = source.path if isinstance(source, Run) else pathlib.Path(source)
    frozen = -1 if freeze is None else freeze
    begun = pathlib.Path(out, "config.toml") if resume and out is not None else None
    if freeze is None and begun is not None and begun.is_file():  # as many as -1 was then
        frozen = configuration.load(begun).transfer.frozen_layers
    settings = [
        f"transfer.source={json.dumps(str(path))}",
        f"transfer.frozen_layers={frozen}",
        f"transfer.fine_tuned_layers={fine_tune}",
    ]
    if preset is None and path.is_dir():
        settings = [*_shape_of(Run.open(path)), *settings]
    return session(
        env,
        steps=steps,
        preset=preset,
        seed=seed,
        out=out,
        resume=resume,
        overrides=[*settings, *overrides],
        callbacks=callbacks,
        progress=progress,
        on_start=on_start,
    )


def _shape_of(run: Run) -> list[str]:
    """The settings that make a network like a run's."""
    tree = configuration.to_dict(run.config)
    keys = [f"network.{name}" for name in tree["network"]]
    keys += [f"agent.{name}" for name in ("algorithm", "head", "num_atoms", "v_min", "v_max", "num_quantiles")]
    keys += ["environment.frame_stack"]
    values = (tree[section][name] for section, _, name in (key.partition(".") for key in keys))
    return [f"{key}={json.dumps(value)}" for key, value in zip(keys, values, strict=True)]


def load(run: str | pathlib.Path) -> Run:
    """Opens a run folder.

    Raises:
        UserError: there is no run there.
    """
    return Run.open(run)


class Evaluated(NamedTuple):
    """Greedy episodes, what they say of the mean return, and where the video lies."""

    evaluation: Evaluation
    interval: Interval  # of the mean return, 95 %, bootstrap over the episodes
    video: str | None


def evaluate(
    target: Run | str | pathlib.Path,
    *,
    episodes: int = 100,
    seed: int = 0,
    which: Literal["best", "last"] = "best",
    video: str | pathlib.Path | None = None,
    factory: Factory | None = None,
) -> Evaluated:
    """Plays greedy episodes with a run's policy or a bundle's default file.

    Args:
        target: a run, its folder, or a bundle's folder.
        episodes: how many; their seeds are apart from those of training and of choosing the best policy.
        seed: what the episodes' seeds follow from.
        which: a run's best policy, or the newest one.
        video: a folder into which one more episode is filmed.
        factory: makes the environment, where it has no id.

    Raises:
        UserError: there is no such run or bundle, or its environment cannot be made or filmed.
        RunError: its files are damaged.
    """
    if isinstance(target, Run):
        act, environment = target.act(which), target.config.environment
    elif (pathlib.Path(target) / MANIFEST).is_file():
        act, environment = act_of(Policy(target)), environment_of(read_manifest(pathlib.Path(target)))
    else:
        return evaluate(load(target), episodes=episodes, seed=seed, which=which, video=video, factory=factory)
    if video is not None:
        training.check_filming(environment, factory)
    seeds = envs.seeds(seed, episodes, "evaluation")
    played = training.evaluate(act, environment, seeds, factory=factory)
    filmed = None if video is None else str(_film(act, environment, seeds[0], pathlib.Path(video), factory))
    return Evaluated(played, bootstrap(played.returns, mean, seed=seed), filmed)


def verify(bundle: str | pathlib.Path, episodes: int = 100, seed: int = 0) -> Verification:
    """Runs a bundle's gates on this machine.

    Raises:
        UserError: there is no bundle, or its environment cannot be made.
        RunError: a file was changed.
    """
    return compression.verify(bundle, episodes, seed)


def _film(
    act: Act, environment: EnvironmentConfig, seed: int, folder: pathlib.Path, factory: Factory | None
) -> pathlib.Path:
    """Writes one episode as an animated GIF."""
    frames, episode_return, frames_per_second = training.record(act, environment, seed, factory=factory)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"episode-seed{seed}-return{episode_return:.0f}.gif"
    first, *rest = map(Image.fromarray, frames)
    first.save(path, save_all=True, append_images=rest, duration=1000.0 / frames_per_second, loop=0)
    return path


def _resumed(
    run: Run, env_id: str, preset: str | None, overrides: Iterable[str], sections: Mapping[str, Any]
) -> Config:
    """The saved configuration with what was asked for on top, if that may change."""
    saved = run.config
    if env_id != saved.environment.id:
        raise UserError(f"{run.path} is a run of {saved.environment.id}, not of {env_id}; choose another --out")
    if preset is None:
        asked = configuration.change(saved, overrides, **sections)
    else:
        asked = resolve(env_id, preset, overrides, **sections)
    changed = [key for key in configuration.differences(saved, asked) if not key.startswith(MAY_CHANGE)]
    if changed:
        raise UserError(
            f"{run.path} is another run: {', '.join(changed[:4])} would change; resume it without that, or choose "
            "another --out"
        )
    return asked


def _refuse_occupied(path: pathlib.Path, resume: bool) -> None:
    """A new run needs a folder of its own."""
    if not path.exists():
        return
    if not path.is_dir():
        raise UserError(f"{path} is a file; --out needs a folder that is new or empty")
    if (path / "config.toml").is_file() and not resume:
        raise UserError(f"{path} holds a run already; go on with it by --resume, or choose another --out")
    own = {".lock", "config.toml", "run.json"}  # what a run that was killed in its first moments has left
    foreign = [
        entry.name for entry in path.iterdir() if entry.name not in own and not entry.name.startswith(".partial-")
    ]
    if foreign:
        raise UserError(f"{path} is no run folder and not empty (it holds {sorted(foreign)[0]}); choose another --out")


def _free(env_id: str) -> pathlib.Path:
    """The first `runs/ID-N` that is not taken."""
    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in env_id)
    number = 1
    while (path := pathlib.Path("runs", f"{name}-{number}")).exists():
        number += 1
    return path
