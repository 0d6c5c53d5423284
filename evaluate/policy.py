"""Any policy over Gymnasium observations as a `Recommender`: what acts in the replay environment can be scored."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from ..envs.log import SessionBatch, SessionLog
from ..envs.observation import session_observations
from ..errors import InputError

if TYPE_CHECKING:
    import torch


class PolicyRecommender:
    """Wraps `policy`, a function of observations [P, window] int32 as `ReplayVectorEnv` gives them (`kinds` likewise).

    It returns either scores [P, n_items], higher is better (logits or Q-values will do), or, with ``gives="actions"``,
    one item [P] each; such an agent can be scored at K = 1 only, and tables leave its other columns blank.
    """

    def __init__(
        self,
        policy: Callable[[Any], Any],
        n_items: int,
        window: int = 20,
        gives: Literal["scores", "actions"] = "scores",
        kinds: bool = False,
    ) -> None:
        if gives not in ("scores", "actions"):
            raise InputError(f"PolicyRecommender: gives must be 'scores' or 'actions', found {gives!r}")
        self.policy, self.n_items, self.window, self.gives = policy, n_items, window, gives
        self.kinds = kinds
        self.max_k = 1 if gives == "actions" else 0

    def fit(self, train: SessionLog, valid: SessionLog | None = None) -> Self:
        """Nothing to do: the policy was trained in its environment."""
        return self

    def score_sessions(self, batch: SessionBatch) -> np.ndarray | torch.Tensor:
        """[P, N]: what the policy makes of the observation before each event to predict."""
        given = self.policy(session_observations(batch, self.window, self.n_items, self.kinds))
        if self.gives == "scores":
            return given
        actions = _as_numpy(given)
        if actions.shape != (batch.n_rows,) or not np.isin(actions, np.arange(self.n_items)).all():
            raise InputError(
                f"PolicyRecommender: expected one item 0..{self.n_items - 1} for each of {batch.n_rows} observations, "
                f"found an array of shape {actions.shape}"
            )
        scores = np.zeros((batch.n_rows, self.n_items), dtype=np.float32)
        scores[np.arange(batch.n_rows), actions.astype(np.int64)] = 1.0
        return scores

    def recommend(self, history: SessionBatch, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best next items of one live session and their scores, best first."""
        scores = _as_numpy(self.score_sessions(history.with_unknown_next()))[-1]
        best = np.argsort(-scores, kind="stable")[:k]
        return best, scores[best]


def _as_numpy(array: Any) -> np.ndarray:
    """NumPy or torch, on any device, with or without a gradient."""
    return np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
