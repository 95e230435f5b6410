"""A run on the disk: its folder, its configuration, its best policy and its checkpoints, read back."""

import dataclasses
import io
import json
import pathlib
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import tf_keras as keras

from rlplatform import config as configuration
from rlplatform.agents import make_actor, networks
from rlplatform.agents.acting import flatten
from rlplatform.config import Config
from rlplatform.envs import Spec
from rlplatform.errors import RunError, UserError
from rlplatform.files import write_atomically
from rlplatform.training.checkpoints import Checkpoints
from rlplatform.training.evaluation import Act, greedy

Array = np.ndarray[Any, Any]
CONFIG, DESCRIPTION = "config.toml", "run.json"
POLICY, OBSERVATIONS = "best/policy.npz", "best/observations.npz"


class Best(NamedTuple):
    """The best policy so far, by the mean return of an evaluation during training."""

    step: int
    mean_return: float
    weights: list[Array]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder, opened for reading."""

    path: pathlib.Path
    config: Config
    spec: Spec

    @classmethod
    def open(cls, path: str | pathlib.Path) -> Self:
        """The run in a folder.

        Raises:
            UserError: the folder is missing or holds no run, or its configuration does not read.
        """
        path = pathlib.Path(path)
        if not path.is_dir():
            raise UserError(f"there is no run folder {path}")
        if not (path / CONFIG).is_file() or not (path / DESCRIPTION).is_file():
            raise UserError(f"{path} is not a run folder: it has no {CONFIG} and {DESCRIPTION}")
        return cls(path, configuration.load(path / CONFIG), _read_spec(path / DESCRIPTION))

    def create(self, version: str) -> None:
        """Writes the folder's description; the environment need not be there to read the run back."""
        description = {"format": 1, "rlplatform": version, "spec": dataclasses.asdict(self.spec)}
        write_atomically(self.path / CONFIG, configuration.to_toml(self.config))
        write_atomically(self.path / DESCRIPTION, json.dumps(description, indent=1))

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """[S...], what the network sees: frames stacked."""
        return self.spec.stacked_shape(self.config.environment.frame_stack)

    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints."""
        return Checkpoints(self.path / "checkpoints", self.config.checkpoint.keep)

    def best(self) -> Best | None:
        """The best policy, or None before the first evaluation.

        Raises:
            RunError: its file is damaged.
        """
        arrays = _read_npz(self.path / POLICY)
        if arrays is None:
            return None
        weights = [arrays[f"weight_{index}"] for index in range(len(arrays) - 2)]
        return Best(int(arrays["step"]), float(arrays["mean_return"]), weights)

    def save_best(self, best: Best, observations: Array) -> None:
        """Keeps a policy, and observations [M, S...] from the replay at that time, for calibration."""
        (self.path / POLICY).parent.mkdir(exist_ok=True)
        write_atomically(self.path / OBSERVATIONS, _npz(observations=observations))
        weights = {f"weight_{index}": weight for index, weight in enumerate(best.weights)}
        write_atomically(self.path / POLICY, _npz(step=best.step, mean_return=best.mean_return, **weights))

    def network(self, which: Literal["best", "last"] = "best") -> Any:
        """The Q-network with the weights of the best policy, or of the newest checkpoint.

        Raises:
            UserError: there are no such weights yet.
            RunError: they are damaged.
        """
        network = self.fresh_network()
        network.set_weights(self._weights(which))
        return network

    def fresh_network(self) -> Any:
        """The Q-network with first weights."""
        return networks.build(self.config, self.observation_shape, self.spec.observation_dtype, self.spec.num_actions)

    def act(self, which: Literal["best", "last"] = "best") -> Act:
        """The greedy policy of `network(which)`: [n, S...] observations to [n] actions."""
        network = self.network(which)
        actor = make_actor(network)
        actor.load(flatten(network.get_weights()))
        return greedy(actor)

    def observations(self, count: int, seed: int = 0) -> Array:
        """[M, S...] observations from the replay, M at most `count`, drawn without repetition.

        Raises:
            UserError: no policy was kept yet.
            RunError: their file is damaged.
        """
        arrays = _read_npz(self.path / OBSERVATIONS)
        if arrays is None:
            raise self._no_best()
        observations = arrays["observations"]
        chosen = np.random.default_rng(seed).permutation(len(observations))[:count]
        return observations[np.sort(chosen)]

    def _no_best(self) -> UserError:
        pruned = " with all its zeros (prune.final_sparsity)" if self.config.prune.final_sparsity else ""
        return UserError(f"{self.path} has no best policy yet: its first evaluation{pruned} is still to come")

    def _weights(self, which: str) -> list[Array]:
        if which == "best":
            best = self.best()
            if best is None:
                raise self._no_best()
            return best.weights
        saved = self.checkpoints().restore("agent/online/")
        if saved is None:
            raise UserError(f"{self.path} has no checkpoint yet")
        return [saved.variables[f"agent/online/{index}"] for index in range(len(saved.variables))]


def seed_networks(seed: int) -> None:
    """Makes the weights of the networks that are built next follow from `seed`."""
    keras.utils.set_random_seed(seed)


def _read_spec(path: pathlib.Path) -> Spec:
    try:
        tree = json.loads(path.read_text())["spec"]
        return Spec(**(tree | {"observation_shape": tuple(tree["observation_shape"])}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged: {error}") from None


def _npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _read_npz(path: pathlib.Path) -> dict[str, Array] | None:
    try:
        with open(path, "rb") as file, np.load(file) as arrays:  # numpy leaves a damaged file open that it has opened
            return dict(arrays)
    except FileNotFoundError:
        return None
    except Exception as error:  # zipfile, zlib and numpy each have errors of their own for a damaged file
        raise RunError(f"{path} is damaged: {error}") from None
