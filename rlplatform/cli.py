"""The command line: parses, calls `rlplatform.api`, prints. Every error is one sentence."""

import argparse
import dataclasses
import json
import os
import pathlib
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import rlplatform
from rlplatform.errors import RunError, UserError, nearest

EPILOG = "Every command takes --json (one JSON object on the last line of standard output), --debug and --help."


class Parser(argparse.ArgumentParser):
    """argparse, with the nearest valid choice in its errors, raised as `UserError`."""

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing the usage."""
        raise UserError(message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = action.dest if isinstance(action, argparse._SubParsersAction) else argparse._get_action_name(action)
            raise UserError(f"unknown {name} {value!r}; {nearest(str(value), map(str, action.choices))}")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuses unknown options by the nearest known one."""
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            options = getattr(known, "parser", self)._option_string_actions
            hint = (
                nearest(unknown[0].partition("=")[0], options) if unknown[0].startswith("-") else "it is one too many"
            )
            raise UserError(f"unknown argument {unknown[0]!r}; {hint}")
        return known


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

Result = tuple[int, dict[str, Any], str]


def _parser() -> Parser:
    parser = Parser(
        prog="rlplatform", description=rlplatform.__doc__.splitlines()[0], epilog=EPILOG, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"rlplatform {rlplatform.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    train = _command(
        commands, "train", _train, "train an agent", "rlplatform train CartPole-v1 --seed 1 --out runs/pole"
    )
    train.add_argument("env", metavar="ENV_ID", help="a registered id, module:id, or file.py:Name")
    train.add_argument("--preset", metavar="NAME", help="a preset (`rlplatform list presets`) or a TOML file")
    train.add_argument("--steps", type=_number, metavar="N", help="env steps in all")
    train.add_argument("--seed", type=_number, metavar="S", help="what every random number follows from")
    train.add_argument("--num-envs", type=_number, metavar="N", help="environments side by side")
    train.add_argument("--out", metavar="DIR", help="the run's folder; by default the first free runs/ENV_ID-N")
    train.add_argument("--resume", action="store_true", help="go on with the run in --out from its newest checkpoint")
    train.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a value, like replay.capacity=100000"
    )

    transfer = _command(
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
        "--freeze", type=_number, metavar="N", help="first layers that do not learn (default: all reused but the last)"
    )
    transfer.add_argument(
        "--fine-tune", type=_number, default=0, metavar="K", help="the last K of those learn in the second half, slowly"
    )
    transfer.add_argument("--preset", metavar="NAME", help="as for `train`; by default the network is like the run's")
    transfer.add_argument("--steps", type=_number, metavar="N", help="env steps in all")
    transfer.add_argument("--seed", type=_number, metavar="S", help="what every random number follows from")
    transfer.add_argument("--out", metavar="DIR", help="the new run's folder; by default the first free runs/ENV_ID-N")
    transfer.add_argument("--resume", action="store_true", help="go on with the run in --out")
    transfer.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for `train`")

    evaluate = _command(
        commands, "evaluate", _evaluate, "play greedy episodes", "rlplatform evaluate runs/pole --episodes 100"
    )
    evaluate.add_argument("target", metavar="RUN|BUNDLE", help="a run's or a bundle's folder")
    evaluate.add_argument("--episodes", type=_positive, default=100, metavar="N", help="episodes (default 100)")
    evaluate.add_argument("--seed", type=_number, default=0, metavar="S", help="what the episodes' seeds follow from")
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
        export = _command(commands, name, _export, help, example)
        export.add_argument("target", metavar="RUN", help="a run's folder")
        export.add_argument("--out", required=True, metavar="DIR", help="the bundle's folder")
        export.add_argument(
            "--target", dest="device", choices=["cpu", "mcu"], default="cpu", help="what the int8 file is for"
        )
        export.add_argument(
            "--episodes", type=_positive, default=100, metavar="N", help="paired episodes (default 100)"
        )
        export.add_argument("--seed", type=_number, default=0, metavar="S", help="what the episodes' seeds follow from")
        export.add_argument("--weights", choices=["best", "last"], default="best", help="the best or the newest policy")
        export.add_argument(
            "--force", action="store_true", help="write the bundle even where a gate fails, and say so in it"
        )
        export.add_argument("--overwrite", action="store_true", help="replace the bundle that is there")
        if name == "compress":
            export.add_argument(
                "--budget", metavar="SIZE", help="bytes of the smaller file, like 4kB, or auto for as few as still play"
            )
            export.add_argument(
                "--prune", type=_share, metavar="SHARE", help="the share of weights to make zero, like 0.9"
            )
            export.add_argument(
                "--clusters", type=_positive, metavar="N", help="how many values the weights of a layer may have"
            )
            export.add_argument(
                "--log-dir", metavar="DIR", help="where TensorBoard finds the losses of smaller networks"
            )
        if name == "export":
            export.add_argument(
                "--formats",
                default="tflite,saved_model",
                metavar="LIST",
                help="of tflite, saved_model, c (default tflite,saved_model)",
            )

    verify = _command(
        commands, "verify", _verify, "run a bundle's gates on this machine", "rlplatform verify bundles/pole"
    )
    verify.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder")
    verify.add_argument("--episodes", type=_positive, default=100, metavar="N", help="paired episodes (default 100)")
    verify.add_argument("--seed", type=_number, default=0, metavar="S", help="what the episodes' seeds follow from")

    benchmark = commands.add_parser("benchmark", help="measure", description="Measure.", allow_abbrev=False)
    benchmark.epilog = "example: rlplatform benchmark speed --task cartpole8 --json"
    benchmark.set_defaults(parser=benchmark)
    kinds = benchmark.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    speed = _command(
        kinds,
        "speed",
        _benchmark_speed,
        "env steps and updates a second while training",
        "rlplatform benchmark speed --task cartpole8 --json",
    )
    speed.add_argument("--task", default="cartpole", help="what is trained (default cartpole)")
    speed.add_argument("--steps", type=_positive, metavar="N", help="env steps; the task's own by default")
    speed.add_argument("--seed", type=_number, default=1, metavar="S", help="of the run (default 1)")

    returns = _command(
        kinds,
        "returns",
        _benchmark_returns,
        "returns of environments x presets x seeds; the same command goes on with what is missing",
        "rlplatform benchmark returns --envs CartPole-v1,Acrobot-v1 --presets dqn,qrdqn --seeds 10 "
        "--out benchmarks/returns.json",
    )
    returns.add_argument("--envs", type=_names, metavar="LIST", help="environments, with commas between")
    returns.add_argument("--presets", type=_names, metavar="LIST", help="presets' names or TOML files")
    returns.add_argument("--seeds", type=_positive, default=10, metavar="N", help="training seeds (default 10)")
    returns.add_argument("--first-seed", type=_number, default=0, metavar="S", help="the first of them (default 0)")
    returns.add_argument(
        "--episodes", type=_positive, default=100, metavar="N", help="greedy episodes of each policy (default 100)"
    )
    returns.add_argument(
        "--processes", type=_positive, default=2, metavar="N", help="runs side by side, one core each (default 2)"
    )
    returns.add_argument("--steps", type=_positive, metavar="N", help="env steps of each run; the preset's by default")
    returns.add_argument("--out", metavar="FILE", help="the JSON file of raw returns")
    returns.add_argument("--overwrite", action="store_true", help="replace rows of --out that were made otherwise")
    returns.add_argument("--table", metavar="FILE", help="only show the table of a file that is there")
    returns.add_argument("--markdown", action="store_true", help="show the table in Markdown")
    returns.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a value over every preset"
    )

    saved = _command(
        kinds,
        "transfer",
        _benchmark_transfer,
        "env steps to a threshold, with transfer and from scratch; the same command goes on with what is missing",
        "rlplatform benchmark transfer --from CartPole-v1 --to rlplatform.envs.variants:HeavyCartPole --seeds 10 "
        "--set evaluation.interval=1000 --out benchmarks/transfer.json",
    )
    saved.add_argument("--from", dest="source", metavar="ENV_ID", help="where each seed's network learns first")
    saved.add_argument(
        "--source", dest="runs", nargs="+", default=[], metavar="RUN", help="runs that have learned there already"
    )
    saved.add_argument("--to", dest="env", metavar="ENV_ID", help="where the steps are counted")
    saved.add_argument(
        "--threshold", type=float, metavar="R", help="the mean return to reach; by default where --to counts as solved"
    )
    saved.add_argument("--preset", metavar="NAME", help="of both, by default the one for --from")
    saved.add_argument(
        "--steps", type=_positive, metavar="N", help="env steps on --to at most; the preset's by default"
    )
    saved.add_argument("--source-steps", type=_positive, metavar="N", help="env steps on --from")
    saved.add_argument("--freeze", type=_number, metavar="N", help="as for `rlplatform transfer`")
    saved.add_argument("--fine-tune", type=_number, default=0, metavar="K", help="as for `rlplatform transfer`")
    saved.add_argument("--seeds", type=_positive, default=5, metavar="N", help="training seeds (default 5)")
    saved.add_argument("--first-seed", type=_number, default=0, metavar="S", help="the first of them (default 0)")
    saved.add_argument(
        "--processes", type=_positive, default=2, metavar="N", help="runs side by side, one core each (default 2)"
    )
    saved.add_argument("--out", metavar="FILE", help="the JSON file of raw results")
    saved.add_argument("--overwrite", action="store_true", help="replace runs in --out that were made otherwise")
    saved.add_argument("--table", metavar="FILE", help="only show the table of a file that is there")
    saved.add_argument("--markdown", action="store_true", help="show the table in Markdown")
    saved.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of both")
    saved.add_argument(
        "--set-to",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a value of --to alone, like environment.kwargs.difficulty_ramping=false",
    )

    sweep = _command(
        commands,
        "sweep",
        _sweep,
        "search for hyper-parameters with Optuna; the same command goes on with a search that was stopped",
        "rlplatform sweep CartPole-v1 --trials 50 --preset dqn --steps 30000 --out sweeps/pole",
    )
    sweep.add_argument("env", metavar="ENV_ID", help="a registered id, module:id, or file.py:Name")
    sweep.add_argument("--trials", type=_positive, required=True, metavar="N", help="trials in all")
    sweep.add_argument("--preset", metavar="NAME", help="what trials start from, a preset or a TOML file")
    sweep.add_argument("--steps", type=_positive, metavar="N", help="env steps of each run; the preset's by default")
    sweep.add_argument(
        "--seeds", type=_positive, default=1, metavar="K", help="training seeds of each trial, from 1000 on (default 1)"
    )
    sweep.add_argument(
        "--episodes", type=_positive, default=50, metavar="N", help="fresh episodes for each seed (default 50)"
    )
    sweep.add_argument(
        "--processes", type=_positive, default=1, metavar="N", help="trials side by side, one core each (default 1)"
    )
    sweep.add_argument("--space", metavar="FILE", help="a TOML file of what is varied (docs/benchmarks.md)")
    sweep.add_argument("--seed", type=_number, default=0, metavar="S", help="of the sampler (default 0)")
    sweep.add_argument("--out", required=True, metavar="DIR", help="the sweep's folder; it gets best.toml")
    sweep.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a value over the preset in every trial"
    )

    listing = _command(commands, "list", _list, "name what there is", "rlplatform list presets")
    listing.add_argument("what", choices=["envs", "presets", "agents"])
    return parser


def _command(commands: Any, name: str, run: Callable[[Any], Result], help: str, example: str) -> Parser:
    parser: Parser = commands.add_parser(
        name, help=help, description=f"{help[0].upper()}{help[1:]}.", epilog=f"example: {example}", allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line of standard output")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run, parser=parser)
    return parser


def _number(text: str) -> int:
    try:
        number = int(text.replace("_", ""))
    except ValueError:
        raise argparse.ArgumentTypeError(f"a whole number is needed, like 50000; got {text!r}") from None
    if number < 0:
        raise argparse.ArgumentTypeError(f"at least 0 is needed; got {text}")
    return number


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"names with commas between are needed, like dqn,qrdqn; got {text!r}")
    return names


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number between 0 and 1 is needed, like 0.9; got {text!r}") from None


def _positive(text: str) -> int:
    number = _number(text)
    if number == 0:
        raise argparse.ArgumentTypeError("at least 1 is needed; got 0")
    return number


# --- the commands ---------------------------------------------------------------------------------------------------


def _train(args: Any) -> Result:
    api = _api()

    run, outcome = api.session(
        args.env,
        steps=args.steps,
        preset=args.preset,
        seed=args.seed,
        num_envs=args.num_envs,
        out=args.out,
        resume=args.resume,
        overrides=args.set,
        on_start=_announce,
    )
    return _trained(run, outcome, f"train {args.env}")


def _announce(run: Any) -> None:
    """Where a run trains, and how to watch it."""
    from rlplatform import devices

    where = devices.describe(run.config.device)
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
    api = _api()
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
    evaluated = _api().evaluate(
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
        "episodes": args.episodes,
        "seed": args.seed,
        "which": args.weights,
        "force": args.force,
        "overwrite": args.overwrite,
        "progress": lambda sentence: print(sentence, file=sys.stderr),
    }
    if args.command == "compress":
        options |= {"budget": args.budget, "prune": args.prune, "clusters": args.clusters, "log_dir": args.log_dir}
        exported = _api().compress(args.target, args.out, **options)
    else:
        exported = _api().export(args.target, args.out, formats=tuple(args.formats.split(",")), **options)
    return 0, exported.to_json(), f"{exported.table()}\nbundle: {exported.path}"


def _verify(args: Any) -> Result:
    verified = _api().verify(args.bundle, episodes=args.episodes, seed=args.seed)
    return (0 if verified.passed else 1), verified.to_json(), verified.table()


def _benchmark_speed(args: Any) -> Result:
    _api()
    from rlplatform import speed

    result = speed.measure(args.task, steps=args.steps, seed=args.seed)
    text = (
        f"{result['task']}: {result['env_steps_per_s']:,.0f} env steps/s, {result['updates_per_s']:,.0f} updates/s "
        f"over {result['env_steps']:,} steps"
    )
    return 0, result, text


def _benchmark_returns(args: Any) -> Result:
    from rlplatform import analysis, returns

    if args.table is None:
        missing = [option for option in ("envs", "presets", "out") if getattr(args, option) is None]
        if missing:
            raise UserError(
                f"--{missing[0]} is missing; `rlplatform benchmark returns --help` shows an example, and --table FILE "
                "shows what a file holds"
            )
        _api()
        tree = returns.measure(
            args.envs,
            args.presets,
            seeds=args.seeds,
            first_seed=args.first_seed,
            episodes=args.episodes,
            processes=args.processes,
            steps=args.steps,
            out=pathlib.Path(args.out),
            overrides=args.set,
            overwrite=args.overwrite,
            command=f"rlplatform {shlex.join(args.words)}",
        )
    elif args.envs or args.presets or args.out or args.set or args.steps or args.overwrite:
        raise UserError("--table shows a file that is there and trains nothing; leave the other options out")
    else:
        tree = returns.read(pathlib.Path(args.table))
    result = {
        "file": args.table or args.out,
        "runs": len(tree["runs"]),
        "failed": tree["failed"],
        "rows": [dataclasses.asdict(row) for row in analysis.rows(tree)],
        "aggregates": [dataclasses.asdict(each) for each in analysis.aggregates(tree)],
    }
    return (1 if tree["failed"] and args.table is None else 0), result, analysis.as_table(tree, markdown=args.markdown)


def _benchmark_transfer(args: Any) -> Result:
    from rlplatform import analysis, savings

    if args.table is None:
        if not args.runs and args.source is None:
            raise UserError("--from is missing, what the network learns first; or --source, runs that have learned it")
        missing = [option for option, value in (("to", args.env), ("out", args.out)) if value is None]
        if missing:
            raise UserError(
                f"--{missing[0]} is missing; `rlplatform benchmark transfer --help` shows an example, and --table FILE "
                "shows what a file holds"
            )
        _api()
        tree = savings.measure(
            args.source,
            args.env,
            runs=args.runs,
            threshold=args.threshold,
            preset=args.preset,
            steps=args.steps,
            source_steps=args.source_steps,
            freeze=args.freeze,
            fine_tune=args.fine_tune,
            seeds=args.seeds,
            first_seed=args.first_seed,
            processes=args.processes,
            out=pathlib.Path(args.out),
            overrides=args.set,
            changes=args.set_to,
            overwrite=args.overwrite,
            command=f"rlplatform {shlex.join(args.words)}",
        )
    elif args.source or args.runs or args.env or args.out or args.set or args.set_to or args.steps or args.overwrite:
        raise UserError("--table shows a file that is there and trains nothing; leave the other options out")
    else:
        tree = savings.read(pathlib.Path(args.table))
    result = {
        "file": args.table or args.out,
        "runs": len(tree["runs"]),
        "failed": tree["failed"],
        "rows": [dataclasses.asdict(row) for row in analysis.savings(tree)],
    }
    table = analysis.savings_table(tree, markdown=args.markdown)
    return (1 if tree["failed"] and args.table is None else 0), result, table


def _sweep(args: Any) -> Result:
    _api()
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


def _api() -> Any:
    """`rlplatform.api`, with TensorFlow's own greetings on standard error left out."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept = os.dup(2)
    silent = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(silent, 2)
        import tensorflow as tf

        tf.config.list_physical_devices()  # looks for a GPU now, and says so
    finally:
        os.dup2(kept, 2)
        os.close(silent)
        os.close(kept)
    from rlplatform import api

    return api


if __name__ == "__main__":
    sys.exit(main())
