"""`RecurrentAgent`: a trained policy as a recommender, and its training from the first epoch to the last."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..envs.log import SessionBatch, SessionLog
from ..envs.observation import session_windows
from ..envs.replay_options import NO_KIND
from ..nn.policy import RecurrentPolicy, SessionState
from ..nn.training import Scores
from .a3c import network_config
from .config import AgentConfig

Validate = Callable[["RecurrentAgent"], Scores]

ALL_ROWS = slice(None)


class RecurrentAgent:
    """Implements the `Recommender` protocol."""

    config_class: ClassVar[type] = AgentConfig

    def __init__(self, config: AgentConfig, seed: int = 0, device: str = "cpu") -> None:
        self.config, self.seed, self.device = config, seed, torch.device(device)
        self.policy: RecurrentPolicy | None = None

    def fit(
        self,
        train: SessionLog,
        valid: SessionLog | None = None,
        *,
        validate: Validate | None = None,
        folder: Path | None = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Self:
        """Train on `train`; keep the epoch with the best `validate` score, or the last where there is none.

        With a `folder` scalars and a checkpoint per epoch are written there, and training goes on from one it finds.
        """
        from .training import train_agent

        train_agent(self, train, valid, validate=validate, folder=folder, progress=progress)
        return self

    @torch.no_grad()
    def score_sessions(self, batch: SessionBatch) -> Tensor:
        """[P, N] float32 on the device: logits of the policy, or expected rewards, as ``config.ranking`` says."""
        return self.score_states(self.encode(batch))

    @torch.no_grad()
    def score_rows(self, batch: SessionBatch, rows: np.ndarray) -> Tensor:
        """[R, N] float32 on the device, some of the rows of `score_sessions`."""
        return self.score_states(self.encode(batch, rows))

    @torch.no_grad()
    def score_states(self, states: SessionState) -> Tensor:
        """The same for states [P, ...]."""
        policy = self._trained()
        logits = policy.logits(states)
        if self.config.ranking == "policy":
            return logits
        bought = (policy.value(states.hidden) / self.config.purchase_reward).clamp(0, 1).unsqueeze(1)
        if not self.config.learns_from_rewards:
            bought = torch.zeros_like(bought)
        clicked = policy.logits(states, policy.supervised_head).softmax(1).mul_(1 - bought)
        return clicked.addcmul_(bought, logits.softmax(1), value=self.config.purchase_worth)

    @torch.no_grad()
    def encode(self, batch: SessionBatch, rows: np.ndarray | slice = ALL_ROWS) -> SessionState:
        """States [P, ...] before each event to predict, or before some of them."""
        policy, history = self._trained(), self.config.history
        if history is not None:
            windows, kinds = (part[rows] for part in self._windows(batch, history))
            return policy.encode(windows, kinds)
        hidden, cell = self._walk(batch)
        windows, kinds = self._windows(batch, self.config.copy_window) if self.config.copy_window else (None, None)
        return SessionState(hidden, cell, windows, kinds if self.config.kinds else None).map(lambda part: part[rows])

    def _windows(self, batch: SessionBatch, width: int) -> tuple[Tensor, Tensor]:
        """[P, W] the last items of each state, and their kinds."""
        items = session_windows(batch, width, self._trained().n_items).astype(np.int64)
        kinds = session_windows(batch, width, NO_KIND, batch.kind)
        return torch.from_numpy(items).to(self.device), torch.from_numpy(kinds).to(self.device)

    def _walk(self, batch: SessionBatch) -> tuple[Tensor, Tensor]:
        """(h, c) [P, H], carried along each session.

        Sessions advance together, longest first, and leave as they end, so that nothing is padded.
        """
        policy = self._trained()
        length = np.diff(batch.offset)
        by_length = np.argsort(-length, kind="stable")
        rows_before = batch.offset - np.arange(batch.n_sessions + 1)
        n_active = np.searchsorted(-length[by_length], -np.arange(2, int(length.max(initial=0)) + 1), side="right")
        items = torch.from_numpy(np.asarray(batch.item, dtype=np.int64)).to(self.device)
        first_event = torch.from_numpy(batch.offset[:-1][by_length]).to(self.device)
        first_row = torch.from_numpy(rows_before[:-1][by_length]).to(self.device)
        hidden = policy.w_hh.new_empty(batch.n_rows, self.config.hidden_units)
        cell = torch.empty_like(hidden)
        kinds = torch.from_numpy(batch.kind.astype(np.int64)).to(self.device)
        h, c = (
            hidden.new_zeros(batch.n_sessions, self.config.hidden_units),
            cell.new_zeros(batch.n_sessions, self.config.hidden_units),
        )
        for t, n in enumerate(n_active.tolist()):
            events = first_event[:n] + t
            h, c, *_ = policy.step(items[events], SessionState(h[:n], c[:n]), kinds[events])
            hidden[first_row[:n] + t], cell[first_row[:n] + t] = h, c
        return hidden, cell

    def recommend(self, history: SessionBatch, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best next items of one live session and their scores, best first."""
        scores = self.score_sessions(history.with_unknown_next())[-1]
        best = torch.sort(scores, descending=True, stable=True)
        return best.indices[:k].cpu().numpy(), best.values[:k].cpu().numpy()

    def build(self, n_items: int) -> RecurrentPolicy:
        """A network of the configured shape, to load weights into."""
        generator = torch.Generator().manual_seed(self.seed)
        return RecurrentPolicy(n_items, network_config(self.config), generator).to(self.device)

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``agent.json``."""
        policy = self._trained()
        save_file({k: v.contiguous() for k, v in policy.state_dict().items()}, folder / "model.safetensors")
        content = {"n_items": policy.n_items, "seed": self.seed, "config": asdict(self.config)}
        (folder / "agent.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Self:
        """The agent that `save` wrote."""
        content: dict[str, Any] = json.loads((folder / "agent.json").read_text(encoding="utf-8"))
        agent = cls(cls.config_class(**content["config"]), content["seed"], device)
        agent.policy = agent.build(content["n_items"])
        agent.policy.load_state_dict(load_file(folder / "model.safetensors", device=str(agent.device)))
        return agent

    def _trained(self) -> RecurrentPolicy:
        if self.policy is None:
            raise RuntimeError("the agent has no weights yet: call fit or load first")
        return self.policy
