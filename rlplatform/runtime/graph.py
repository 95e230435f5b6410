"""One .tflite file and its signature `act`, behind the fewest calls that the interpreter allows."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .errors import BundleError

Array = np.ndarray[Any, Any]

INTEGERS = (np.dtype(np.int8), np.dtype(np.int16))  # What a file takes that computes in whole numbers throughout.


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor of the signature lies, and how its integers are to be read."""

    index: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scale: float
    zero_point: int


class Graph(NamedTuple):
    """The calls that a decision is made of, and the tensors that they need.

    Attributes:
        action_mask: `[1, A]` bool, which `action` heeds and `q` does not; None if the file takes none. It allows all
            actions until it is written.
        state: `[1, H]`, what a file that remembers had in mind before; None if it remembers nothing.
        next_state: `[1, H]`, and what it has in mind after.
        quantise: from an observation `[O...]` to the int8 or int16 that the file takes, `[1, O...]` or, where n pixels
            of a row stand together, `[1, H, W / n, n * C]`; None if the file takes it as it is. What it gives may be
            overwritten by the next one.
    """

    write: Callable[[int, Array], None]
    invoke: Callable[[], None]
    read: Callable[[int, int], Array]
    observation: Tensor
    action_mask: Tensor | None
    q: Tensor
    action: Tensor | None
    quantise: Callable[[Array], Array] | None
    interpreter: Any
    state: Tensor | None = None
    next_state: Tensor | None = None

    def q_values(self, observation: Array, state: Array | None = None) -> Array:
        """What the file says each action is worth, `[A]` float32, for one observation of its shape and dtype.

        Args:
            observation: `[O...]`.
            state: `[H]` float32, for a file that remembers; zeros if None.
        """
        if self.state is not None:
            self.write(self.state.index, np.zeros(self.state.shape, np.float32) if state is None else state[None])
        self.write(self.observation.index, observation[None] if self.quantise is None else self.quantise(observation))
        self.invoke()
        values: Array = self.read(self.q.index, 0)[0]
        if self.q.dtype != np.float32:
            values = (values.astype(np.float32) - np.float32(self.q.zero_point)) * np.float32(self.q.scale)
        return values

    def q_batch(self, observations: Array, states: Array | None = None) -> Array:
        """`[N, A]` float32 for `[N, O...]`, each by the state `[H]` beside it for a file that remembers."""
        if states is None:
            return np.stack([self.q_values(observation) for observation in observations])
        return np.stack(list(map(self.q_values, observations, states)))


def open_graph(
    content: bytes,
    name: str,
    num_threads: int = 1,
    scaling: Mapping[str, Any] | None = None,
    *,
    reference: bool = False,
) -> Graph:
    """Loads a file whose signature `act` takes `observation`, maybe `action_mask`, and gives `q` and, maybe, `action`.

    One that remembers takes `state` besides, and gives `next_state`.

    Args:
        content: the file's bytes.
        name: what errors call it.
        num_threads: of the interpreter.
        scaling: `offset` and `multiplier`, each `[O...]`: an integer file takes `(observation - offset) * multiplier`.
        reference: run it by LiteRT's plain reference kernels, without XNNPACK: slow, and what others are compared with.

    Raises:
        BundleError: the interpreter does not load it, or it has no such signature.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType  # Here: importing the runtime takes no time.

    kernels = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    try:
        interpreter = Interpreter(model_content=content, num_threads=num_threads, experimental_op_resolver_type=kernels)
        interpreter.allocate_tensors()
        runner = interpreter.get_signature_runner("act")
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1:] or ["no reason given"]
        raise BundleError(f"{name} is not a file that LiteRT runs: {reason[0]}") from None
    inputs = {key: _tensor(detail) for key, detail in runner.get_input_details().items()}
    outputs = {key: _tensor(detail) for key, detail in runner.get_output_details().items()}
    del runner  # It refers to the interpreter's memory, which would forbid `invoke`.
    fits = {"observation"} <= set(inputs) <= {"observation", "action_mask", "state"}
    fits = fits and {"q"} <= set(outputs) <= {"q", "action", "next_state"}
    if not fits or ("state" in inputs) != ("next_state" in outputs):
        raise BundleError(
            f"{name}: the signature `act` must take `observation` and give `q`, and `next_state` where it takes "
            f"`state`; it takes {sorted(inputs)} and gives {sorted(outputs)}"
        )
    write, invoke, read = _calls(interpreter)
    observation, action_mask = inputs["observation"], inputs.get("action_mask")
    quantise = _quantiser(observation, scaling) if observation.dtype in INTEGERS else None
    if action_mask is not None:
        write(action_mask.index, np.ones(action_mask.shape, action_mask.dtype))
    action = outputs.get("action")
    return Graph(
        write,
        invoke,
        read,
        observation,
        action_mask,
        outputs["q"],
        action,
        quantise,
        interpreter,
        inputs.get("state"),
        outputs.get("next_state"),
    )


def _tensor(detail: dict[str, Any]) -> Tensor:
    scale, zero_point = detail["quantization"]
    shape = tuple(int(size) for size in detail["shape"])
    return Tensor(int(detail["index"]), shape, np.dtype(detail["dtype"]), float(scale), int(zero_point))


def _calls(interpreter: Any) -> tuple[Any, Any, Any]:
    """The three calls of a decision, without the wrapper in Python around them where it can be left out (0.5 µs).

    What that wrapper guards against, arrays that still point into the interpreter's memory, does not arise: only copies
    leave this room.
    """
    try:
        inner = interpreter._interpreter
        return inner.SetTensor, inner.Invoke, inner.GetTensor
    except AttributeError:
        return interpreter.set_tensor, interpreter.invoke, interpreter.get_tensor


def _quantiser(target: Tensor, scaling: Mapping[str, Any] | None) -> Callable[[Array], Array]:
    multiplier: Any = np.float32(1.0 / target.scale)
    shift: Any = np.float32(target.zero_point)
    limits = np.iinfo(target.dtype)
    low, high = np.float32(limits.min), np.float32(limits.max)
    if scaling is not None:
        multiplier = np.asarray(scaling["multiplier"], np.float32) * multiplier
        shift = shift - np.asarray(scaling["offset"], np.float32) * multiplier

    def quantise(observation: Array) -> Array:
        scaled: Array = np.rint(observation * multiplier + shift)
        return np.minimum(np.maximum(scaled, low), high).astype(target.dtype)[None]

    if np.ndim(multiplier):
        return quantise

    def reshaped(observation: Array) -> Array:
        return quantise(observation).reshape(target.shape)

    # What becomes of each byte, so that images take no arithmetic.
    table = quantise(np.arange(256, dtype=np.uint8))[0]

    def look_up(observation: Array) -> Array:
        return table.take(observation).reshape(target.shape) if observation.dtype == np.uint8 else reshaped(observation)

    if target.dtype != np.int8 or not np.array_equal(table, np.arange(-128, 128)):
        return look_up
    entered, highest_bit = np.empty(target.shape, np.int8), np.uint8(128)
    as_bytes = entered.view(np.uint8)

    def turn(observation: Array) -> Array:
        if observation.dtype != np.uint8:
            return reshaped(observation)
        # x - 128, in a tenth of the time of looking it up
        np.bitwise_xor(observation.reshape(target.shape), highest_bit, as_bytes)
        return entered

    return turn
