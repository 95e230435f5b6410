"""Two processes on this machine are two workers: one run, one folder, and the end of one is the end of both."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

import rlplatform
from rlplatform import api

ROOT = pathlib.Path(rlplatform.__file__).parents[1]
SETTINGS = [
    "environment.num_envs=2",
    "network.hidden_units=[8]",
    "training.train_interval=16",
    "training.gradient_steps=2",
    "training.learning_starts=32",
    "training.batch_size=8",
    "replay.capacity=256",
    "evaluation.interval=160",
    "evaluation.episodes=2",
    "checkpoint.interval=64",
    "logging.interval=32",
]


def free_addresses(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{opened.getsockname()[1]}" for opened in sockets]
    for opened in sockets:
        opened.close()
    return addresses


def start(out, steps, *, more=(), resume=False):
    """Two workers of one run."""
    addresses, processes = free_addresses(2), []
    for index in range(2):
        words = ["train", "CartPole-v1", "--steps", str(steps), "--out", str(out), "--json", "--seed", "3"]
        words += ["--workers", ",".join(addresses), "--task-index", str(index)]
        words += [word for setting in (*SETTINGS, *more) for word in ("--set", setting)]
        words += ["--resume"] if resume else []
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "rlplatform", *words],
                cwd=ROOT,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    return processes


def ended(processes):
    """What each has printed, once all have ended."""
    try:
        return [(process, *process.communicate(timeout=500)) for process in processes]
    finally:
        for process in processes:
            process.kill()


def train_two(out, steps, **settings):
    results = ended(start(out, steps, **settings))
    for process, _, stderr in results:
        assert process.returncode == 0, stderr
    return [json.loads(stdout.splitlines()[-1]) for _, stdout, _ in results]


def checkpoints(out):
    return sorted((out / "checkpoints").glob("step_*"))


@pytest.mark.slow
def test_two_workers_are_one_run_that_goes_on_on_two_replicas_of_one_machine(tmp_path):
    """The chief alone writes; and two replicas of one machine do what two machines do, to the last digits."""
    out = tmp_path / "run"
    chief, other = train_two(out, 320)
    assert chief["updates"] == other["updates"] == (320 // 16 - 1) * 2
    assert chief["best_return"] == other["best_return"]
    assert [path.name for path in checkpoints(out)] == ["step_000000256", "step_000000320"]
    assert not list(tmp_path.glob("rlplatform-*"))
    run = api.load(out)
    saved = run.checkpoints().restore()
    assert {name for name in saved.variables if name.endswith("/reward")} == {"replay@0/reward", "replay@1/reward"}
    assert saved.variables["replay@1/reward"].shape == (128,)
    assert len(saved.host["workers"]) == 2
    assert not np.array_equal(*(saved.variables[f"replay@{worker}/observation"] for worker in (0, 1)))
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps), "two processes have written"

    settings = ["replicas=2", *SETTINGS]
    same, _ = api.session(
        "CartPole-v1", steps=320, seed=3, device="mirrored", out=tmp_path / "same", overrides=settings
    )
    for weight, expected in zip(same.network("last").get_weights(), run.network("last").get_weights(), strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-3, atol=1e-4)

    # The same folder, on one device.
    _, outcome = api.session("CartPole-v1", steps=384, seed=3, device="cpu", out=out, resume=True, overrides=SETTINGS)
    assert outcome.steps == 384
    assert run.checkpoints().restore().variables["replay/reward"].shape == (256,)


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_others_by_one_sentence_and_the_run_goes_on(tmp_path):
    out = tmp_path / "run"
    processes = start(out, 1_000_000)
    try:
        until = time.monotonic() + 300
        while not checkpoints(out) and time.monotonic() < until:
            assert all(process.poll() is None for process in processes), processes[0].stderr.read()
            time.sleep(0.2)
        processes[1].send_signal(signal.SIGKILL)
    finally:
        if not checkpoints(out):
            processes[0].kill()
    (chief, stdout, stderr), _ = ended(processes)
    assert chief.returncode == 1, stderr
    assert json.loads(stdout.splitlines()[-1])["error"].startswith("worker 0 has lost another worker")
    assert "Traceback" not in stderr
    reached = int(checkpoints(out)[-1].name.split("_")[1])
    for result in train_two(out, reached + 64, resume=True):
        assert result["steps"] == reached + 64


@pytest.mark.slow
def test_a_signal_to_one_worker_stops_all_of_them_together(tmp_path):
    processes = start(tmp_path / "run", 1_000_000)
    until = time.monotonic() + 300
    while not checkpoints(tmp_path / "run") and time.monotonic() < until:
        time.sleep(0.2)
    processes[1].send_signal(signal.SIGTERM)
    (chief, told, _), (other, told_other, _) = ended(processes)
    assert (chief.returncode, other.returncode) == (0, 128 + signal.SIGTERM)
    first, second = json.loads(told.splitlines()[-1]), json.loads(told_other.splitlines()[-1])
    assert first["reason"] == second["reason"] == "stopped by SIGTERM"
    assert first["steps"] == second["steps"] == int(checkpoints(tmp_path / "run")[-1].name.split("_")[1])
