"""Agents: Q-networks, value heads and losses, the update, and what acts on the host.

Knows no environment and no run. Adding an algorithm is adding a head or a flag here.
"""

from rlplatform.agents.acting import Actor, RecurrentActor, make_actor
from rlplatform.agents.dqn import DQN, UpdateMetrics
from rlplatform.agents.pqn import PQN
from rlplatform.agents.r2d2 import RecurrentDQN

__all__ = ["DQN", "PQN", "Actor", "RecurrentActor", "RecurrentDQN", "UpdateMetrics", "make_actor"]
