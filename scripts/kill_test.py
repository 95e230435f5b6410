"""Kills training runs with `kill -9` at random moments, resumes each, and compares it with a run that nobody disturbed.

    python scripts/kill_test.py --kills 20 --out benchmarks/resume.json

Each run is killed once, in one of four phases: while it starts, between its first rows of metrics and its first
checkpoint, while it trains, while it writes a checkpoint. It is then resumed until it has finished. Equal means bit for
bit: the weights of the newest and of the best policy, and every row of metrics but its clock readings. The exit code is
0 if every run is equal to the undisturbed one.
"""

import argparse
import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the checkout, installed or not

PHASES = ("training", "checkpoint", "first rows", "start-up", "training")  # in turn
SETTINGS = {
    "network.hidden_units": "[32]",
    "training.learning_starts": "512",
    "training.train_interval": "128",
    "training.gradient_steps": "16",
    "replay.capacity": "4000",
    "agent.target_update_interval": "50",
    "evaluation.interval": "768",
    "evaluation.episodes": "3",
    "checkpoint.interval": "512",
    "logging.interval": "128",
}
INTERVAL = int(SETTINGS["checkpoint.interval"])
MOST_RESUMES = 3
ONE_AT_A_TIME = threading.Lock()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


class Undisturbed(NamedTuple):
    """What the run that nobody disturbs took, and gave."""

    checkpoints: list[float]  # seconds from its start to each, at even intervals of steps
    seconds: float
    fingerprint: dict[str, str]


def start(folder: pathlib.Path, steps: int, *, resume: bool = False) -> subprocess.Popen[bytes]:
    """Trains in a process of its own; what it says is beside its folder."""
    command = [sys.executable, "-m", "rlplatform", "train", "CartPole-v1", "--seed", "7", "--steps", str(steps)]
    command += ["--out", str(folder), *(part for item in SETTINGS.items() for part in ("--set", "=".join(item)))]
    if resume:
        command.append("--resume")
    with open(folder.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def undisturbed(folder: pathlib.Path, steps: int) -> Undisturbed:
    """Trains without a kill."""
    begin = time.perf_counter()
    process = start(folder, steps)
    moments: list[float] = []
    while process.poll() is None:
        while len(moments) < newest_step(folder) // INTERVAL:
            moments.append(time.perf_counter() - begin)
        time.sleep(0.001)
    seconds = time.perf_counter() - begin
    if process.returncode != 0:
        raise SystemExit(f"the undisturbed run has failed: {folder.with_suffix('.log').read_text().splitlines()[-1]}")
    return Undisturbed(moments, seconds, fingerprint(folder))


def disturb(folder: pathlib.Path, steps: int, phase: str, expected: Undisturbed, rng: random.Random) -> dict[str, Any]:
    """Trains, kills in a phase, resumes until the run has finished, and compares."""
    row: dict[str, Any] = {"phase": phase}
    begin = time.perf_counter()
    process = start(folder, steps)
    if phase == "checkpoint":
        seen, number, written = "", 0, rng.randint(1, max(1, steps // INTERVAL - 1))
        while process.poll() is None and number < written:  # until it has begun to write that checkpoint
            found = next((path.name for path in partial_checkpoints(folder)), "")
            number, seen = number + (found not in ("", seen)), found or seen
            time.sleep(0.0002)
        time.sleep(rng.uniform(0.0, 0.0005))
    elif phase == "first rows":
        rows = rng.randint(1, 3)
        while process.poll() is None and written_rows(folder) < rows:
            time.sleep(0.0002)
    else:
        moments = expected.checkpoints
        passed = 0 if phase == "start-up" else rng.randrange(1, len(moments))  # checkpoints that it may write before
        while process.poll() is None and newest_step(folder) < passed * INTERVAL:
            time.sleep(0.001)
        longest = moments[passed] - moments[passed - 1] if passed else moments[0]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.0, longest))
    process.kill()
    late = phase == "first rows" and newest_step(folder) > 0
    if process.wait() != -signal.SIGKILL or late:  # it had finished, or had its checkpoint, before: another moment
        shutil.rmtree(folder)
        return disturb(folder, steps, phase, expected, rng)
    row["seconds"] = round(time.perf_counter() - begin, 3)
    row["checkpoints"] = complete_checkpoints(folder)
    row["rows"] = written_rows(folder)
    row["half_written"] = [path.name for path in partial_checkpoints(folder)]
    row["resumes"] = 0
    code = -signal.SIGKILL
    while code != 0 and row["resumes"] < MOST_RESUMES:
        code = start(folder, steps, resume=True).wait()  # the same command, whether there is a checkpoint yet or not
        row["resumes"] += 1
    row["finished"] = code == 0
    found_now = fingerprint(folder) if row["finished"] else {}
    row |= {f"{name}_equal": found_now.get(name) == value for name, value in expected.fingerprint.items()}
    row["equal"] = row["finished"] and found_now == expected.fingerprint
    return row


def line(folder: pathlib.Path, row: dict[str, Any]) -> str:
    """A run's line of the table, and the last thing that it said where it is not equal."""
    newest = row["checkpoints"][-1] if row["checkpoints"] else "none"
    return (
        f"{folder.name:7} {row['phase']:10} killed after {row['seconds']:6.2f} s, newest checkpoint {newest:14}, "
        f"half-written {len(row['half_written'])}: "
        + ("equal" if row["equal"] else f"DIFFERENT ({folder.with_suffix('.log').read_text().splitlines()[-1]})")
    )


def written_rows(folder: pathlib.Path) -> int:
    """The rows of metrics, a half one included."""
    try:
        return len((folder / "metrics.jsonl").read_bytes().splitlines())
    except FileNotFoundError:
        return 0


def complete_checkpoints(folder: pathlib.Path) -> list[str]:
    """The checkpoints' names, oldest first."""
    return sorted(path.name for path in folder.glob("checkpoints/step_*"))


def newest_step(folder: pathlib.Path) -> int:
    """The step of the newest checkpoint, 0 before the first."""
    return max((int(name[5:14]) for name in complete_checkpoints(folder)), default=0)


def partial_checkpoints(folder: pathlib.Path) -> list[pathlib.Path]:
    """The checkpoints that are being written."""
    return sorted(folder.glob("checkpoints/.partial-step_*"))


def fingerprint(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 sums of the newest weights, the best weights and the metrics."""
    from rlplatform.training import Run

    sums = {}
    for which in ("last", "best"):
        with ONE_AT_A_TIME:  # Keras builds networks in one thread only
            weights = Run.open(folder).network(which).get_weights()
        sums[which] = hashlib.sha256(b"".join(weight.tobytes() for weight in weights)).hexdigest()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if k != "seconds" and not k.startswith("speed/")} for row in rows]
    sums["metrics"] = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    return sums


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="runs, each killed once (default 20)")
    parser.add_argument("--steps", type=int, default=3_000, help="env steps of each run (default 3000)")
    parser.add_argument("--processes", type=int, default=2, help="runs side by side (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="what the moments follow from")
    parser.add_argument("--out", type=pathlib.Path, help="a JSON file for the result")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line of standard output")
    args = parser.parse_args()

    import gymnasium
    import numpy as np
    import tensorflow as tf

    import rlplatform

    rows = []
    with tempfile.TemporaryDirectory(prefix="rlplatform-kill-") as place:
        expected = undisturbed(pathlib.Path(place, "undisturbed"), args.steps)
        print(
            f"undisturbed: {expected.seconds:.1f} s, first checkpoint after {expected.checkpoints[0]:.1f} s",
            flush=True,
        )
        with concurrent.futures.ThreadPoolExecutor(args.processes) as pool:
            folders = [pathlib.Path(place, f"run-{number}") for number in range(args.kills)]

            def disturbed(number: int) -> dict[str, Any]:
                rng = random.Random(f"{args.seed} {number}")
                return disturb(folders[number], args.steps, PHASES[number % len(PHASES)], expected, rng)

            for folder, row in zip(folders, pool.map(disturbed, range(args.kills)), strict=True):
                rows.append(row)
                print(line(folder, row), flush=True)
    equal = sum(row["equal"] for row in rows)
    result = {
        "command": "python " + " ".join(sys.argv),
        "versions": {
            "rlplatform": rlplatform.__version__,
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "gymnasium": gymnasium.__version__,
            "numpy": np.__version__,
        },
        "settings": {"steps": args.steps, "seed": args.seed} | SETTINGS,
        "kills": len(rows),
        "finished": sum(row["finished"] for row in rows),
        "equal": equal,
        "undisturbed": expected._asdict(),
        "runs": rows,
    }
    if args.out:
        args.out.parent.mkdir(exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    if args.json:
        print(json.dumps(result))
    else:
        print(f"{len(rows)} runs killed, {result['finished']} finished, {equal} equal bit for bit")
    return 0 if equal == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
