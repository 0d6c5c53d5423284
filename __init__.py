"""sessiongym: a testbed for reinforcement learning on recorded shopping sessions."""

__version__ = "0.1.0"
