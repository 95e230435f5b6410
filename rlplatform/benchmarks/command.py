"""`rlplatform benchmark ...`: its arguments, and what its commands say."""

import dataclasses
import pathlib
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from rlplatform.arguments import Parser, Result, add_command, load_api, names, number, positive
from rlplatform.errors import UserError


def add(commands: Any) -> None:
    """Adds `benchmark` and its commands to the parser's."""
    benchmark = commands.add_parser("benchmark", help="measure", description="Measure.", allow_abbrev=False)
    benchmark.epilog = "example: rlplatform benchmark speed --task cartpole8 --json"
    benchmark.set_defaults(parser=benchmark)
    kinds = benchmark.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    speed = add_command(
        kinds,
        "speed",
        _speed,
        "env steps and updates a second while training",
        "rlplatform benchmark speed --task cartpole8 --json",
    )
    speed.add_argument("--task", default="cartpole", help="what is trained (default cartpole)")
    speed.add_argument("--steps", type=positive, metavar="N", help="env steps; the task's own by default")
    speed.add_argument("--seed", type=number, default=1, metavar="S", help="of the run (default 1)")

    returns = add_command(
        kinds,
        "returns",
        _returns,
        "returns of environments x presets x seeds; the same command goes on with what is missing",
        "rlplatform benchmark returns --envs CartPole-v1,Acrobot-v1 --presets dqn,qrdqn --seeds 10 "
        "--out benchmarks/returns.json",
    )
    _add_environments(returns)
    returns.add_argument("--presets", type=names, metavar="LIST", help="presets' names or TOML files")
    returns.add_argument("--seeds", type=positive, default=10, metavar="N", help="training seeds (default 10)")
    returns.add_argument(
        "--episodes", type=positive, default=100, metavar="N", help="greedy episodes of each policy (default 100)"
    )
    _add_shared(returns)

    compression = add_command(
        kinds,
        "compression",
        _compression,
        "what compressed policies keep of their teachers' return, beside agents of their size that were trained from "
        "scratch; the same command goes on with what is missing",
        "rlplatform benchmark compression --envs CartPole-v1,Acrobot-v1 --preset dqn --teachers 5 "
        "--methods folds,int8,auto,2.7kB --out benchmarks/compression.json",
    )
    _add_environments(compression)
    compression.add_argument("--preset", metavar="NAME", help="the teachers' preset, or a TOML file")
    compression.add_argument("--teachers", type=positive, default=5, metavar="N", help="training seeds (default 5)")
    compression.add_argument(
        "--methods",
        type=names,
        default=["folds", "int8", "auto"],
        metavar="LIST",
        help="of folds, int8, int16x8, auto, sizes like 2.7kB, prune=0.9 and clusters=16, the last four also joined "
        "by + (default folds,int8,auto)",
    )
    compression.add_argument(
        "--episodes", type=positive, default=300, metavar="N", help="paired episodes of each file (default 300)"
    )
    compression.add_argument(
        "--compress-episodes",
        type=positive,
        default=100,
        metavar="N",
        help="episodes by which `compress` chooses and verifies, on other seeds (default 100)",
    )
    compression.add_argument("--target", dest="device", choices=["cpu", "mcu"], default="cpu", help="as for `compress`")
    compression.add_argument(
        "--runs", metavar="DIR", help="take finished runs of the same configuration from here, and keep the others here"
    )
    _add_shared(compression)

    transfer = add_command(
        kinds,
        "transfer",
        _transfer,
        "env steps to a threshold, with transfer and from scratch; the same command goes on with what is missing",
        "rlplatform benchmark transfer --from CartPole-v1 --to rlplatform.envs.variants:HeavyCartPole --seeds 10 "
        "--set evaluation.interval=1000 --out benchmarks/transfer.json",
    )
    transfer.add_argument("--from", dest="source", metavar="ENV_ID", help="where each seed's network learns first")
    transfer.add_argument(
        "--source", dest="given", nargs="+", default=[], metavar="RUN", help="runs that have learned there already"
    )
    transfer.add_argument("--to", metavar="ENV_ID", help="where the steps are counted")
    transfer.add_argument(
        "--threshold", type=float, metavar="R", help="the mean return to reach; by default where --to counts as solved"
    )
    transfer.add_argument("--preset", metavar="NAME", help="of both, by default the one for --from")
    transfer.add_argument(
        "--source-steps", type=positive, metavar="N", help="env steps on --from; --steps is of --to alone"
    )
    transfer.add_argument("--freeze", type=number, metavar="N", help="as for `rlplatform transfer`")
    transfer.add_argument("--fine-tune", type=number, default=0, metavar="K", help="as for `rlplatform transfer`")
    transfer.add_argument("--seeds", type=positive, default=5, metavar="N", help="training seeds (default 5)")
    transfer.add_argument(
        "--set-to",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a value of --to alone, like environment.kwargs.difficulty_ramping=false",
    )
    transfer.add_argument(
        "--set-transfer",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a value of the runs with transfer alone, like exploration.epsilon=0.05",
    )
    _add_shared(transfer)


def _add_environments(parser: Parser) -> None:
    parser.add_argument("--envs", type=names, metavar="LIST", help="environments, with commas between")


def _add_shared(parser: Parser) -> None:
    """What every benchmark has that trains and keeps its results in a file."""
    parser.add_argument("--first-seed", type=number, default=0, metavar="S", help="the first of them (default 0)")
    parser.add_argument(
        "--processes", type=positive, default=2, metavar="N", help="jobs side by side, one core each (default 2)"
    )
    parser.add_argument("--steps", type=positive, metavar="N", help="env steps of each run; the preset's by default")
    parser.add_argument("--out", metavar="FILE", help="the JSON file of raw results")
    parser.add_argument("--overwrite", action="store_true", help="replace rows of --out that were made otherwise")
    parser.add_argument("--table", metavar="FILE", help="only show the table of a file that is there")
    parser.add_argument("--markdown", action="store_true", help="show the table in Markdown")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a value over the preset"
    )


def _speed(args: Any) -> Result:
    load_api()
    from rlplatform.benchmarks import speed

    result = speed.measure(args.task, steps=args.steps, seed=args.seed)
    text = (
        f"{result['task']}: {result['env_steps_per_s']:,.0f} env steps/s, {result['updates_per_s']:,.0f} updates/s "
        f"over {result['env_steps']:,} steps"
    )
    return 0, result, text


def _returns(args: Any) -> Result:
    from rlplatform import analysis
    from rlplatform.benchmarks import returns

    def measure(**shared: Any) -> dict[str, Any]:
        return returns.measure(args.envs, args.presets, seeds=args.seeds, episodes=args.episodes, **shared)

    tree, result, code = _measured(args, ("envs", "presets", "out"), returns.read, measure)
    result |= {
        "runs": len(tree["runs"]),
        "rows": [dataclasses.asdict(row) for row in analysis.rows(tree)],
        "aggregates": [dataclasses.asdict(each) for each in analysis.aggregates(tree)],
    }
    return code, result, analysis.as_table(tree, markdown=args.markdown)


def _compression(args: Any) -> Result:
    from rlplatform.analysis import retained
    from rlplatform.benchmarks import retention

    def measure(**shared: Any) -> dict[str, Any]:
        return retention.measure(
            args.envs,
            args.preset,
            teachers=args.teachers,
            methods=args.methods,
            episodes=args.episodes,
            compress_episodes=args.compress_episodes,
            target=args.device,
            kept_runs=None if args.runs is None else pathlib.Path(args.runs),
            **shared,
        )

    tree, result, code = _measured(args, ("envs", "preset", "out"), retention.read, measure)
    result |= {
        "teachers": len(tree["teachers"]),
        "rows": [dataclasses.asdict(row) for row in retained.rows(tree)],
        "contests": [dataclasses.asdict(it) | {"winner": it.winner} for it in retained.contests(tree)],
    }
    return code, result, retained.as_table(tree, markdown=args.markdown)


def _transfer(args: Any) -> Result:
    from rlplatform import analysis
    from rlplatform.benchmarks import savings

    def measure(**shared: Any) -> dict[str, Any]:
        return savings.measure(
            args.source,
            args.to,
            given=args.given,
            threshold=args.threshold,
            preset=args.preset,
            source_steps=args.source_steps,
            freeze=args.freeze,
            fine_tune=args.fine_tune,
            seeds=args.seeds,
            changes=args.set_to,
            transfer_changes=args.set_transfer,
            **shared,
        )

    tree, result, code = _measured(
        args, ("to", "out"), savings.read, measure, ("source", "given", "set_to", "set_transfer")
    )
    result |= {"runs": len(tree["runs"]), "rows": [dataclasses.asdict(row) for row in analysis.savings(tree)]}
    return code, result, analysis.savings_table(tree, markdown=args.markdown)


def _measured(
    args: Any,
    needed: Sequence[str],
    read: Callable[[pathlib.Path], dict[str, Any]],
    measure: Callable[..., dict[str, Any]],
    others: Sequence[str] = (),
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """A file's content, after `measure` or as it is for `--table`; the result that names it; and the exit code.

    Args:
        args: of the command.
        needed: options without which nothing can be measured.
        read: gives a file's content.
        measure: likewise, after it has measured what the file lacks.
        others: options that `--table` refuses too, beside those of every benchmark.
    """
    if args.table is None:
        missing = [option for option in needed if getattr(args, option) is None]
        if missing:
            raise UserError(
                f"--{missing[0]} is missing; `rlplatform benchmark {args.benchmark} --help` shows an example, and "
                "--table FILE shows what a file holds"
            )
        load_api()
        tree = measure(
            first_seed=args.first_seed,
            processes=args.processes,
            steps=args.steps,
            out=pathlib.Path(args.out),
            overrides=args.set,
            overwrite=args.overwrite,
            command=f"rlplatform {shlex.join(args.words)}",
        )
    elif any(getattr(args, option) for option in (*needed, *others, "set", "steps", "overwrite")):
        raise UserError("--table shows a file that is there and trains nothing; leave the other options out")
    else:
        tree = read(pathlib.Path(args.table))
    result = {"file": args.table or args.out, "failed": tree["failed"]}
    return tree, result, 1 if tree["failed"] and args.table is None else 0
