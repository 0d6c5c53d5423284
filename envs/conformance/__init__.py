"""Gymnasium's contract for vector environments, checked on anyone's: `check_vector_env` and its report.

Gymnasium checks single environments (`gymnasium.utils.env_checker.check_env`) but no vector ones. Here one function
judges one property; all of them replay the same seeded actions, so that a difference has a step and a lane.

`check` is the way in, `report` what comes out; `play` plays environments and `compare` says where two plays differ.
The judges are in `forms`, `runs`, `modes` and `uses`.
"""

from .check import check_vector_env
from .compare import ATOL, RTOL
from .report import VectorEnvError, VectorEnvFinding, VectorEnvReport

__all__ = ["ATOL", "RTOL", "VectorEnvError", "VectorEnvFinding", "VectorEnvReport", "check_vector_env"]
