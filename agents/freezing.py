"""Which weights learn, and when: layers that were taken over from another network may stay as they are for a while."""

from typing import Any, NamedTuple

from rlplatform.config import Config


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


def shares(network: Any, config: Config) -> Shares | None:
    """The shares that `config.transfer` asks for; None where everything learns all the time.

    Layers are counted from the observation on, those without weights left out.
    """
    transfer, training = config.transfer, config.training
    if not transfer.source or transfer.frozen_layers == 0:
        return None
    layers = [layer for layer in network.layers if layer.weights]  # as `training.transfer` counts them
    frozen = layers[: transfer.frozen_layers]
    tuned = frozen[max(0, len(frozen) - transfer.fine_tuned_layers) :] if transfer.fine_tuned_layers else []
    before, after = [], []
    for layer in network.layers:
        for _ in layer.trainable_weights:
            before.append(0.0 if layer in frozen else 1.0)
            after.append(transfer.fine_tune_rate if layer in tuned else before[-1])
    updates = training.total_steps // training.train_interval * training.gradient_steps
    return Shares(before, after, int(transfer.fine_tune_from * updates))
