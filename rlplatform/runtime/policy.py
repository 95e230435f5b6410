"""A policy bundle that decides: from one observation to one action, in a few microseconds."""

import math
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from .errors import BundleError, ObservationError
from .frames import FrameStack
from .graph import INTEGERS, open_graph
from .layout import Layout
from .manifest import read_file, read_manifest
from .masks import best_allowed, mask_check
from .memory import Decision, state_check
from .observations import SMALL, Observations

Array = np.ndarray[Any, Any]


class Policy:
    """A greedy policy, as `rlplatform export` wrote it.

    On a device, `pip install numpy ai-edge-litert` and `pip install --no-deps rlplatform` (or a copy of this folder)
    are all that it needs:

        policy = Policy("bundle/")
        action = policy.act(observation)            # frames stacked already, or:
        policy.reset(); action = policy.step(frame)  # once an episode; once a step

    Of two actions with the same value it takes the one with the lower index. Where the environment offers action masks
    (`needs_mask`), each decision needs the mask that belongs to its observation: `act(observation, action_mask)`. Any
    other policy takes a mask too, and then chooses among what it allows. Not for several threads at once: open one for
    each.

    A policy that remembers (`remembers`) decides by all that it has seen of an episode, so one observation is not
    enough, and `act` is refused: `reset` and `step` keep its state. `decide` leaves the state to the caller, for
    episodes side by side.

    Args:
        path: the bundle's folder.
        variant: `float`, `int8`, or `auto` for the one that the bundle was verified to be used with.
        num_threads: threads of the interpreter; one is the fastest for networks of a policy's size.

    Attributes:
        observation_shape: what `act` takes, `[O...]`, frames already stacked.
        observation_dtype: `float32`, for which any real numbers are taken, or `uint8`, which must be uint8.
        num_actions: A.
        action_start: what the environment calls the first action, mostly 0.
        needs_mask: whether a decision needs an action mask.
        frame_stack: newest frames that make up an observation; `step` stacks them.
        remembers: whether a decision needs the state that the one before has left.
        initial_state: `[H]` float32, with which an episode begins; `[0]` for a policy that does not remember.
        variant: `float` or `int8`.
        file: the name of the file that decides.
        manifest: all that `policy.json` says.

    Raises:
        BundleError: the folder is no bundle, lacks the variant, or holds bytes that are not those it was written with.
    """

    def __init__(
        self,
        path: str | pathlib.Path,
        variant: Literal["auto", "float", "int8"] = "auto",
        *,
        num_threads: int = 1,
    ) -> None:
        folder = pathlib.Path(path)
        manifest = read_manifest(folder)
        variants = manifest["variants"]
        if variant != "auto" and variant not in variants:
            raise BundleError(f"{folder} has no variant {variant!r}; it has {', '.join(sorted(variants))}")
        self.manifest: dict[str, Any] = manifest
        self.variant: str = manifest["default"] if variant == "auto" else variant
        self.file: str = variants[self.variant]
        self.observation_shape: tuple[int, ...] = tuple(manifest["observation"]["shape"])
        self.observation_dtype: str = manifest["observation"]["dtype"]
        self.num_actions: int = manifest["action"]["count"]
        self.action_start: int = manifest["action"]["start"]
        self.needs_mask: bool = manifest["action"].get("mask", False)
        self.frame_stack: int = manifest["observation"]["frame_stack"]
        self._dtype = np.dtype(self.observation_dtype)
        self.remembers: bool = "state" in manifest
        state = manifest.get("state", {"size": 0, "initial": 0.0})
        self.initial_state: Array = np.full(state["size"], state["initial"], np.float32)
        self.initial_state.setflags(write=False)
        self._state = self.initial_state
        self._frames = FrameStack(tuple(manifest["observation"]["frame_shape"]), self.frame_stack)
        self._observations = self._contract()
        self._checked_mask, self._checked_state = mask_check(self.num_actions), state_check(self.initial_state.shape)
        content, scaling = read_file(folder, manifest, self.file), manifest["files"][self.file].get("input_scaling")
        self._graph = open_graph(content, str(folder / self.file), num_threads, scaling)
        self._check_contract(folder)
        self._decide_among: Callable[[Any, Any], int]
        self._decide: Callable[..., int]
        if self.remembers:
            self._decide = self._decide_among = self._state_missing
        else:
            self._decide_among = self._masked_decision()
            self._decide = self._mask_missing if self.needs_mask else self._decision()
        self.act = self._decide  # type: ignore[method-assign] # One call less: a fortieth of a small network's time.

    def act(self, observation: Any, action_mask: Any = None) -> int:
        """The greedy action for one observation `[O...]`, as the environment counts: `action_start` is the first.

        Args:
            observation: frames already stacked. Where the environment's own observation is of another form (a dict, a
                tuple, a whole number, an image with channels first) and one frame is an observation, that is taken too.
            action_mask: `[A]` bool, or 0 and 1 as integers: which actions are allowed. It may stand in the observation,
                if it does in the environment's.

        Raises:
            ObservationError: the observation has another shape or kind of dtype, or holds NaN or infinity; or the mask
                is missing where one is needed, has another shape or dtype, or allows nothing; or the policy remembers.
        """
        return self._decide(observation, action_mask)

    def decide(self, observation: Any, state: Any, action_mask: Any = None) -> Decision:
        """One decision of a policy that remembers, where the caller keeps the state: for episodes side by side.

        Args:
            observation: as for `act`.
            state: `[H]`: `initial_state` where an episode begins, and else what the episode's last decision has left.
            action_mask: as for `act`.

        Raises:
            ObservationError: like `act`; or the state is not `[H]`, or not finite; or the policy does not remember.
        """
        graph = self._graph
        if graph.state is None or graph.next_state is None:
            raise ObservationError("this policy remembers nothing, so it takes no state: use act(observation)")
        given, before = self._observations.checked(observation), self._checked_state(state)
        mask = self._mask_of(observation, action_mask)
        mask = None if mask is None else self._checked_mask(mask)
        graph.write(graph.observation.index, given[None] if graph.quantise is None else graph.quantise(given))
        graph.write(graph.state.index, before[None])
        if mask is not None and graph.action_mask is not None:
            graph.write(graph.action_mask.index, mask[None])
        graph.invoke()
        q, after = graph.read(graph.q.index, 0)[0], graph.read(graph.next_state.index, 0)[0]
        if graph.action is not None and (mask is None or graph.action_mask is not None):
            action = graph.read(graph.action.index, 0).item()
        else:
            action = int(q.argmax()) if mask is None else best_allowed(q, mask)
        return Decision(self.action_start + action, q, after)

    def q_values(self, observation: Any) -> Array:
        """What the file says each action is worth, `[A]` float32, up to a constant that all actions share.

        Raises:
            ObservationError: like `act`.
        """
        if self.remembers:
            self._state_missing(observation)
        return self._graph.q_values(self._observations.checked(observation))

    def act_batch(self, observations: Any, action_masks: Any = None) -> Array:
        """The greedy actions `[N]` int64 for `[N, O...]`, under masks `[N, A]`: the same answers as `act`, one by one.

        Raises:
            ObservationError: like `act`.
        """
        if np.ndim(observations) != len(self.observation_shape) + 1:
            raise ObservationError(
                f"a batch must have shape [N, {_join(self.observation_shape)}]; got {list(np.shape(observations))}"
            )
        if action_masks is None:
            return np.fromiter(map(self._decide, observations), np.int64, len(observations))
        if np.shape(action_masks) != (len(observations), self.num_actions):
            raise ObservationError(
                f"the action masks of a batch must have shape {[len(observations), self.num_actions]}; got "
                f"{list(np.shape(action_masks))}"
            )
        return np.fromiter(map(self._decide_among, observations, action_masks), np.int64, len(observations))

    def reset(self) -> None:
        """Begins an episode for `step`: what was seen before is forgotten."""
        self._frames.reset()
        self._state = self.initial_state

    def step(self, frame: Any, action_mask: Any = None) -> int:
        """The greedy action after one more frame of the episode, which is stacked onto those before it, or remembered.

        What is remembered stays as it was where a frame is refused.

        Args:
            frame: what the environment gave, in its own form or as an array `[F...]`; not stacked.
            action_mask: as for `act`.

        Raises:
            ObservationError: like `act`, for the frame.
        """
        if action_mask is None and self.needs_mask:
            action_mask = self._observations.mask(frame)
        observation = self._frames.push(self._observations.frame(frame))
        if not self.remembers:
            return self._decide(observation, action_mask)
        decision = self.decide(observation, self._state, action_mask)
        self._state = decision.state
        return decision.action

    @property
    def state(self) -> Array:
        """What `step` remembers of the episode, `[H]` float32: a copy."""
        return self._state.copy()

    def components(self, action: int) -> Any:
        """What the environment takes for an action of `act`: an array, where its actions have several components.

        Args:
            action: from `act`, `act_batch` or `step`.
        """
        layout = self.manifest["action"].get("layout")
        if layout is None:
            return action
        components = np.stack(np.unravel_index(action, layout["sizes"])) + np.array(layout["start"])
        return components.reshape(layout["shape"]).astype(layout["dtype"])

    # --- how a decision is made -------------------------------------------------------------------------------------

    def _decision(self) -> Callable[..., int]:
        """The decision as one closure: at a microsecond per decision, every attribute that is looked up counts."""
        write, invoke, read = self._graph.write, self._graph.invoke, self._graph.read
        target, action, q = self._graph.observation.index, self._graph.action, self._graph.q.index
        start, quantise = self.action_start, self._graph.quantise
        checked, among = self._observations.checked, self._decide_among

        def decide(observation: Any, action_mask: Any = None) -> int:
            if action_mask is not None:
                return among(observation, action_mask)
            observation = checked(observation)
            write(target, observation[None] if quantise is None else quantise(observation))
            invoke()
            return start + (int(read(q, 0).argmax()) if action is None else read(action.index, 0).item())

        small = self._dtype == np.float32 and len(self.observation_shape) == 1 and self.observation_shape[0] <= SMALL
        if action is None or quantise is not None or start or not small:
            return decide
        index, dtype, isfinite = action.index, self._dtype, math.isfinite

        def decide_at_once(observation: Any, action_mask: Any = None) -> int:
            """For a few numbers: the interpreter itself refuses another shape, and `decide` says why."""
            if action_mask is not None:
                return among(observation, action_mask)
            try:
                if observation.dtype is not dtype or not isfinite(sum(observation.tolist())):
                    return decide(observation)
                write(target, observation[None])
            except (AttributeError, IndexError, OverflowError, TypeError, ValueError):
                return decide(observation)
            invoke()
            return read(index, 0).item()  # type: ignore[no-any-return]

        return decide_at_once

    def _masked_decision(self) -> Callable[[Any, Any], int]:
        """The decision among what a mask allows: by the file, or where it has no say in that, by its values."""
        graph = self._graph
        write, invoke, read, start = graph.write, graph.invoke, graph.read, self.action_start
        target, mask_target, action, q = graph.observation.index, graph.action_mask, graph.action, graph.q.index
        checked, quantise, allowed = self._observations.checked, graph.quantise, self._checked_mask

        def decide(observation: Any, action_mask: Any) -> int:
            observation, mask = checked(observation), allowed(action_mask)
            write(target, observation[None] if quantise is None else quantise(observation))
            invoke()
            return start + best_allowed(read(q, 0)[0], mask)

        if mask_target is None or action is None:
            return decide
        mask_index, index = mask_target.index, action.index

        def decide_by_file(observation: Any, action_mask: Any) -> int:
            observation, mask = checked(observation), allowed(action_mask)
            write(target, observation[None] if quantise is None else quantise(observation))
            write(mask_index, mask[None])
            invoke()
            return start + read(index, 0).item()  # type: ignore[no-any-return]

        return decide_by_file

    def _mask_missing(self, observation: Any, action_mask: Any = None) -> int:
        """The decision where a mask is needed: refuses, if none was given and none stands in the observation."""
        return self._decide_among(observation, self._mask_of(observation, action_mask))

    def _mask_of(self, observation: Any, action_mask: Any) -> Any:
        """The mask that was given, or where one is needed, the one that stands in the observation."""
        if action_mask is None and self.needs_mask:
            action_mask = self._observations.mask(observation)
        if action_mask is not None or not self.needs_mask:
            return action_mask
        self._observations.checked(observation)  # What is wrong with the observation is said first.
        call = "step(frame, action_mask)" if self.remembers else "act(observation, action_mask)"
        raise ObservationError(
            f"this policy's environment offers action masks, and a decision needs one of shape [{self.num_actions}]: "
            f"{call}"
        )

    def _state_missing(self, observation: Any, action_mask: Any = None) -> int:
        """The decision of a policy that remembers by an observation alone: there is none."""
        raise ObservationError(
            "this policy remembers what it has seen of an episode, and an observation alone does not say that: use "
            "reset() and step(frame), or decide(observation, state) where the caller keeps the state"
        )

    def _contract(self) -> Observations:
        said, frame_shape = self.manifest["observation"], self._frames.frame_shape
        layout = None if said.get("layout") is None else Layout(said["layout"], frame_shape)
        binary = said.get("binary", False)
        return Observations(self.observation_shape, self._dtype, frame_shape, self.frame_stack, layout, binary)

    def _check_contract(self, folder: pathlib.Path) -> None:
        graph, name = self._graph, folder / self.file
        taken, shape = graph.observation.shape, (1, *self.observation_shape)
        # Into whole numbers an image may go with some pixels of a row together, in the same order.
        joined = graph.quantise is not None and taken[:2] == shape[:2] and math.prod(taken) == math.prod(shape)
        if taken != shape and not joined:
            raise BundleError(f"{name} takes observations of shape {list(taken)}, but policy.json says {list(shape)}")
        if graph.q.shape != (1, self.num_actions):
            raise BundleError(
                f"{name} gives values of shape {list(graph.q.shape)}, but policy.json says {[1, self.num_actions]}"
            )
        if graph.observation.dtype not in (self._dtype, *INTEGERS):
            raise BundleError(
                f"{name} takes {graph.observation.dtype} observations, but policy.json says {self.observation_dtype}"
            )
        size = len(self.initial_state)
        if (graph.state is not None) != self.remembers:
            takes, says = ("a state", "nothing") if graph.state is not None else ("no state", f"{size} numbers")
            raise BundleError(f"{name} takes {takes}, but policy.json says that it remembers {says}")
        for tensor in (graph.state, graph.next_state):
            if tensor is not None and (tensor.shape != (1, size) or tensor.dtype != np.float32):
                raise BundleError(
                    f"{name} has states of shape {list(tensor.shape)} and dtype {tensor.dtype}, but policy.json says "
                    f"{[1, size]} and float32"
                )
        mask = graph.action_mask
        if mask is not None and not self.needs_mask:
            raise BundleError(f"{name} takes an action mask, but policy.json says that there is none")
        if mask is not None and (mask.shape != (1, self.num_actions) or mask.dtype != np.bool_):
            raise BundleError(
                f"{name} takes action masks of shape {list(mask.shape)} and dtype {mask.dtype}, but policy.json says "
                f"{[1, self.num_actions]} and bool"
            )


def _join(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
