"""What a user types: results, and errors as one sentence with the exit code that says whose fault it is."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from rlplatform import cli, envs
from rlplatform.export import export
from rlplatform.runtime.manifest import digest

ROOT = pathlib.Path(__file__).resolve().parent.parent
QUICK = [
    *("--seed", "3", "--set", "device=cpu", "--set", "network.hidden_units=[8]", "--set", "training.train_interval=16"),
    *("--set", "training.gradient_steps=2", "--set", "training.learning_starts=32", "--set", "training.batch_size=8"),
    *("--set", "replay.capacity=256", "--set", "evaluation.episodes=2"),
]
COMMANDS = ("train", "transfer", "evaluate", "compress", "export", "verify", "benchmark", "sweep", "devices", "list")
MY_ENV = '''
import gymnasium as gym
import numpy as np

WRONG = {wrong}


class MyEnv(gym.Env):
    """Walk left or right; the right end pays."""

    observation_space = gym.spaces.{space}
    action_space = gym.spaces.{actions}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.count = 0, 0
        return self.seen(), {{}}

    def step(self, action):
        self.place, self.count = self.place + 2 * int(action) - 1, self.count + 1
        return self.seen(), float(self.place == 3), abs(self.place) == 3, self.count == 20, {{}}

    def seen(self):
        return np.array([self.place, WRONG if self.count == 2 else 1.0], np.float32)
'''


def write_env(path, wrong="1.0", space="Box(-9.0, 9.0, (2,), np.float32)", actions="Discrete(2)"):
    path.write_text(MY_ENV.format(wrong=wrong, space=space, actions=actions))
    return f"{path}:MyEnv"


@pytest.fixture
def typed(capsys):
    """Types a command in this process: (exit code, lines of standard output, of standard error)."""

    def type_it(*words):
        capsys.readouterr()
        code = cli.main([str(word) for word in words])
        output = capsys.readouterr()
        return code, output.out.splitlines(), output.err.splitlines()

    return type_it


@pytest.fixture
def refused(typed):
    """Types a command that must fail: its sentence, the same with --json."""

    def type_it(*words, code=2):
        got, out, err = typed(*words, "--json")
        assert got == code, err
        told = [sentence for sentence in err if not sentence.startswith(("training in ", "verifying", "playing"))]
        assert len(told) == 1, err
        assert told[0].startswith("rlplatform: ")
        assert "Traceback" not in "".join(err)
        result = json.loads(out[-1])
        assert result == {"error": result["error"], "exit_code": code}
        assert " ".join(result["error"].split()) == told[0].removeprefix("rlplatform: ")
        return told[0].removeprefix("rlplatform: ")

    return type_it


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A folder with `shop_env.py`, a tiny trained run of it and a bundle of that run."""
    folder = tmp_path_factory.mktemp("shop")
    env = write_env(folder / "shop_env.py")
    assert cli.main(["train", env, "--steps", "128", "--out", str(folder / "run"), *QUICK]) == 0
    export(folder / "run", folder / "bundle", episodes=2, force=True)
    return folder


@pytest.fixture
def bundle(shop, tmp_path):
    return shutil.copytree(shop / "bundle", tmp_path / "bundle")


# --- results --------------------------------------------------------------------------------------------------------


def test_a_users_own_environment_trains_and_is_evaluated(shop, typed):
    assert (shop / "run" / "metrics.jsonl").is_file()
    code, out, err = typed("evaluate", shop / "run", "--episodes", 3, "--json")
    result = json.loads(out[-1])
    assert (code, err, result["episodes"]) == (0, [], 3)
    assert result["min_return"] <= result["mean_return"] <= result["max_return"]
    code, out, _ = typed("evaluate", shop / "bundle", "--episodes", 3)
    assert code == 0
    assert out[-1].startswith(f"{shop / 'bundle'}: mean return ")


def test_training_tells_where_it_is_and_gives_one_json_object(tmp_path, typed):
    words = ["train", write_env(tmp_path / "walk.py"), "--steps", "64", "--out", tmp_path / "run", *QUICK, "--json"]
    code, out, err = typed(*words)
    assert (code, len(out)) == (0, 1)
    result = json.loads(out[0])
    assert (result["run"], result["steps"], result["reason"]) == (str(tmp_path / "run"), 64, "finished")
    assert err[0].endswith(f"tensorboard --logdir {tmp_path / 'run'}")
    assert typed(*words[:3], "96", *words[4:], "--resume")[0] == 0


def test_the_shipped_things_are_listed(typed):
    for what, one in (("envs", "CartPole-v1"), ("presets", "rainbow"), ("agents", "dqn")):
        code, out, err = typed("list", what)
        assert (code, err) == (0, [])
        assert any(line.split()[0] == one for line in out)
        assert one in json.loads(typed("list", what, "--json")[1][-1])[what]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_that_parses(command, typed):
    code, out, err = typed(command, "--help")
    assert (code, err) == (0, [])
    example = " ".join(" ".join(out).partition("example: ")[2].split())
    words = shlex.split(example)
    assert words[:2] == ["rlplatform", command]
    assert cli._parser().parse_args(words[1:]).command == command


def test_help_and_version_of_the_whole(typed):
    code, out, _ = typed("--help")
    assert code == 0
    assert all(command in "\n".join(out) for command in COMMANDS)
    assert typed("--version")[1][0].startswith("rlplatform ")


# --- wrong arguments: exit code 2 -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("train CartPole-v1 --preset rainbo", "unknown preset 'rainbo' for CartPole-v1; did you mean 'rainbow'?"),
        ("train CartPole-v1 --preset no.toml", "there is no file no.toml"),
        ("train CartPole-v1 --set replay.capcity=9", "unknown key 'replay.capcity'; did you mean 'replay.capacity'?"),
        ("train CartPole-v1 --set batch_size=9", "unknown key 'batch_size'; did you mean 'training.batch_size'?"),
        ("train CartPole-v1 --set agent.gamma=high", "agent.gamma must be a number; got 'high'"),
        ("train CartPole-v1 --set agent.double=3", "agent.double must be true or false; got 3"),
        ("train CartPole-v1 --set agent.gamma=1.5", "agent.gamma must be between 0.0 and 1.0; got 1.5"),
        ("train CartPole-v1 --set agent.n_step=0", "agent.n_step must be between 1 and 128; got 0"),
        ("train CartPole-v1 --set device=gpuu", "device cannot be 'gpuu'; did you mean 'gpu'?"),
        ("train CartPole-v1 --set agent.gamma", "--set needs key=value"),
        ("train CartPole-v1 --steps many", "a whole number is needed, like 50000; got 'many'"),
        ("train CartPole-v1 --steps -5", "at least 0 is needed; got -5"),
        ("train CartPole-v1 --steps 0", "training.total_steps must be at least 1; got 0"),
        ("train CartPole-v1 --resume", "to resume, say which run: --out runs/NAME"),
        ("train CartPol-v1", "unknown environment 'CartPol-v1'; did you mean 'CartPole-v1'?"),
        ("train Pendulum-v1", "Discrete"),
        ("train MinAtar/Pong-v1", "unknown environment 'MinAtar/Pong-v1'"),
        ("train nowhere.py:MyEnv", "nowhere.py"),
        ("train no_such_module:Env", "there is no module 'no_such_module' to import"),
        ("train CartPole-v1 --setp 3", "unknown argument '--setp'; did you mean '--set'?"),
        ("train CartPole-v1 extra", "unknown argument 'extra'; it is one too many"),
        ("train", "ENV_ID"),
        ("trian CartPole-v1", "unknown command 'trian'; did you mean 'train'?"),
        ("", "COMMAND"),
        ("list preset", "unknown what 'preset'; did you mean 'presets'?"),
        ("evaluate nowhere", "there is no run folder nowhere"),
        ("evaluate . --episodes 0", "at least 1 is needed; got 0"),
        ("evaluate . --weights bets", "unknown --weights 'bets'; did you mean 'best'?"),
        ("compress nowhere --out b", "there is no run folder nowhere"),
        ("export nowhere", "--out"),
        ("export nowhere --out b --target mcv", "unknown --target 'mcv'; did you mean 'mcu'?"),
        ("verify nowhere", "nowhere"),
        ("benchmark speed --task cartpol", "cartpole"),
        ("benchmark sped", "unknown benchmark 'sped'; did you mean 'speed'?"),
        ("benchmark", "BENCHMARK"),
        ("benchmark speed --tsak cartpole", "unknown argument '--tsak'; did you mean '--task'?"),
        ("benchmark speed --envs CartPole-v1", "unknown argument '--envs'"),
        ("benchmark returns", "--envs is missing"),
        ("benchmark returns --envs CartPole-v1 --out r.json", "--presets is missing"),
        ("benchmark returns --envs CartPole-v1 --presets dqn", "--out is missing"),
        ("benchmark returns --envs CartPole-v1, --presets dqn --out r.json", "names with commas between are needed"),
        ("benchmark returns --envs CartPol-v1 --presets dqn --out r.json", "did you mean 'CartPole-v1'?"),
        ("benchmark returns --envs CartPole-v1 --presets dqnn --out r.json", "did you mean 'dqn'?"),
        ("benchmark returns --envs CartPole-v1 --presets dqn --out r.json --seeds 0", "at least 1 is needed; got 0"),
        (
            "benchmark returns --envs CartPole-v1 --presets dqn --out r.json --set agent.gama=1",
            "did you mean 'agent.gamma'?",
        ),
        ("benchmark returns --table nowhere.json", "there is no file nowhere.json"),
        ("benchmark returns --table r.json --envs CartPole-v1", "--table shows a file that is there"),
        ("benchmark returns --tabel r.json", "unknown argument '--tabel'; did you mean '--table'?"),
        ("sweep CartPole-v1 --out s", "--trials"),
        ("sweep CartPole-v1 --trials 3", "--out"),
        ("sweep CartPole-v1 --trials 0 --out s", "at least 1 is needed; got 0"),
        ("sweep CartPol-v1 --trials 3 --out s", "did you mean 'CartPole-v1'?"),
        ("sweep CartPole-v1 --trials 3 --out s --preset dqnn", "did you mean 'dqn'?"),
        ("sweep CartPole-v1 --trials 3 --out s --space no.toml", "there is no file no.toml"),
        ("sweep CartPole-v1 --trials 3 --out s --spaec a.toml", "unknown argument '--spaec'; did you mean '--space'?"),
    ],
)
def test_a_wrong_argument_is_refused_by_one_sentence(words, sentence, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(*words.split())
    assert os.listdir(tmp_path) == []  # nothing was written


def test_an_unknown_format_is_refused(shop, refused, tmp_path):
    words = ("export", shop / "run", "--out", tmp_path / "b", "--formats", "tflit")
    assert refused(*words) == "unknown format 'tflit'; did you mean 'tflite'?"


def test_spaces_of_a_users_own_that_are_not_supported_are_refused(refused, tmp_path):
    env = write_env(tmp_path / "a.py", actions="Box(-1.0, 1.0, (2,))")
    assert "Discrete" in refused("train", env, "--out", tmp_path / "run")
    env = write_env(tmp_path / "b.py", space="Dict({'a': gym.spaces.Text(3)})")
    assert "Text" in refused("train", env, "--out", tmp_path / "run")
    assert "did you mean 'MyEnv'?" in refused("train", f"{tmp_path / 'b.py'}:MyEn", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_occupied_folder_is_refused(shop, refused, tmp_path):
    env = f"{shop / 'shop_env.py'}:MyEnv"
    assert "holds a run already; go on with it by --resume" in refused("train", env, "--out", shop / "run")
    (tmp_path / "thesis.tex").touch()
    assert "it holds thesis.tex" in refused("train", env, "--out", tmp_path)
    assert "is a file" in refused("train", env, "--out", tmp_path / "thesis.tex")
    assert "is no bundle" in refused("export", shop / "run", "--out", tmp_path)
    assert "--overwrite" in refused("export", shop / "run", "--out", shop / "bundle")


def test_a_run_that_is_another_is_refused(shop, refused):
    words = ("--out", shop / "run", "--resume")
    assert "not of CartPole-v1; choose another --out" in refused("train", "CartPole-v1", *words)
    env = f"{shop / 'shop_env.py'}:MyEnv"
    assert "agent.gamma would change" in refused("train", env, *words, "--set", "agent.gamma=0.5")


# --- what fails while running: exit code 1 --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["policy.tflite", "policy_int8.tflite", "golden.npz"])
def test_a_bundle_with_one_byte_changed_is_refused(bundle, refused, name):
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    assert name in refused("verify", bundle, "--episodes", 2, code=1)


def test_a_changed_default_file_is_not_evaluated(bundle, refused):
    for path in bundle.glob("*.tflite"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert ".tflite" in refused("evaluate", bundle, "--episodes", 2, code=1)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:.*not within the observation space")  # says Gymnasium
def test_an_observation_that_is_no_number_ends_an_evaluation(bundle, refused, shop, monkeypatch, wrong):
    module = sys.modules[envs.naming.find(f"{shop / 'shop_env.py'}:MyEnv").__module__]
    monkeypatch.setattr(module, "WRONG", wrong)
    for target in (bundle, shop / "run"):
        assert "shows NaN or infinity after step 2 of" in refused("evaluate", target, "--episodes", 2, code=1)


def test_an_environment_of_another_shape_than_the_policys_is_refused(bundle, refused, shop):
    path = bundle / "policy.json"
    text = path.read_text().replace(f"{shop / 'shop_env.py'}:MyEnv", "Acrobot-v1")
    recorded = json.loads(text)["sha256"]
    path.write_text(text.replace(recorded, digest(text, recorded)))
    assert "[2]" in refused("evaluate", bundle, "--episodes", 2, code=1)


def test_a_run_with_damaged_weights_is_refused(shop, refused, tmp_path):
    run = shutil.copytree(shop / "run", tmp_path / "run")
    path = run / "best" / "policy.npz"
    path.write_bytes(path.read_bytes()[:-9])
    assert "policy.npz is damaged" in refused("evaluate", run, code=1)


def test_an_unexpected_error_is_one_sentence_and_a_traceback_only_on_demand(shop, refused, monkeypatch):
    from rlplatform import api

    def broken(*args, **kwargs):
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(api, "evaluate", broken)
    assert refused("evaluate", shop / "run", code=1) == "ZeroDivisionError: by zero (--debug shows where)"
    with pytest.raises(ZeroDivisionError):
        cli.main(["evaluate", str(shop / "run"), "--debug"])


# --- as a process of its own ----------------------------------------------------------------------------------------


def test_every_door_opens():
    for door in (["-m", "rlplatform"], ["-m", "rlplatform.cli"]):
        done = subprocess.run([sys.executable, *door, "list", "presets"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0
        assert "rainbow" in done.stdout
    for name in ("train", "evaluate", "compress", "export", "verify", "benchmark", "sweep"):
        done = subprocess.run(
            [sys.executable, ROOT / "scripts" / f"{name}.py", "--help"], cwd="/", capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert f"example: rlplatform {name}" in done.stdout


@pytest.mark.slow
def test_sigterm_saves_and_leaves_with_128_and_the_signal_and_the_run_goes_on(tmp_path):
    out = tmp_path / "run"
    words = [sys.executable, "-m", "rlplatform", "train", "CartPole-v1", "--out", str(out), *QUICK]
    words += ["--set", "logging.interval=64"]
    process = subprocess.Popen(
        [*words, "--steps", "100_000_000"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not (out / "metrics.jsonl").is_file():
        time.sleep(0.05)
    while process.poll() is None and not (out / "metrics.jsonl").read_text():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM at step" in output
    assert f"go on with: rlplatform train CartPole-v1 --out {out} --resume" in output
    assert "Traceback" not in errors
    steps = max(int(path.name[5:14]) for path in (out / "checkpoints").glob("step_*"))
    done = subprocess.run(
        [*words, "--steps", str(steps + 64), "--resume", "--json"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == int(np.ceil((steps + 64) / 16)) * 16


@pytest.mark.slow
def test_a_run_is_transferred_and_its_layers_are_named(shop, tmp_path, typed):
    walk = write_env(tmp_path / "walk.py")
    code, out, err = typed(
        "transfer", shop / "run", "--to", walk, "--steps", 64, "--out", tmp_path / "new", *QUICK, "--json"
    )
    assert code == 0
    assert "dense_0: from dense_0" in err[0]
    layers = json.loads(out[-1])["layers"]
    assert layers[0]["source"] == "dense_0"
    code, _, err = typed("transfer", tmp_path / "nowhere", "--to", walk, "--out", tmp_path / "other")
    assert code == 2
    assert "transfer.source must be a run's folder, a .keras file or a .h5 file" in err[-1]


# --- devices ----------------------------------------------------------------------------------------------------------


def test_the_devices_are_listed_with_what_auto_takes(typed):
    code, out, _ = typed("devices", "--no-speed", "--json")
    told = json.loads(out[-1])
    assert code == 0
    assert {entry["device"]: entry["here"] for entry in told["devices"]}[told["auto"]]
    code, lines, _ = typed("devices", "--no-speed")
    assert lines[0].split() == ["auto", "takes", f"{told['auto']}:", *told["why"].split()]
    assert len(lines) == 1 + len(told["devices"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--device", "cqu"], "did you mean 'cpu'?"),
        (["--workers", "a:1,b:2"], "--workers and --task-index belong together"),
        (["--workers", "a:1,b:2", "--task-index", "0", "--device", "cpu"], "--workers is for --device multiworker"),
        (["--workers", "a:1,b", "--task-index", "0"], "a worker's address is HOST:PORT"),
        (["--device", "multiworker"], "device 'multiworker' must know the workers"),
        (["--workers", "a:1,b:2", "--task-index", "1", "--num-envs", "2"], "several workers must name one folder"),
        (["--workers", "a:1,b:2", "--task-index", "1", "--out", "x"], "num_envs must be a multiple of the 2 replicas"),
        (["--device", "mirrored", "--out", "x"], "environment.num_envs must be a multiple of the 2 replicas"),
    ],
)
def test_a_device_that_cannot_be_taken_is_refused_before_anything_is_written(
    refused, words, sentence, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TF_CONFIG", "put back in the end")
    monkeypatch.delenv("TF_CONFIG")
    assert sentence in refused("train", "CartPole-v1", *words)
    assert list(tmp_path.iterdir()) == []
