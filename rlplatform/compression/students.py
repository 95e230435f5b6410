"""Students: which small networks there are, how one is built, and how many weights it has."""

import math
from typing import Any, NamedTuple

import numpy as np
import tf_keras as keras

from rlplatform.agents.layers import Standardize, convolve
from rlplatform.config import Convolution
from rlplatform.errors import UserError

Array = np.ndarray[Any, Any]

SCALES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.1875, 0.125, 0.09375, 0.0625, 0.046875, 0.03125, 0.015625)
AGAINST_CHANNELS = (2.0, 1.0, 0.5)  # how much wider than its channels a student of images may be
LEAST_UNITS = 3  # of a hidden layer; below that a linear policy is the smaller student


class Architecture(NamedTuple):
    """A student: convolutions, then hidden Dense layers with ReLU, then one linear output for each action."""

    convolutions: tuple[Convolution, ...] = ()
    hidden: tuple[int, ...] = ()

    def __str__(self) -> str:
        """Such as `16x8s4-16x4s2 32` or `32-32` or `linear`."""
        images = "-".join(f"{filters}x{size}s{stride}" for filters, size, stride in self.convolutions)
        dense = "-".join(map(str, self.hidden))
        return " ".join(part for part in (images, dense) if part) or "linear"


def parse(text: str) -> Architecture:
    """The architecture that `str` wrote.

    Raises:
        UserError: it is none.
    """
    convolutions: list[Convolution] = []
    hidden: list[int] = []
    try:
        for part in text.replace("-", " ").split():
            if part == "linear":
                continue
            if "x" in part:
                filters, _, rest = part.partition("x")
                size, _, stride = rest.partition("s")
                convolutions.append(Convolution(int(filters), int(size), int(stride or 1)))
            else:
                hidden.append(int(part))
    except ValueError:
        hidden = [0]
    numbers = [number for layer in convolutions for number in layer] + hidden
    if not text.strip() or any(number < 1 for number in numbers):
        raise UserError(f"an architecture is written like 32-32, 16x8s4-16x4s2 32 or linear; got {text!r}")
    return Architecture(tuple(convolutions), tuple(hidden))


def parameters(architecture: Architecture, observation_shape: tuple[int, ...], num_actions: int) -> int:
    """How many weights the student has.

    Raises:
        UserError: a convolution does not fit into the image.
    """
    count, shape = 0, observation_shape
    for filters, size, stride in architecture.convolutions:
        if len(shape) != 3 or min(shape[:2]) < size:
            raise UserError(f"{architecture} does not fit observations of shape {list(observation_shape)}")
        count += filters * (size * size * shape[2] + 1)
        shape = ((shape[0] - size) // stride + 1, (shape[1] - size) // stride + 1, filters)
    features = math.prod(shape)
    for units in (*architecture.hidden, num_actions):
        count += units * (features + 1)
        features = units
    return count


def build(architecture: Architecture, sample: Array, num_actions: int, seed: int | None = None) -> Any:
    """The network, `[B, O...]` float32 to `[B, A]` float32, with fresh weights.

    Vectors are standardised feature by feature; images are made 0 where they show their most usual value, and 1 or -1
    farthest from it, or what hardly changes from state to state would drown what does. Both are after `sample`; the
    canonical form folds them into the first layer.

    Args:
        architecture: its layers.
        sample: `[N, O...]` observations as the environment gives them.
        num_actions: A.
        seed: of the weights, put into Keras's own generator; None goes on with that.

    Raises:
        UserError: a convolution does not fit into the image.
    """
    if seed is not None:
        keras.utils.set_random_seed(seed)
    shape = sample.shape[1:]
    parameters(architecture, shape, num_actions)
    observation = keras.Input(shape, name="observation")
    if len(shape) == 1:
        standardize = Standardize(name="standardize")
        features = standardize(observation)
        standardize.set_weights([sample.mean(axis=0, dtype=np.float64), sample.var(axis=0, dtype=np.float64)])
    else:
        background = float(np.median(sample))
        farthest = max(float(sample.max()) - background, background - float(sample.min())) or 1.0
        features = keras.layers.Rescaling(1.0 / farthest, -background / farthest, name="rescale")(observation)
    features = convolve(features, architecture.convolutions)
    if len(features.shape) > 2:
        features = keras.layers.Flatten(name="flatten")(features)
    for index, units in enumerate(architecture.hidden):
        layer = keras.layers.Dense(units, activation="relu", kernel_initializer="he_uniform", name=f"dense_{index}")
        features = layer(features)
    outputs = keras.layers.Dense(num_actions, name="q_values")(features)
    return keras.Model(observation, outputs, name="student")


def of_teacher(canonical: Any) -> Architecture | None:
    """The shape of a canonical network, without its output; None where it has layers that no student has."""
    convolutions: list[Convolution] = []
    hidden: list[int] = []
    for layer in canonical.layers[1:-1]:
        if isinstance(layer, keras.layers.Conv2D):
            if layer.padding != "valid" or len({*layer.kernel_size}) > 1 or len({*layer.strides}) > 1:
                return None
            convolutions.append(Convolution(layer.filters, layer.kernel_size[0], layer.strides[0]))
        elif isinstance(layer, keras.layers.Dense):
            hidden.append(layer.units)
    return Architecture(tuple(convolutions), tuple(hidden))


def ladder(teacher: Architecture, observation_shape: tuple[int, ...], num_actions: int) -> list[Architecture]:
    """Students from the teacher's own shape downwards, most weights first, each with fewer weights than the one before.

    Widths shrink together; then layers are left out; a vector's last student is linear. For images, channels shrink
    together with the widths, or half or twice as much, since which of them a policy needs more is not known before;
    and the first convolution also takes larger strides, which is where most multiplications are.
    """
    found: set[Architecture] = set()
    for scale in SCALES:
        convolutions = tuple(
            Convolution(_scaled(layer.filters, max(scale, 0.125), 4), layer.size, layer.stride)
            for layer in teacher.convolutions
        )
        for wider in AGAINST_CHANNELS if convolutions else (1.0,):
            hidden = tuple(_scaled(units, min(scale * wider, 1.0), 1) for units in teacher.hidden)
            for depth in range(len(hidden) + 1):
                if all(units >= LEAST_UNITS for units in hidden[:depth]):
                    found.add(Architecture(convolutions, hidden[:depth]))
            if convolutions:
                first, *rest = convolutions
                found.add(Architecture((first._replace(stride=2 * first.stride), *rest), hidden))
    sized = []
    for each in found:
        try:
            sized.append((parameters(each, observation_shape, num_actions), each))
        except UserError:  # a larger stride has left too small an image
            continue
    sized.sort(key=lambda pair: (-pair[0], str(pair[1])))
    falling: list[tuple[int, Architecture]] = []
    for count, each in sized:
        if not falling or count < falling[-1][0]:
            falling.append((count, each))
    return [each for _, each in falling]


def _scaled(number: int, scale: float, least: int) -> int:
    return max(least, round(number * scale))
