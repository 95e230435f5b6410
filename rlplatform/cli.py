"""The command line: parses, calls `rlplatform.api`, prints. Every error is one sentence."""

import json
import os
import pathlib
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import rlplatform
from rlplatform import benchmarks
from rlplatform.arguments import Parser, Result, add_command, load_api, names, number, positive, share
from rlplatform.config import DEVICES
from rlplatform.errors import RunError, UserError

EPILOG = "Every command takes --json (one JSON object on the last line of standard output), --debug and --help."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    0: done; 1: a run or a gate has failed; 2: an argument is wrong; 128 + N: signal N has stopped it.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug, as_json = "--debug" in argv, "--json" in argv
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        args = _parser().parse_args(argv)
        args.words = argv
        run: Callable[[Any], Result] = args.run
        code, result, text = run(args)
    except KeyboardInterrupt:
        code, result, text = _failed("interrupted", 130, debug)
    except UserError as error:
        code, result, text = _failed(str(error), 2, debug)
    except RunError as error:
        code, result, text = _failed(str(error), 1, debug)
    except BrokenPipeError:  # the reader, `head` for example, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as leaving:  # --help and --version
        return leaving.code if isinstance(leaving.code, int) else 0
    except Exception as error:
        if _is_bundle_error(error):
            code, result, text = _failed(str(error), 1, debug)
        else:
            code, result, text = _failed(f"{type(error).__name__}: {error} (--debug shows where)", 1, debug)
    if as_json:
        print(json.dumps(result))
    elif text:
        print(text)
    sys.stdout.flush()
    return code


def _failed(sentence: str, code: int, debug: bool) -> tuple[int, dict[str, Any], str]:
    if debug:
        raise
    print(f"rlplatform: {' '.join(sentence.split())}", file=sys.stderr)
    return code, {"error": sentence, "exit_code": code}, ""


def _is_bundle_error(error: Exception) -> bool:
    from rlplatform.runtime import BundleError, ObservationError

    return isinstance(error, BundleError | ObservationError)


# --- the arguments --------------------------------------------------------------------------------------------------


def _parser() -> Parser:
    parser = Parser(
        prog="rlplatform", description=rlplatform.__doc__.splitlines()[0], epilog=EPILOG, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"rlplatform {rlplatform.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    train = add_command(
        commands, "train", _train, "train an agent", "rlplatform train CartPole-v1 --seed 1 --out runs/pole"
    )
    train.add_argument("env", metavar="ENV_ID", help="a registered id, module:id, or file.py:Name")
    train.add_argument("--preset", metavar="NAME", help="a preset (`rlplatform list presets`) or a TOML file")
    train.add_argument("--steps", type=number, metavar="N", help="env steps in all")
    train.add_argument("--seed", type=number, metavar="S", help="what every random number follows from")
    train.add_argument("--num-envs", type=number, metavar="N", help="environments side by side")
    train.add_argument("--device", choices=DEVICES, help="where to learn (docs/devices.md); the same run on each")
    train.add_argument(
        "--workers", type=names, metavar="LIST", help="HOST:PORT of every machine, with commas between, on each of them"
    )
    train.add_argument("--task-index", type=number, metavar="N", help="which of --workers this one is, from 0")
    train.add_argument("--out", metavar="DIR", help="the run's folder; by default the first free runs/ENV_ID-N")
    train.add_argument("--resume", action="store_true", help="go on with the run in --out from its newest checkpoint")
    train.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a value, like replay.capacity=100000"
    )

    transfer = add_command(
        commands,
        "transfer",
        _transfer,
        "train with the layers of a network that has learned already",
        "rlplatform transfer runs/pole --to rlplatform.envs.variants:HeavyCartPole --out runs/heavy",
    )
    transfer.add_argument(
        "source", metavar="RUN", help="a run's folder, a .keras file, or a backbone's .h5 file of weights"
    )
    transfer.add_argument("--to", required=True, dest="env", metavar="ENV_ID", help="where to train, as for `train`")
    transfer.add_argument(
        "--freeze", type=number, metavar="N", help="first layers that do not learn (default: all reused but the last)"
    )
    transfer.add_argument(
        "--fine-tune", type=number, default=0, metavar="K", help="the last K of those learn in the second half, slowly"
    )
    transfer.add_argument("--preset", metavar="NAME", help="as for `train`; by default the network is like the run's")
    transfer.add_argument("--steps", type=number, metavar="N", help="env steps in all")
    transfer.add_argument("--seed", type=number, metavar="S", help="what every random number follows from")
    transfer.add_argument("--out", metavar="DIR", help="the new run's folder; by default the first free runs/ENV_ID-N")
    transfer.add_argument("--resume", action="store_true", help="go on with the run in --out")
    transfer.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for `train`")

    evaluate = add_command(
        commands, "evaluate", _evaluate, "play greedy episodes", "rlplatform evaluate runs/pole --episodes 100"
    )
    evaluate.add_argument("target", metavar="RUN|BUNDLE", help="a run's or a bundle's folder")
    evaluate.add_argument("--episodes", type=positive, default=100, metavar="N", help="episodes (default 100)")
    evaluate.add_argument("--seed", type=number, default=0, metavar="S", help="what the episodes' seeds follow from")
    evaluate.add_argument("--weights", choices=["best", "last"], default="best", help="a run's best or newest policy")
    evaluate.add_argument("--video", metavar="DIR", help="also write one episode as an animated GIF")

    for name, help, example in (
        (
            "compress",
            "make the small, verified policy bundle of a run",
            "rlplatform compress runs/pole --out bundles/pole",
        ),
        ("export", "write a run's policy bundle in chosen formats", "rlplatform export runs/pole --out bundles/pole"),
    ):
        export = add_command(commands, name, _export, help, example)
        export.add_argument("target", metavar="RUN", help="a run's folder")
        export.add_argument("--out", required=True, metavar="DIR", help="the bundle's folder")
        export.add_argument(
            "--target", dest="device", choices=["cpu", "mcu"], default="cpu", help="what the int8 file is for"
        )
        export.add_argument(
            "--quantisation",
            choices=["auto", "dynamic", "dynamic_all", "static", "int16x8"],
            default="auto",
            help="how the int8 file is made (docs/quantisation.md)",
        )
        export.add_argument(
            "--qat", action="store_true", help="train for static int8, and keep the file that is better by it"
        )
        export.add_argument("--episodes", type=positive, default=100, metavar="N", help="paired episodes (default 100)")
        export.add_argument("--seed", type=number, default=0, metavar="S", help="what the episodes' seeds follow from")
        export.add_argument("--weights", choices=["best", "last"], default="best", help="the best or the newest policy")
        export.add_argument(
            "--force", action="store_true", help="write the bundle even where a gate fails, and say so in it"
        )
        export.add_argument("--overwrite", action="store_true", help="replace the bundle that is there")
        export.add_argument(
            "--formats",
            type=names,
            default=("tflite", "saved_model"),
            metavar="LIST",
            help="of tflite, saved_model, onnx (extra onnx), c, with commas between (default tflite,saved_model)",
        )
        if name == "compress":
            export.add_argument(
                "--budget", metavar="SIZE", help="bytes of the smaller file, like 4kB, or auto for as few as still play"
            )
            export.add_argument(
                "--prune", type=share, metavar="SHARE", help="the share of weights to make zero, like 0.9"
            )
            export.add_argument(
                "--clusters", type=positive, metavar="N", help="how many values the weights of a layer may have"
            )
            export.add_argument(
                "--log-dir", metavar="DIR", help="where TensorBoard finds the losses of smaller networks"
            )

    verify = add_command(
        commands, "verify", _verify, "run a bundle's gates on this machine", "rlplatform verify bundles/pole"
    )
    verify.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder")
    verify.add_argument("--episodes", type=positive, default=100, metavar="N", help="paired episodes (default 100)")
    verify.add_argument("--seed", type=number, default=0, metavar="S", help="what the episodes' seeds follow from")

    benchmarks.add(commands)

    sweep = add_command(
        commands,
        "sweep",
        _sweep,
        "search for hyper-parameters with Optuna; the same command goes on with a search that was stopped",
        "rlplatform sweep CartPole-v1 --trials 50 --preset dqn --steps 30000 --out sweeps/pole",
    )
    sweep.add_argument("env", metavar="ENV_ID", help="a registered id, module:id, or file.py:Name")
    sweep.add_argument("--trials", type=positive, required=True, metavar="N", help="trials in all")
    sweep.add_argument("--preset", metavar="NAME", help="what trials start from, a preset or a TOML file")
    sweep.add_argument("--steps", type=positive, metavar="N", help="env steps of each run; the preset's by default")
    sweep.add_argument(
        "--seeds", type=positive, default=1, metavar="K", help="training seeds of each trial, from 1000 on (default 1)"
    )
    sweep.add_argument(
        "--episodes", type=positive, default=50, metavar="N", help="fresh episodes for each seed (default 50)"
    )
    sweep.add_argument(
        "--processes", type=positive, default=1, metavar="N", help="trials side by side, one core each (default 1)"
    )
    sweep.add_argument("--space", metavar="FILE", help="a TOML file of what is varied (docs/benchmarks.md)")
    sweep.add_argument("--seed", type=number, default=0, metavar="S", help="of the sampler (default 0)")
    sweep.add_argument("--out", required=True, metavar="DIR", help="the sweep's folder; it gets best.toml")
    sweep.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a value over the preset in every trial"
    )

    found = add_command(
        commands, "devices", _devices, "name the devices that there are, and how fast each is", "rlplatform devices"
    )
    found.add_argument("--no-speed", dest="speed", action="store_false", help="do not measure")

    listing = add_command(commands, "list", _list, "name what there is", "rlplatform list presets")
    listing.add_argument("what", choices=["envs", "presets", "agents"])
    return parser


# --- the commands ---------------------------------------------------------------------------------------------------


def _train(args: Any) -> Result:
    api = load_api()
    from rlplatform import devices

    if (args.workers is None) != (args.task_index is None):
        raise UserError("--workers and --task-index belong together: who the workers are, and which of them this is")
    if args.workers is not None:
        if args.device not in (None, "multiworker"):
            raise UserError(f"--workers is for --device multiworker; got {args.device}")
        devices.join(args.workers, args.task_index)
        args.device = "multiworker"

    run, outcome = api.session(
        args.env,
        steps=args.steps,
        preset=args.preset,
        seed=args.seed,
        num_envs=args.num_envs,
        device=args.device,
        out=args.out,
        resume=args.resume,
        overrides=args.set,
        on_start=_announce,
    )
    return _trained(run, outcome, f"train {args.env}")


def _announce(run: Any) -> None:
    """Where a run trains, and how to watch it."""
    from rlplatform import devices

    where = devices.describe(run.config.device, run.config.replicas)
    print(f"training in {run.path} on {where}; watch it: tensorboard --logdir {run.path}", file=sys.stderr)


def _trained(run: Any, outcome: Any, command: str) -> Result:
    """What is told of a session of training, and the command that goes on with it."""
    best = run.best()
    result = {
        "run": str(run.path),
        "steps": outcome.steps,
        "updates": outcome.updates,
        "reason": outcome.reason,
        "best_return": None if best is None else best.mean_return,
        "best_step": None if best is None else best.step,
    }
    text = f"{run.path}: {outcome.reason} at step {outcome.steps}"
    if best is not None:
        text += f"; best mean return {best.mean_return:.1f}, at step {best.step}"
    if outcome.signal:
        text += f"; go on with: rlplatform {command} --out {run.path} --resume"
    return (128 + outcome.signal if outcome.signal else 0), result, text


def _transfer(args: Any) -> Result:
    api = load_api()
    layers: list[dict[str, str | None]] = []

    def started(run: Any) -> None:
        from rlplatform.training.transfer import begin

        if args.resume:  # what was taken over is long in the run; its source need not be there any more
            return _announce(run)
        found = begin(run.fresh_network(), run.config)
        frozen = run.config.transfer.frozen_layers
        for index, layer in enumerate(found):
            origin = "fresh" if layer.source is None else f"from {layer.source}"
            print(f"{layer.name}: {origin}{', frozen' if index < frozen else ''}", file=sys.stderr)
        layers.extend(layer._asdict() for layer in found)
        _announce(run)

    run, outcome = api.transfer(
        args.source,
        args.env,
        freeze=args.freeze,
        fine_tune=args.fine_tune,
        preset=args.preset,
        steps=args.steps,
        seed=args.seed,
        out=args.out,
        resume=args.resume,
        overrides=args.set,
        on_start=started,
    )
    code, result, text = _trained(run, outcome, f"transfer {args.source} --to {args.env}")
    return code, result | {"layers": layers}, text


def _evaluate(args: Any) -> Result:
    evaluated = load_api().evaluate(
        args.target, episodes=args.episodes, seed=args.seed, which=args.weights, video=args.video
    )
    returns = evaluated.evaluation.returns
    interval = evaluated.interval
    result = {
        "target": args.target,
        "episodes": len(returns),
        "seed": args.seed,
        "mean_return": float(returns.mean()),
        "mean_return_interval": [interval.low, interval.high],
        "min_return": float(returns.min()),
        "max_return": float(returns.max()),
        "mean_length": float(evaluated.evaluation.lengths.mean()),
        "video": evaluated.video,
    }
    text = (
        f"{args.target}: mean return {returns.mean():.2f} over {len(returns)} episodes (seed {args.seed}), "
        f"95 % interval [{interval.low:.2f}, {interval.high:.2f}], from {returns.min():.1f} to {returns.max():.1f}"
    )
    return 0, result, text + (f"; video in {evaluated.video}" if evaluated.video else "")


def _export(args: Any) -> Result:
    options = {
        "target": args.device,
        "formats": args.formats,
        "quantisation": args.quantisation,
        "qat": args.qat,
        "episodes": args.episodes,
        "seed": args.seed,
        "which": args.weights,
        "force": args.force,
        "overwrite": args.overwrite,
        "progress": lambda sentence: print(sentence, file=sys.stderr),
    }
    if args.command == "compress":
        options |= {"budget": args.budget, "prune": args.prune, "clusters": args.clusters, "log_dir": args.log_dir}
        exported = load_api().compress(args.target, args.out, **options)
    else:
        exported = load_api().export(args.target, args.out, **options)
    return 0, exported.to_json(), f"{exported.table()}\nbundle: {exported.path}"


def _verify(args: Any) -> Result:
    verified = load_api().verify(args.bundle, episodes=args.episodes, seed=args.seed)
    return (0 if verified.passed else 1), verified.to_json(), verified.table()


def _sweep(args: Any) -> Result:
    load_api()
    from rlplatform import sweep

    found = sweep.sweep(
        args.env,
        trials=args.trials,
        out=pathlib.Path(args.out),
        preset=args.preset,
        steps=args.steps,
        seeds=args.seeds,
        episodes=args.episodes,
        processes=args.processes,
        space=None if args.space is None else pathlib.Path(args.space),
        seed=args.seed,
        overrides=args.set,
    )
    result = found._asdict() | {"out": str(found.out), "preset": str(found.preset)}
    counts = ", ".join(f"{count} {state}" for state, count in found.trials.items())
    lines = [f"{found.out}: {counts}; the best is trial {found.best}, mean return {found.value:.6g}"]
    lines += [f"  {key} = {value}" for key, value in found.params.items()]
    lines.append(f"train with it: rlplatform train {shlex.quote(args.env)} --preset {shlex.quote(str(found.preset))}")
    return 0, result, "\n".join(lines)


def _devices(args: Any) -> Result:
    load_api()
    from rlplatform import inventory

    found = inventory.take(args.speed)
    lines = [f"{'auto':12} takes {found['auto']}: {found['why']}"]
    for entry in found["devices"]:
        line = f"{entry['device']:12} {entry['what']}" if entry["here"] else f"{entry['device']:12} no: {entry['what']}"
        if "gflops" in entry:
            line += f"; {entry['gflops']:,.0f} GFLOP/s, {entry['updates_per_s']:,.0f} updates/s"
        lines.append(line)
    return 0, found, "\n".join(lines)


def _list(args: Any) -> Result:
    from rlplatform import envs
    from rlplatform.presets import shipped

    if args.what == "envs":
        names = envs.registered()
        return 0, {"envs": names}, "\n".join(names)
    if args.what == "presets":
        presets = {name: tree.get("preset", {}) for name, tree in shipped().items()}
        lines = []
        for name, about in presets.items():
            suits = ", ".join(about.get("environments", []))
            lines.append(f"{name:16} {about.get('description', '')}" + (f" (default for {suits})" if suits else ""))
        return 0, {"presets": presets}, "\n".join(lines)
    agents = {
        "dqn": "Q-network with a target network; flags: agent.double, network.dueling, agent.n_step, agent.tau",
        "pqn": "Q(lambda) on the newest block, without replay and target network; set agent.trace_decay (--preset pqn)",
    }
    return 0, {"agents": agents}, "\n".join(f"{name:16} {text}" for name, text in agents.items())


if __name__ == "__main__":
    sys.exit(main())
