"""Policies for Stable-Baselines3 whose first and last layer is one item embedding, and what they have learned as a
recommender.

Stable-Baselines3 would read a window of item numbers as measurements and give every item an output row of its own.
Here items are looked up in an embedding, a GRU reads the window, and the score of an item is the product of the
projected state and that item's row, so that what is learned of an item as a cause helps it as an effect.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from ..envs.log import SessionBatch, SessionLog
from ..envs.observation import session_observations
from ..envs.replay_options import NO_KIND
from ..errors import InputError

_CHUNK_FLOATS = 2**24
"""Largest number of scores computed at once, 64 MiB of them."""


class SessionEncoder(BaseFeaturesExtractor):
    """Windows of items [R, W] to states [R, H], for the observations of the replay environments.

    A GRU: three quarters of an LSTM's weights and time, and what session recommenders have used since Hidasi et al.
    (2016). It reads the items alone, never the padding, so a state does not depend on the window it is shown in.
    With Dict observations the embedding of its kind is added to that of each item. Raises `InputError` for another
    observation space, and for more than 2^24 items, which float32, through which Stable-Baselines3 passes
    observations and actions, cannot tell apart.
    """

    def __init__(self, observation_space: spaces.Space, embedding_dim: int = 64, hidden_units: int = 64) -> None:
        has_kinds = isinstance(observation_space, spaces.Dict)
        items = observation_space.spaces.get("items") if has_kinds else observation_space
        if not (isinstance(items, spaces.Box) and len(items.shape) == 1 and np.issubdtype(items.dtype, np.integer)):
            raise InputError(
                f"SessionEncoder: expected an integer Box [window] of items, or a Dict with items and kinds, found "
                f"{observation_space}; use the observations of a replay environment"
            )
        self.padding = int(items.high[0])
        if self.padding > 2**24:
            raise InputError(f"SessionEncoder: expected at most 2^24 items, found {self.padding}; filter the data")
        super().__init__(observation_space, hidden_units)
        self.embedding = nn.Embedding(self.padding + 1, embedding_dim, padding_idx=self.padding)
        self.kind_embedding = nn.Embedding(NO_KIND + 1, embedding_dim, padding_idx=NO_KIND) if has_kinds else None
        with torch.no_grad():
            # Rows of length about 1, as products of them are scores.
            self.embedding.weight.mul_(embedding_dim**-0.5)
        self.gru = nn.GRU(embedding_dim, hidden_units, batch_first=True)

    def forward(self, observations: PyTorchObs) -> Tensor:
        items, kinds = observations, None
        if isinstance(observations, dict):
            items, kinds = observations["items"], observations["kinds"].long()
        assert isinstance(items, Tensor)
        items = items.long()
        length = (items != self.padding).sum(1)
        # Padding moves from the left to the right, where packing cuts it off.
        column = torch.arange(items.shape[1], device=items.device) - length[:, None]
        rows = self.embedding(items.gather(1, column % items.shape[1]))
        if self.kind_embedding is not None and kinds is not None:
            rows = rows + self.kind_embedding(kinds.gather(1, column % items.shape[1]))
        packed = pack_padded_sequence(rows, length.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        return self.gru(packed)[1][-1]


class TiedHead(nn.Module):
    """States [R, H] to scores [R, Q N]: for each of Q outputs (quantiles) a projection of the state to the size of the
    embedding, times the row of each of the N items, plus the item's bias.

    Q H D + N weights of its own, where a plain layer would have Q H N.
    """

    def __init__(self, encoder: SessionEncoder, n_outputs: int = 1) -> None:
        super().__init__()
        self.embedding, self.n_items, self.n_outputs = encoder.embedding, encoder.padding, n_outputs
        self.projection = nn.Linear(encoder.features_dim, n_outputs * self.embedding.embedding_dim)
        self.bias = nn.Parameter(torch.zeros(self.n_items))

    def forward(self, state: Tensor) -> Tensor:
        projected = self.projection(state).unflatten(1, (self.n_outputs, -1))
        scores = nn.functional.linear(projected, self.embedding.weight[: self.n_items], self.bias)
        return scores.flatten(1)


class _TiedCategorical(CategoricalDistribution):
    """Stable-Baselines3 asks the distribution of the actions for the layer that gives its logits."""

    def __init__(self, encoder: SessionEncoder) -> None:
        super().__init__(encoder.padding)
        self.encoder = encoder

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        return TiedHead(self.encoder)


class TiedActorCriticPolicy(ActorCriticPolicy):
    """For PPO and A2C: ``PPO(TiedActorCriticPolicy, env)``. Actor and critic share the encoder.

    ``policy_kwargs=dict(features_extractor_kwargs=dict(embedding_dim=..., hidden_units=...))`` sets its size.
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, *args: Any, **kwargs: Any) -> None:
        check_action_space(action_space)
        super().__init__(observation_space, action_space, *args, **tied_defaults(kwargs))

    def _build(self, lr_schedule: Any) -> None:
        assert isinstance(self.features_extractor, SessionEncoder)
        self.action_dist = _TiedCategorical(self.features_extractor)
        super()._build(lr_schedule)


class TiedQNetwork(QNetwork):
    """Q-values [R, N] of a DQN."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Discrete,
        features_extractor: SessionEncoder,
        normalize_images: bool = True,
        **_: Any,
    ) -> None:
        # Past QNetwork.__init__, which would make the layer of H N weights that the tied head replaces.
        BasePolicy.__init__(
            self,
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
        )
        self.q_net = TiedHead(features_extractor)  # type: ignore[assignment]


class TiedDQNPolicy(DQNPolicy):
    """For DQN: ``DQN(TiedDQNPolicy, env)``; sizes as for `TiedActorCriticPolicy`."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, *args: Any, **kwargs: Any) -> None:
        super().__init__(observation_space, check_action_space(action_space), *args, **tied_defaults(kwargs))

    def make_q_net(self) -> TiedQNetwork:
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        return TiedQNetwork(**arguments).to(self.device)


class SB3Recommender:
    """A model trained by Stable-Baselines3 on a replay environment, as a `Recommender`.

    `model` is an algorithm (PPO, A2C, DQN, QR-DQN) or its policy, whatever its network. A score is a log-probability of
    the policy, a Q-value, or the mean over the quantiles of one. Raises `InputError` for other policies and spaces.
    """

    def __init__(self, model: BaseAlgorithm | BasePolicy) -> None:
        self.policy: Any = model.policy if isinstance(model, BaseAlgorithm) else model
        known = isinstance(self.policy, (ActorCriticPolicy, DQNPolicy)) or hasattr(self.policy, "quantile_net")
        if not known:
            raise InputError(f"SB3Recommender: expected PPO, A2C, DQN or QR-DQN, found {type(model).__name__}")
        check_action_space(self.policy.action_space)

    def fit(self, train: SessionLog, valid: SessionLog | None = None) -> Self:
        """Nothing to do: the model was trained in its environment."""
        return self

    @torch.no_grad()
    def score_sessions(self, batch: SessionBatch) -> Tensor:
        """[P, N] float32, on the model's device."""
        policy = self.policy
        n_items, kinds = int(policy.action_space.n), isinstance(policy.observation_space, spaces.Dict)
        items: Any = policy.observation_space["items"] if kinds else policy.observation_space
        windows = session_observations(batch, items.shape[0], n_items, kinds)
        policy.set_training_mode(False)
        scores = torch.empty(batch.n_rows, n_items, device=policy.device)
        step = max(_CHUNK_FLOATS // (n_items * getattr(policy, "n_quantiles", 1)), 1)
        # A row of the network's own activations is some kilobytes, whatever the number of items.
        step = min(step, 4096)
        for start in range(0, batch.n_rows, step):
            rows = slice(start, start + step)
            part = {key: value[rows] for key, value in windows.items()} if isinstance(windows, dict) else windows[rows]
            scores[rows] = self._scores(policy.obs_to_tensor(part)[0])
        return scores

    def _scores(self, observations: PyTorchObs) -> Tensor:
        if isinstance(self.policy, ActorCriticPolicy):
            return self.policy.get_distribution(observations).distribution.logits  # type: ignore[union-attr]
        if isinstance(self.policy, DQNPolicy):
            return self.policy.q_net(observations)
        return self.policy.quantile_net(observations).mean(dim=1)

    def recommend(self, history: SessionBatch, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best next items of one live session and their scores, best first."""
        scores = self.score_sessions(history.with_unknown_next())[-1]
        best = torch.sort(scores, descending=True, stable=True)
        return best.indices[:k].cpu().numpy(), best.values[:k].cpu().numpy()


def check_action_space(space: spaces.Space) -> spaces.Discrete:
    """`space` if an action is one item. Raises `InputError` otherwise."""
    if not isinstance(space, spaces.Discrete):
        raise InputError(
            f"expected a Discrete action space of items, found {space}; make the environment without a slate"
        )
    return space


def tied_defaults(policy_kwargs: dict[str, Any]) -> dict[str, Any]:
    """`policy_kwargs` with the encoder and no layers behind it, unless they say otherwise."""
    return {"features_extractor_class": SessionEncoder, "net_arch": [], **policy_kwargs}
