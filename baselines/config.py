"""Configurations of the baselines that need no PyTorch. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import InputError
from ..nn.schedule import Schedule

Similarity = Literal["dot", "cosine", "jaccard"]
Decay = Literal["none", "linear", "div", "quadratic", "log"]

MAX_WINDOW = 63
"""Session-KNN notes which items a neighbour shares in the bits of one signed 64-bit integer."""


def _check_choice(model: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{model}: {name} must be one of {', '.join(choices)}, found {value!r}")


@dataclass(frozen=True)
class MostPopularConfig:
    """Most Popular. Raises `InputError` for an unknown choice."""

    kinds: Literal["all", "purchases"] = "all"
    """Which training events count. With "purchases" all items that nobody bought are tied."""

    def __post_init__(self) -> None:
        _check_choice("most-popular", "kinds", self.kinds, ("all", "purchases"))


@dataclass(frozen=True)
class MostRecentConfig:
    """Most Recent. Raises `InputError` for an unknown choice."""

    bought: Literal["keep", "last"] = "keep"
    """Where an item goes that was bought earlier in the session: its place in the stack, or behind the session's
    other items. "last" is the strong rule for baskets; it keeps bought items above popularity, because of the items
    bought after a first purchase in RecSys15, 14 % are bought again and 1 % are a new one of the five most popular."""

    def __post_init__(self) -> None:
        _check_choice("most-recent", "bought", self.bought, ("keep", "last"))


@dataclass(frozen=True)
class SPopConfig:
    """S-POP has no knobs."""


@dataclass(frozen=True)
class SessionKNNConfig:
    """Session-KNN. Raises `InputError` for a value out of range.

    The default is a V-SKNN (Ludewig & Jannach 2018), chosen on the last training day of RecSys15 clicks and of Taobao
    purchases; it was best or within 0.004 of the best Recall@5 and Recall@20 among its 16 neighbours on both.

    Below, s is the number of events after an item's latest occurrence in the current session (0 for the newest) and
    L the number of events looked at.
    """

    k: int = 500
    """Neighbours: the most similar candidates. Published for RSC15: 500 with m=1000 (SKNN); 100 with m=1000, dot and
    quadratic, or 1000 with m=5000, log and idf_weight 2 (V-SKNN)."""
    m: int = 1000
    """Candidates: the training sessions that ended last among those that share an item with the current session."""
    similarity: Similarity = "cosine"
    """Of w, the weights of the current session's items, and a candidate's set of distinct items: "dot" is the sum of w
    over the shared items, "cosine" dot / sqrt(size), "jaccard" dot / (sum of w + size - dot); factors that all
    candidates have in common are left out."""
    position: Decay = "log"
    """w by place in the current session: 1, max(0, 1 - s / 10), (L - s) / L, its square, or 1 / log10(s + 1.7).
    "none" makes it a plain SKNN."""
    decay: Decay = "div"
    """What a neighbour's items count, with t = s + 1 for the latest item it shares: 1, max(0, 1 - t / 10), 1 / t,
    1 / t^2, or 1 / log10(t + 1.7)."""
    idf_weight: float = 2.0
    """Item scores are multiplied by 1 + idf_weight * max(0, ln(training sessions / training events of the item))."""
    window: int = 30
    """Distinct items: only the session's newest events that hold at most this many are looked at, up to 63."""

    def __post_init__(self) -> None:
        if self.k < 1 or self.m < 1:
            raise InputError(f"session-knn: k and m must be at least 1, found k={self.k}, m={self.m}")
        if not 1 <= self.window <= MAX_WINDOW:
            raise InputError(f"session-knn: window must be 1..{MAX_WINDOW} items, found {self.window}")
        if not 0 <= self.idf_weight < float("inf"):
            raise InputError(f"session-knn: idf_weight must be a finite number from 0, found {self.idf_weight}")
        _check_choice("session-knn", "similarity", self.similarity, get_args(Similarity))
        _check_choice("session-knn", "position", self.position, get_args(Decay))
        _check_choice("session-knn", "decay", self.decay, get_args(Decay))


SKNN = SessionKNNConfig(k=500, m=1000, similarity="cosine", position="none", decay="none", idf_weight=0.0)
"""The plain form that Jannach & Ludewig 2017 found good on RSC15: the literal preset of `session-knn`."""


@dataclass(frozen=True)
class ItemKNNConfig:
    """Item-KNN. Raises `InputError` for a value out of range.

    The default was chosen on the last training day of RecSys15 clicks and of Taobao purchases: within 0.001 of the best
    Recall@5 and Recall@20 among 16 of `alpha` and `regularisation` on both.

    Below, c is the number of training sessions that hold both items, s the number that hold the recommended item and
    s_last the number that hold the session's last item.
    """

    similarity: Literal["count", "cosine"] = "cosine"
    """c (Ruocco et al. 2017), or c / ((s_last + regularisation)^alpha (s + regularisation)^(1 - alpha)) (Hidasi et
    al. 2016)."""
    regularisation: float = 20.0
    """Sessions added to s, which keeps items that few sessions hold from the top. Authors' code of Hidasi et al. 2016:
    20. "count" ignores it."""
    alpha: float = 0.75
    """From 0, a full discount for s, to 1, none, which ranks as "count" does; 0.5 is the cosine. Authors' code of
    Hidasi et al. 2016: 0.5. "count" ignores it."""
    k: int = 100
    """Neighbours kept of each item, the most similar. Authors' code of Hidasi et al. 2016: 100."""
    itself: bool = True
    """Whether the last item can be recommended again, or is always last."""

    def __post_init__(self) -> None:
        _check_choice("item-knn", "similarity", self.similarity, ("count", "cosine"))
        if self.k < 1:
            raise InputError(f"item-knn: k must be at least 1, found {self.k}")
        if not 0 <= self.regularisation < float("inf"):
            raise InputError(f"item-knn: regularisation must be a finite number from 0, found {self.regularisation}")
        if not 0 <= self.alpha <= 1:
            raise InputError(f"item-knn: alpha must be 0..1, found {self.alpha}")


CO_OCCURRENCE = ItemKNNConfig(similarity="count", itself=False)
"""Raw counts (Ruocco et al. 2017), on whose data no item follows itself: the literal preset of `item-knn`."""


@dataclass(frozen=True)
class BPRConfig(Schedule):
    """BPR-MF. Raises `InputError` for a value out of range.

    The default was chosen on the last training day of RecSys15 clicks and of Taobao purchases, among 15 of learning
    rate, regularisation and factors. Authors' code of Hidasi et al. 2016, which draws negatives uniformly: 80 factors,
    learning rate 0.01, no regularisation, ten passes.
    """

    users: Literal["sessions", "known"] = "sessions"
    """Who has a vector of their own in training: each session, as where shoppers are anonymous (Hidasi et al. 2016), or
    each user of the log (Ruocco et al. 2017)."""
    factors: int = 100
    """Size of the vectors of users and items, the item's bias not counted."""
    learning_rate: float = 0.2
    """Of plain stochastic gradient descent."""
    regularisation: float = 0.001
    """Weight of the squared norm of the vectors and the bias."""
    passes: int = 10
    """Passes over the interactions in an epoch, that is between two validations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_choice("bpr", "users", self.users, ("sessions", "known"))
        for name, least in (("factors", 1), ("passes", 1)):
            if getattr(self, name) < least:
                raise InputError(f"bpr: {name} must be at least {least}, found {getattr(self, name)}")
        for name in ("learning_rate", "regularisation"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"bpr: {name} must be a finite number from 0, found {getattr(self, name)}")
