"""How fast this checkout trains beside another revision: `benchmark speed` of both in turn, in one run.

    python scripts/compare_speed.py REVISION [--task cartpole] [--pairs 8] [--out benchmarks/FILE.json]

Each pair is one run of either, the first in turn; machines that are shared drift, and what stands side by side drifts
together. The result is the geometric mean of the pairs' ratios of updates a second, with its 95 % interval.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # the checkout, installed or not
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from rlplatform.analysis import bootstrap, mean
from rlplatform.compression import machine

ROOT = pathlib.Path(__file__).resolve().parent.parent


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="what this checkout is compared with, as git names it")
    parser.add_argument("--task", default="cartpole", help="of `benchmark speed`")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--out", type=pathlib.Path, help="the JSON file")
    args = parser.parse_args()
    if args.pairs < 2:
        parser.error("an interval takes 2 pairs or more")
    with tempfile.TemporaryDirectory() as folder:
        before = pathlib.Path(folder, "before")
        _git("worktree", "add", "--quiet", "--detach", str(before), args.revision)
        try:
            rates = measure({"before": before, "after": ROOT}, args.task, args.pairs)
        finally:
            _git("worktree", "remove", "--force", str(before))
    logs = np.log(np.array(rates["after"]) / rates["before"])
    found = bootstrap(logs, mean)
    ratio, low, high = (float(np.exp(value)) for value in (found.estimate, found.low, found.high))
    result = {
        "command": "python " + " ".join(sys.argv),
        "task": args.task,
        "before": _git("rev-parse", args.revision),
        "after": _git("rev-parse", "HEAD"),
        "updates_per_s": rates,
        "ratio": {"mean": round(ratio, 4), "low": round(low, 4), "high": round(high, 4)},
        "machine": machine(),
    }
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{args.task}: {ratio:.3f} times the updates a second of {args.revision} [{low:.3f}, {high:.3f}]")


def measure(checkouts: dict[str, pathlib.Path], task: str, pairs: int) -> dict[str, list[float]]:
    """Updates a second by checkout, one of each in every pair; who comes first changes from pair to pair."""
    rates: dict[str, list[float]] = {name: [] for name in checkouts}
    for pair in range(pairs):
        for name in sorted(checkouts, reverse=bool(pair % 2)):
            command = [sys.executable, "scripts/benchmark.py", "speed", "--task", task, "--json"]
            done = subprocess.run(command, cwd=checkouts[name], check=True, stdout=subprocess.PIPE, text=True)
            rates[name].append(json.loads(done.stdout.splitlines()[-1])["updates_per_s"])
            print(f"pair {pair + 1}: {name} {rates[name][-1]:.0f} updates/s", flush=True)
    return rates


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


if __name__ == "__main__":
    main()
