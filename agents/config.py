"""What an A3C or IRN agent is made of. Every choice that the IRN paper leaves open is a field; presets are instances.

Source: "Purchase as Reward: Session-based Recommendation by Imagination Reconstruction" (under review, ICLR 2019),
below "the paper".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from ..envs.sparsity import Drop
from ..errors import InputError
from ..nn.schedule import ValidateBy

PolicyWeight = Literal["advantage", "positive_advantage", "return", "one"]
PolicyAt = Literal["every", "reward"]
Reconstruction = Literal["after", "before", "alone"]
Branching = Literal["gumbel", "iid", "top-n", "tree"]


MAX_LEAVES = 256
"""Of an imagined tree: every leaf of each of 128 states is a row of a softmax over all items."""


@dataclass(frozen=True)
class AgentConfig:
    """One recurrent agent: its network, its rewards and losses, its imagination, its training."""

    hidden_units: int = 256
    """Units of the LSTM (the paper, section 5.1)."""
    embedding_dim: int | None = None
    """Size of the item embedding; None feeds one-hot items straight into the gates, as the paper prints."""
    tied: bool = False
    """The output layer is the item embedding behind a projection; needs `embedding_dim`."""
    dropout: float = 0.0
    """Share of zeroed entries in embeddings and before the output layer while training."""
    copy_window: int = 0
    """The last so many items of the session get a learned bonus on their logits (`nn.copying`); 0: no copy head."""
    kinds: bool = False
    """The state knows which events were purchases; without, they are appended like any item, as the paper reads."""
    history: int | None = None
    """Items that a state is encoded from, anew for every event; None carries the recurrent state along the session."""

    click_reward: float = 0.0
    """Reward of a click: 1 in the paper's -F agents, 0 in its -P agents."""
    purchase_reward: float = 5.0
    """Reward of a purchase (the paper, section 5.1)."""
    density: float = 1.0
    """Share of the training purchases that stay (the paper, section 5.3)."""
    drop: Drop = "event"
    """What happens to the others; see `envs.sparsity.thin_purchases`."""
    gamma: float = 0.99
    """Discount per event (the paper, section 5.1), of rewards and of imagined steps."""
    n_steps: int = 1
    """Rewards summed before the bootstrap (the paper: 3 for -F; -P updates with the immediate reward)."""
    bootstrap: bool = False
    """Add gamma^n_steps V(s) of the state n_steps later, unless the session ended before."""
    value_target: Literal["frozen", "online"] = "frozen"
    """Whose V that is: a copy refreshed every `refresh_events` (the paper's theta_v^-), or the learning network."""
    policy_at: PolicyAt = "reward"
    """Events at which the policy is updated: every one, or those whose reward is above 0 (the paper's -P)."""
    policy_weight: PolicyWeight = "advantage"
    """What multiplies log pi of the logged item: G - V as printed, its positive part, G alone, or 1 (cross-entropy)."""
    supervised_weight: float = 0.0
    """Weight of cross-entropy on logged events, beside the policy loss (SQN, Xin et al. 2020, section 3.2)."""
    supervised_at: Literal["every", "unrewarded"] = "every"
    """Which events: every one, or those without a reward, which the policy does not learn from in -P."""
    supervised_head: Literal["shared", "own"] = "shared"
    """Whether that trains the policy itself, or an output layer of its own on the same LSTM, as in SQN."""
    ranking: Literal["policy", "expected_reward"] = "policy"
    """What items are ranked by: pi alone, or the reward to expect of recommending an item where a click earns 1 and a
    purchase `purchase_worth`: (1 - q) p + purchase_worth q pi. Here p is the next-item probability of an own supervised
    head, and q = V / purchase_reward, cut to [0, 1], the probability that the next event is a purchase (-P only)."""
    purchase_worth: float = 5.0
    """What a purchase counts in that ranking, where a click counts 1."""
    entropy_weight: float = 0.0
    """Weight of the policy's entropy in nats, at the events at which the policy is updated (A3C, Mnih et al. 2016)."""
    value_coefficient: float = 0.5
    """Weight of the squared advantage; 0 leaves the value head untrained."""
    value_at: PolicyAt = "every"
    """Events at which V is fitted: every one (V of -P is then about 5 P(next is a purchase)), or those with a reward
    above 0, the literal reading, under which V of -P tends to 5 everywhere."""
    value_gradient: Literal["flows", "stopped"] = "flows"
    """Whether the value loss reaches the LSTM that value and policy share."""

    imagination_weight: float = 0.0
    """Weight of the reconstruction loss, eq. 4 of the paper; 0 is plain A3C."""
    breadth: int = 2
    """n: imagined trajectories per state (the paper, section 4.2)."""
    depth: int = 2
    """m: imagined steps per trajectory (the paper, section 4.2)."""
    branching: Branching = "gumbel"
    """How the n come about: distinct first items drawn without replacement (Gumbel top-k) and one chain each, n chains
    drawn independently, the n most probable first items, or n children of every imagined state (n^m leaves)."""
    reconstruct: Literal["imagined", "seen"] = "imagined"
    """What is reconstructed: imagined items (IRN), or items that the session already holds (the paper's PRN)."""
    imagination_policy: Literal["copy", "distilled"] = "copy"
    """pi^: a frozen copy of pi, refreshed every `refresh_events`, or a smaller network that learns pi's distribution by
    cross-entropy all along (the paper, section 4.1)."""
    distilled_units: int = 64
    """LSTM units of the distilled network."""
    reconstruction: Reconstruction = "after"
    """State whose logit of the imagined item is pushed to 1: the one that contains it, the one before it, or the state
    of that item alone."""
    imagination_start: int = 0
    """Training events before the first imagination."""
    imagination_warmup: int = 0
    """Events over which its weight then rises from 0 to `imagination_weight`, linearly."""
    imagination_gate: float = 0.0
    """Share of states whose next item is among the first imagined ones from which on the weight counts in full; below
    it the weight falls in proportion. The share is that of the rollouts before. 0: no gate."""

    lanes: int = 16
    """B: sessions walked at once (the paper's M; lanes x unroll = 128 events an update)."""
    unroll: int = 8
    """T: steps of back-propagation through time between updates; the state is carried over."""
    workers: int = 0
    """Processes that train shared parameters asynchronously (Hogwild, Niu et al. 2011; the paper, section 3.2), each on
    its share of the sessions with `lanes` of its own, on the CPU only; 0: one synchronous learner. One worker computes
    exactly what it does; of two or more no two runs are alike."""
    refresh_events: int = 64_000
    """Events between refreshes of the frozen imagination policy and of V^- (the paper: 500 iterations of 128)."""
    learning_rate: float = 1e-3
    """Of Adam, at the start (the paper, section 5.1)."""
    learning_rate_end: float = 1.0
    """Share of the learning rate that is left at the end of the last epoch; it falls linearly."""
    clip_norm: float = 40.0
    """Largest global norm of a gradient."""
    order: Literal["chronological", "shuffled"] = "shuffled"
    """Order of the training sessions within an epoch."""
    epochs: int = 10
    """Largest number of passes over the training sessions."""
    max_events: int = 2_500_000
    """Largest number of training events, rounded down to whole epochs but never below one."""
    validate_by: ValidateBy = "purchase"
    """Recall@5 on validation that keeps an epoch: over purchases, over clicks, or the mean of the two figures. Without
    a single purchase in training (`density` 0), clicks take the place of purchases."""
    patience: int = 3
    """Epochs without a better validation score before training stops."""

    def __post_init__(self) -> None:
        counts = ("hidden_units", "n_steps", "breadth", "depth", "lanes", "unroll")
        for name in (*counts, "distilled_units", "refresh_events", "epochs", "max_events"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.tied and self.embedding_dim is None:
            raise InputError("tied: expected an embedding_dim to tie the output layer to, found None; set one")
        if self.embedding_dim is not None and self.embedding_dim < 1:
            raise InputError(f"embedding_dim: expected at least 1 or None, found {self.embedding_dim}")
        if self.history is not None and self.history < 1:
            raise InputError(f"history: expected at least 1 item or None, found {self.history}")
        if self.breadth**self.depth > MAX_LEAVES and self.branching == "tree":
            raise InputError(
                f"branching: a tree of breadth {self.breadth} and depth {self.depth} has {self.breadth**self.depth} "
                f"leaves a state; expected at most {MAX_LEAVES}; lower breadth or depth"
            )
        if self.ranking == "expected_reward":
            needed = {
                "supervised_head": "own",
                "click_reward": 0.0,
                "n_steps": 1,
                "bootstrap": False,
                "value_at": "every",
            }
            wrong = [
                f"{name}={getattr(self, name)!r}" for name, value in needed.items() if getattr(self, name) != value
            ]
            wrong += [
                f"{n}=0" for n in ("supervised_weight", "value_coefficient", "purchase_reward") if not getattr(self, n)
            ]
            if wrong:
                raise InputError(
                    "ranking: 'expected_reward' needs an own supervised head and V of the immediate purchase reward: "
                    f"expected {', '.join(f'{k}={v!r}' for k, v in needed.items())} and a supervised_weight, "
                    f"value_coefficient and purchase_reward above 0, found {', '.join(wrong)}; add ranking=policy"
                )
        not_negative = ("copy_window", "imagination_start", "imagination_warmup", "patience", "workers")
        weights = ("learning_rate", "value_coefficient", "supervised_weight", "purchase_worth")
        weights += ("entropy_weight", "imagination_weight", "imagination_gate")
        for name in (*not_negative, *weights):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name}: expected a finite number from 0, found {getattr(self, name)}")
        for name in ("gamma", "density"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}: expected a number in [0, 1], found {getattr(self, name)}")
        if not self.clip_norm > 0:
            raise InputError(f"clip_norm: expected a norm above 0, found {self.clip_norm}")
        if not 0 <= self.learning_rate_end <= 1:
            raise InputError(f"learning_rate_end: expected a share in [0, 1], found {self.learning_rate_end}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: expected a share in [0, 1), found {self.dropout}")
        for name, allowed in (
            ("policy_at", ("every", "reward")),
            ("policy_weight", ("advantage", "positive_advantage", "return", "one")),
            ("value_gradient", ("flows", "stopped")),
            ("value_at", ("every", "reward")),
            ("value_target", ("frozen", "online")),
            ("supervised_at", ("every", "unrewarded")),
            ("supervised_head", ("shared", "own")),
            ("ranking", ("policy", "expected_reward")),
            ("branching", ("gumbel", "iid", "top-n", "tree")),
            ("reconstruct", ("imagined", "seen")),
            ("imagination_policy", ("copy", "distilled")),
            ("reconstruction", ("after", "before", "alone")),
            ("drop", ("event", "reward", "click")),
            ("order", ("chronological", "shuffled")),
            ("validate_by", ("purchase", "click", "mean")),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}: expected one of {', '.join(allowed)}, found {getattr(self, name)!r}")

    @property
    def has_supervised_head(self) -> bool:
        """Whether the network has an output layer for supervised learning beside the policy's."""
        return self.supervised_head == "own" and self.supervised_weight > 0

    @property
    def learns_from_rewards(self) -> bool:
        """Whether any event is rewarded; without, policy and value have no loss (`density` 0 of the -P agents)."""
        return self.density > 0 or self.click_reward > 0

    @property
    def validation(self) -> ValidateBy:
        """`validate_by`, or what stands in for it."""
        return "click" if self.density == 0 and self.validate_by == "purchase" else self.validate_by


PAPER = AgentConfig()
"""The paper read literally where it speaks (the base of every ``@paper`` preset)."""

PRACTICAL = AgentConfig(
    hidden_units=128,
    embedding_dim=128,
    tied=True,
    dropout=0.5,
    copy_window=20,
    kinds=True,
    policy_weight="return",
    value_gradient="stopped",
    learning_rate=4e-3,
    learning_rate_end=0.0,
    validate_by="mean",
    epochs=20,
    patience=5,
    max_events=1_500_000,
)
"""The base of every preset without a suffix, settled on validation data: `docs/practical-preset.md`."""

_FULL = {"click_reward": 1.0, "n_steps": 3, "bootstrap": True, "policy_at": "every"}
_CROSS_ENTROPY = {"policy_weight": "one", "value_coefficient": 0.0}
_TWO_HEADS = {
    "supervised_weight": 5.0,
    "supervised_at": "unrewarded",
    "supervised_head": "own",
    "value_coefficient": 0.2,
    "value_gradient": "flows",
    "ranking": "expected_reward",
    "purchase_worth": 1.5,
}
"""Of the practical -P agents. The weights are in units of the purchase reward of 5: purchases weigh in the policy what
clicks weigh in the supervised head."""


def _presets(base: AgentConfig, purchase: dict[str, Any], imagination: dict[str, Any]) -> dict[str, AgentConfig]:
    seen = {**imagination, "reconstruct": "seen"}
    return {
        "lstm": replace(base, click_reward=1.0, purchase_reward=1.0, policy_at="every", **_CROSS_ENTROPY),
        "lstm-purchase": replace(base, **_CROSS_ENTROPY),
        "a3c-f": replace(base, **_FULL),
        "a3c-p": replace(base, **purchase),
        "irn-f": replace(base, **_FULL, **imagination),
        "irn-p": replace(base, **purchase, **imagination),
        "prn-f": replace(base, **_FULL, **seen),
        "prn-p": replace(base, **purchase, **seen),
    }


PRESETS = {
    "paper": _presets(PAPER, {}, {"imagination_weight": 1.0}),
    "practical": _presets(PRACTICAL, _TWO_HEADS, {"imagination_weight": 0.1, "imagination_start": 64_000}),
}
"""Configurations by preset and name; `lstm` and `lstm-purchase` are the controls: the same network, cross-entropy."""
