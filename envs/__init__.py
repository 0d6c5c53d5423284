"""Sessions as data and as environments."""

from .log import CLICK, PURCHASE, PreparedData, SessionBatch, SessionLog
from .observation import session_windows
from .replay import ReplayEnv, ReplayVectorEnv
from .replay_options import ReplayOptions
from .rollout import Logged, Rollout, RolloutCollector, logged
from .sparsity import thin_purchases

__all__ = [
    "CLICK",
    "PURCHASE",
    "Logged",
    "PreparedData",
    "ReplayEnv",
    "ReplayOptions",
    "ReplayVectorEnv",
    "Rollout",
    "RolloutCollector",
    "SessionBatch",
    "SessionLog",
    "logged",
    "session_windows",
    "thin_purchases",
]
