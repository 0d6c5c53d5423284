"""The tied policy for the QR-DQN of sb3-contrib, which is an extra."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces
from sb3_contrib.qrdqn.policies import QRDQNPolicy, QuantileNetwork
from stable_baselines3.common.policies import BasePolicy

from .sb3 import SessionEncoder, TiedHead, check_action_space, tied_defaults


class TiedQuantileNetwork(QuantileNetwork):
    """Quantiles [R, Q, N] of the return: a projection of the state for each, all times the same rows of items.

    The weights are Q H D + N; the output itself is R Q N, so memory is a matter of batch size and quantiles.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Discrete,
        features_extractor: SessionEncoder,
        n_quantiles: int = 200,
        normalize_images: bool = True,
        **_: Any,
    ) -> None:
        # Past QuantileNetwork.__init__, which would make the layer of Q H N weights that the tied head replaces.
        BasePolicy.__init__(
            self,
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
        )
        self.n_quantiles = n_quantiles
        self.quantile_net = TiedHead(features_extractor, n_quantiles)  # type: ignore[assignment]


class TiedQRDQNPolicy(QRDQNPolicy):
    """For QR-DQN: ``QRDQN(TiedQRDQNPolicy, env, policy_kwargs=dict(n_quantiles=8))``."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, *args: Any, **kwargs: Any) -> None:
        super().__init__(observation_space, check_action_space(action_space), *args, **tied_defaults(kwargs))

    def make_quantile_net(self) -> TiedQuantileNetwork:
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        return TiedQuantileNetwork(**arguments).to(self.device)
