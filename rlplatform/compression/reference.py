"""What the files of a bundle are compared with: the network as it was trained, its golden states, its environment."""

import io
import pathlib
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from rlplatform.config import EnvironmentConfig
from rlplatform.errors import RunError, UserError
from rlplatform.runtime import MANIFEST, BundleError, read_file, read_manifest

Array = np.ndarray[Any, Any]

NETWORK = "saved_model"  # the network that was trained
STUDENT = "student"  # and the smaller one that was distilled from it, where the files come from that
GOLDEN = "golden.npz"
BATCH = 512


class Golden(NamedTuple):
    """States that every file is asked about, half of them those in which the network is least sure.

    Those of a network that remembers are sequences instead: each row goes on from the one before it.
    """

    observations: Array  # [N, O...]
    q: Array  # [N, A] float32, the canonical network's
    actions: Array  # [N] int64, the network's own, counted from 0
    masks: Array | None = None  # [N, A] bool, where the environment offers masks: what was allowed
    states: Array | None = None  # [N, H] float32, of a network that remembers: what it had in mind before each
    next_states: Array | None = None  # [N, H] float32, and what the canonical network has in mind after
    first: Array | None = None  # [N] bool, where a sequence begins, by the beginning of an episode


class Network:
    """A network from its SavedModel: TensorFlow's own answer, without any of the code that built it."""

    def __init__(self, path: pathlib.Path) -> None:
        self._module = tf.saved_model.load(str(path))
        self._act = self._module.signatures["act"]
        taken = self._act.structured_input_signature[1]
        self._takes_mask = "action_mask" in taken
        self.state_size = int(taken["state"].shape[1]) if "state" in taken else 0  # H; 0: it remembers nothing
        self._num_actions = int(self._act.structured_outputs["q"].shape[1])

    def q_values(self, observations: Array) -> Array:
        """`[N, A]` float32 for `[N, O...]`."""
        batches = [observations[start : start + BATCH] for start in range(0, len(observations), BATCH)]
        return np.concatenate([self._answer(batch)["q"].numpy() for batch in batches])

    def answers(self, observations: Array, states: Array) -> tuple[Array, Array]:
        """A recurrent network's values `[N, A]`, and the states `[N, H]` after those that are given."""
        batches = [slice(start, start + BATCH) for start in range(0, len(observations), BATCH)]
        found = [self._answer(observations[rows], states=states[rows]) for rows in batches]
        q, after = (np.concatenate([answer[name].numpy() for answer in found]) for name in ("q", "next_state"))
        return q, after

    def decide(self, observation: Array, state: Array, mask: Array | None = None) -> int:
        """Like `act`, for a recurrent network and the state `[H]` before."""
        answer = self._answer(observation[None], None if mask is None else mask[None], state[None])
        return int(answer["action"].numpy()[0])

    def act(self, observation: Array, mask: Array | None = None) -> int:
        """The greedy action for one observation `[O...]`, as a program that uses TensorFlow would ask for it.

        Args:
            observation: as the environment gives it.
            mask: `[A]` bool, for a network that takes one; all actions are allowed if None.
        """
        return int(self._answer(observation[None], None if mask is None else mask[None])["action"].numpy()[0])

    def _answer(self, observations: Array, masks: Array | None = None, states: Array | None = None) -> dict[str, Any]:
        inputs = {"observation": tf.constant(observations)}
        if states is not None:
            inputs["state"] = tf.constant(states)
        if self._takes_mask:
            all_allowed = np.ones((len(observations), self._num_actions), np.bool_)
            inputs["action_mask"] = tf.constant(all_allowed if masks is None else masks)
        return self._act(**inputs)  # type: ignore[no-any-return]


def open_bundle(folder: pathlib.Path) -> dict[str, Any]:
    """The manifest of a bundle whose every file is as it was written.

    Raises:
        UserError: the folder is no bundle.
        RunError: a file is missing or was changed: the gate `hashes`.
    """
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} is not a policy bundle: it has no {MANIFEST}")
    try:
        manifest = read_manifest(folder)
        for name in manifest["files"]:
            read_file(folder, manifest, name)
    except BundleError as error:
        raise RunError(f"gate 'hashes' failed: {error}") from None
    return manifest


def network_of(folder: pathlib.Path, manifest: dict[str, Any]) -> Network:
    """The network in a bundle.

    Raises:
        UserError: the bundle was exported without it.
    """
    if not has_model(manifest, NETWORK):
        raise UserError(
            f"{folder} has no {NETWORK}/, so there is no network to compare its files with; export it with the format "
            "saved_model too"
        )
    return Network(folder / NETWORK)


def source_of(folder: pathlib.Path, manifest: dict[str, Any]) -> Network:
    """The network that a bundle's files were converted from: the student where there is one, else the network."""
    return Network(folder / STUDENT) if has_model(manifest, STUDENT) else network_of(folder, manifest)


def has_model(manifest: dict[str, Any], name: str) -> bool:
    """Whether a bundle holds the SavedModel `name`."""
    return f"{name}/saved_model.pb" in manifest["files"]


def golden_of(folder: pathlib.Path, manifest: dict[str, Any]) -> Golden:
    """The golden states in a bundle."""
    with np.load(io.BytesIO(read_file(folder, manifest, GOLDEN))) as file:
        optional = {name: file[name] for name in Golden._fields[3:] if name in file}
        return Golden(file["observations"], file["q"], file["actions"], **optional)


def environment_of(manifest: dict[str, Any]) -> EnvironmentConfig:
    """The environment that a bundle was made for."""
    described = manifest["environment"]
    return EnvironmentConfig(
        id=described["id"],
        kwargs=described["kwargs"],
        max_episode_steps=described["max_episode_steps"],
        frame_stack=manifest["observation"]["frame_stack"],
    )
