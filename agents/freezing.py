"""Which weights learn, and when: layers that were taken over from another network may stay as they are for a while."""

from typing import Any, NamedTuple

from rlplatform.config import Config
from rlplatform.errors import UserError


class Shares(NamedTuple):
    """What each trainable variable gets of the learning rate.

    Attributes:
        before: a share for each variable, up to the update `turn`.
        after: and from then on.
        turn: how many updates come before.
    """

    before: list[float]
    after: list[float]
    turn: int


def freeze(network: Any, config: Config) -> Shares | None:
    """Freezes the layers that `config.transfer` asks for.

    Layers are counted from the observation on, those without weights left out. What never learns is taken out of the
    network's trainable variables, so that no gradient is computed for it.

    Returns:
        The shares of those that are left; None where all of them learn all the time.

    Raises:
        UserError: nothing would learn.
    """
    transfer = config.transfer
    if not transfer.source or transfer.frozen_layers == 0:
        return None
    layers = [layer for layer in network.layers if layer.weights]  # as `training.transfer` counts them
    frozen = layers[: transfer.frozen_layers]
    tuned = frozen[max(0, len(frozen) - transfer.fine_tuned_layers) :] if transfer.fine_tuned_layers else []
    for layer in frozen:
        layer.trainable = layer in tuned
    if not network.trainable_variables:
        raise UserError(
            f"transfer.frozen_layers must be below {len(layers)}, the layers with weights here, or nothing would "
            f"learn; got {transfer.frozen_layers}"
        )
    before, after = [], []
    for layer in network.layers:
        for _ in layer.trainable_weights:
            before.append(0.0 if layer in frozen else 1.0)
            after.append(transfer.fine_tune_rate if layer in tuned else before[-1])
    return Shares(before, after, int(transfer.fine_tune_from * config.total_updates)) if tuned else None
