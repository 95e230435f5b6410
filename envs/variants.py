"""Known tasks with other physics: what a policy that was learned on the usual one is transferred to."""

from typing import Any

import gymnasium as gym
import numpy as np

Observation = np.ndarray[Any, np.dtype[np.float32]]


class HeavyCartPole(gym.Wrapper[Observation, np.int64, Observation, np.int64]):
    """CartPole-v1 with a longer pole and a heavier cart.

    Args:
        pole_length: of the pole's half, in metres; 0.5 in CartPole-v1.
        cart_mass: in kilograms; 1.0 in CartPole-v1.
        render_mode: as CartPole's.

    Raises:
        ValueError: a length or a mass is not above 0.
    """

    def __init__(self, pole_length: float = 1.0, cart_mass: float = 2.0, render_mode: str | None = None) -> None:
        if not (pole_length > 0 and cart_mass > 0):
            raise ValueError(f"pole_length and cart_mass must be above 0; got {pole_length} and {cart_mass}")
        super().__init__(gym.make("CartPole-v1", render_mode=render_mode, disable_env_checker=True))
        pole: Any = self.env.unwrapped
        pole.length, pole.masscart = pole_length, cart_mass
        pole.total_mass = pole.masspole + pole.masscart
        pole.polemass_length = pole.masspole * pole.length
