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


class WindyLunarLander(gym.Wrapper[Observation, np.int64, Observation, np.int64]):
    """LunarLander-v3 in wind (extra `box2d`).

    Args:
        wind_power: the greatest force to the side; Gymnasium recommends 0 to 20.
        turbulence_power: the greatest torque; Gymnasium recommends 0 to 2.
        render_mode: as LunarLander's.
    """

    def __init__(self, wind_power: float = 15.0, turbulence_power: float = 1.5, render_mode: str | None = None) -> None:
        super().__init__(
            gym.make(
                "LunarLander-v3",
                enable_wind=True,
                wind_power=wind_power,
                turbulence_power=turbulence_power,
                render_mode=render_mode,
                disable_env_checker=True,
            )
        )
