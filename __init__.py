"""sessiongym: a testbed for reinforcement learning on recorded shopping sessions.

Importing it registers the environments ``sessiongym/Replay-v0``, ``Shop-v0`` and ``TabularShop-v0``. What is named here
is imported on first use.
"""

import importlib
from typing import Any

from gymnasium.envs.registration import register

__version__ = "0.1.0"

register(
    id="sessiongym/Replay-v0",
    entry_point="sessiongym.envs.replay:ReplayEnv",
    vector_entry_point="sessiongym.envs.replay:ReplayVectorEnv",
)
register(id="sessiongym/TabularShop-v0", entry_point="sessiongym.envs.shop.tabular:TabularShopEnv")
register(
    id="sessiongym/Shop-v0",
    entry_point="sessiongym.envs.shop.live:ShopEnv",
    vector_entry_point="sessiongym.envs.shop.live:ShopVectorEnv",
)

_PUBLIC = {
    "InputError": "sessiongym.errors",
    "PreparedData": "sessiongym.envs.log",
    "SessionBatch": "sessiongym.envs.log",
    "SessionLog": "sessiongym.envs.log",
    "logged": "sessiongym.envs.rollout",
}


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
