"""Trains one environment with many seeds, evaluates each policy on fresh seeds, and writes the raw returns.

    python scripts/returns.py CartPole-v1 --seeds 10 --out benchmarks/cartpole.json

Two processes side by side. What is reported is the delivered policy: the best by the evaluations during training,
played greedily over `--episodes` episodes whose seeds were used neither for training nor for choosing it. The newest
policy's returns stand beside it.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import pathlib
import platform
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # the checkout, installed or not

import rlplatform


def one(env_id: str, preset: str | None, seed: int, episodes: int) -> dict[str, Any]:
    """Trains and evaluates one seed, in a process of its own."""
    from rlplatform import api

    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = api.train(env_id, preset=preset, seed=seed, out=pathlib.Path(folder, "run"), progress=False)
        seconds = time.perf_counter() - begin
        best = run.best()
        assert best is not None
        result: dict[str, Any] = {"seed": seed, "steps": run.config.training.total_steps, "best_step": best.step}
        for which in ("best", "last"):
            returns = api.evaluate(run, episodes=episodes, seed=seed, which=which).evaluation.returns
            result |= {f"{which}_mean": float(returns.mean()), f"{which}_returns": returns.tolist()}
    return result | {"training_seconds": round(seconds, 1)}


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env", metavar="ENV_ID")
    parser.add_argument("--preset")
    parser.add_argument("--seeds", type=int, default=10, help="seeds 0 to N - 1")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(args.processes, mp_context=context, max_tasks_per_child=1) as pool:
        futures = [pool.submit(one, args.env, args.preset, seed, args.episodes) for seed in range(args.seeds)]
        rows = []
        for future in futures:
            rows.append(future.result())
            print(
                f"seed {rows[-1]['seed']}: best {rows[-1]['best_mean']:.1f}, last {rows[-1]['last_mean']:.1f}",
                flush=True,
            )
    import numpy as np

    from rlplatform.analysis.statistics import bootstrap

    means = np.array([row["best_mean"] for row in rows])
    interval = bootstrap(means)
    result = {
        "command": "python " + " ".join(sys.argv),
        "environment": args.env,
        "episodes": args.episodes,
        "versions": {"rlplatform": rlplatform.__version__, "python": platform.python_version()},
        "interquartile_mean": interval.estimate,
        "interval": [interval.low, interval.high],
        "runs": rows,
    }
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(result) + "\n")
    print(f"IQM of {len(rows)} seeds: {interval.estimate:.1f}, 95 % interval [{interval.low:.1f}, {interval.high:.1f}]")


if __name__ == "__main__":
    main()
