"""Imagination core, trajectory manager and executor (the IRN paper, section 4), for any recommender in PyTorch."""

from .core import ImaginationCore, distillation_loss
from .executor import imagination_loss, logit_bias_share, reconstruction_loss
from .planner import Planner, SeenItems, TrajectoryManager
from .state import SequencePolicy, map_state, repeat_state

__all__ = [
    "ImaginationCore",
    "Planner",
    "SeenItems",
    "SequencePolicy",
    "TrajectoryManager",
    "distillation_loss",
    "imagination_loss",
    "logit_bias_share",
    "map_state",
    "reconstruction_loss",
    "repeat_state",
]
