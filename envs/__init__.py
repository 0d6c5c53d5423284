"""Sessions as data and as environments. What needs torch or pyarrow (`device`, `sb3`, `export`) is imported by name."""

from .conformance import VectorEnvError, VectorEnvFinding, VectorEnvReport, check_vector_env
from .history import UserHistories
from .log import CLICK, PURCHASE, PreparedData, SessionBatch, SessionLog
from .observation import session_observations, session_windows
from .replay import ReplayEnv, ReplayVectorEnv
from .replay_options import ReplayOptions
from .rollout import Logged, Rollout, RolloutCollector, logged
from .sparsity import thin_purchases
from .transitions import Transitions, logged_transitions
from .wrappers import ColdStart, SparsePurchases, VectorColdStart, VectorSparsePurchases

__all__ = [
    "CLICK",
    "PURCHASE",
    "ColdStart",
    "Logged",
    "PreparedData",
    "ReplayEnv",
    "ReplayOptions",
    "ReplayVectorEnv",
    "Rollout",
    "RolloutCollector",
    "SessionBatch",
    "SessionLog",
    "SparsePurchases",
    "Transitions",
    "UserHistories",
    "VectorColdStart",
    "VectorEnvError",
    "VectorEnvFinding",
    "VectorEnvReport",
    "VectorSparsePurchases",
    "check_vector_env",
    "logged",
    "logged_transitions",
    "session_observations",
    "session_windows",
    "thin_purchases",
]
