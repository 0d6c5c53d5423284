"""What each experiment in the shop varies and compares, as data. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

from ...envs.shop.config import ShopConfig
from ...envs.shop.live_config import LiveShopConfig
from ...errors import InputError

ShopExperimentName = Literal["replay-vs-truth", "cold-start"]
"""`SHOP_EXPERIMENTS` has one of each."""


class Metric(NamedTuple):
    """A replay metric: Recall or MRR at K."""

    slice: str
    """One of `events.SLICES`; "new": items that came on sale during the log; "after training": after the last event of
    the training split, so that no model can know them."""
    metric: Literal["recall", "mrr"]
    k: int

    @property
    def label(self) -> str:
        return f"{'Recall' if self.metric == 'recall' else 'MRR'}@{self.k} {self.slice.replace('/', ', ')}"


METRICS = (
    Metric("all", "recall", 1),
    Metric("all", "recall", 5),
    Metric("all", "recall", 20),
    Metric("all", "mrr", 20),
    Metric("all/repeat", "recall", 5),
    Metric("all/explore", "recall", 5),
    Metric("click", "recall", 5),
    Metric("click", "mrr", 20),
    Metric("click/repeat", "recall", 5),
    Metric("click/explore", "recall", 5),
    Metric("click/explore", "recall", 1),
    Metric("purchase", "recall", 5),
    Metric("purchase", "mrr", 20),
    Metric("purchase/repeat", "recall", 5),
    Metric("purchase/explore", "recall", 5),
)

ESTIMATORS = ("IPS", "clipped IPS", "SNIPS", "per-decision", "per-decision, self-normalised")
"""Off-policy estimators, by their names in `off_policy_table.all_estimates`."""


class Setting(NamedTuple):
    """One knob of the shop at one value: a field of `LiveShopConfig` or of its `ShopConfig`."""

    knob: str
    value: float

    @property
    def label(self) -> str:
        return f"{self.knob} {self.value:g}"

    def of(self, base: LiveShopConfig) -> LiveShopConfig:
        """`base` with the knob turned. Raises `InputError` for an unknown knob or a value outside its range."""
        changes: dict[str, Any] = {self.knob: self.value}
        if self.knob in {field.name for field in fields(ShopConfig)}:
            return replace(base, shop=replace(base.shop, **changes))
        if self.knob not in {field.name for field in fields(LiveShopConfig)}:
            raise InputError(
                f"setting {self.label}: expected a field of LiveShopConfig or ShopConfig, found {self.knob!r}"
            )
        return replace(base, **changes)


@dataclass(frozen=True)
class ShopExperiment:
    """Models trained on logs of several shops, each then let loose in the shop that its log is from."""

    name: str
    title: str
    knobs: tuple[tuple[str, tuple[float, ...]], ...]
    """Each is turned alone, the others as in `base`."""
    models: tuple[str, ...]
    """As `parse_model` reads them."""
    base: LiveShopConfig
    """`kinds` must be shown, as models are told purchases from clicks."""
    caps: tuple[int, ...] = ()
    """Events after which what a model is told of a session stops growing, in the base shop; each of 1..10."""
    n_sessions: int = 8_000
    """Of each log, in all three splits."""
    n_served: int = 10_000
    """Sessions behind each true value, the same shoppers for every model of a shop."""
    seed: int = 0
    """Of the log; the shoppers of the true values are those of `seed` + 1."""
    metrics: tuple[Metric, ...] = METRICS

    def __post_init__(self) -> None:
        if not self.base.kinds or self.base.reveal_intent or self.base.slate is not None:
            raise InputError(
                f"shop experiment {self.name}: the base shop must show kinds, hide intents and take one item, "
                f"found kinds={self.base.kinds}, reveal_intent={self.base.reveal_intent}, slate={self.base.slate}"
            )
        for name in ("n_sessions", "n_served"):
            if getattr(self, name) < 2:
                raise InputError(f"shop experiment {self.name}: {name} must be at least 2, found {getattr(self, name)}")
        if not set(self.caps) <= set(range(1, 11)):
            raise InputError(f"shop experiment {self.name}: expected caps from 1 to 10, found {self.caps}")
        self.shops()

    def settings(self) -> list[Setting]:
        """Every knob at every value."""
        return [Setting(knob, value) for knob, values in self.knobs for value in values]

    def shops(self) -> dict[LiveShopConfig, str]:
        """The distinct shops with their labels, the base shop first; settings that change nothing are the base."""
        found = {self.base: "base shop"}
        for setting in self.settings():
            found.setdefault(setting.of(self.base), setting.label)
        return found


SPREAD = (
    "most-popular",
    "most-popular:kinds=purchases",
    "most-recent",
    "most-recent:bought=last",
    "s-pop",
    "item-knn",
    "item-knn@paper",
    "session-knn",
    "session-knn@paper",
    "bpr",
    "gru4rec",
    "rnn",
    "sasrec",
    "lstm",
    "lstm-purchase",
    "a3c-f",
    "a3c-p",
    "irn-f",
    "irn-p",
    "prn-f",
    "prn-p",
    "sqn",
)
"""Every model that needs neither users nor an optional package, some in two settings."""

_BASE = LiveShopConfig(shop=ShopConfig(n_items=500, new_item_share=0.0), kinds=True, window=50)
"""Nothing comes on sale during the log, and few sessions are longer than the window."""

SHOP_EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        ShopExperiment(
            "replay-vs-truth",
            "Do replay metrics rank models as what they earn does?",
            (
                ("back", (0.0, 0.21, 0.42)),
                ("reload", (0.0, 0.135, 0.35)),
                ("strength", (0.1, 0.3, 0.6, 1.0)),
                ("delay", (0.0, 0.1, 0.4)),
                ("clickbait", (0.0, 0.3, 0.8)),
            ),
            SPREAD,
            _BASE,
        ),
        ShopExperiment(
            "cold-start",
            "New shoppers, new items, short sessions: what is earned and what replay says",
            (("new_item_share", (0.0, 0.15, 0.3, 0.6)), ("decide_rate", (0.12, 0.21, 0.4, 0.8))),
            ("most-popular", "most-recent", "item-knn", "session-knn", "gru4rec", "lstm", "a3c-p", "irn-p"),
            _BASE,
            caps=(1, 2, 3, 5, 10),
            metrics=(*METRICS, Metric("new", "recall", 5), Metric("after training", "recall", 5)),
        ),
    )
}


def changed_experiment(
    experiment: ShopExperiment,
    *,
    models: Sequence[str] | None = None,
    n_sessions: int | None = None,
    n_served: int | None = None,
    n_items: int | None = None,
    seed: int | None = None,
) -> ShopExperiment:
    """An experiment with other models or of another size; None leaves it as it is."""
    given = {"models": models and tuple(models), "n_sessions": n_sessions, "n_served": n_served, "seed": seed}
    base = experiment.base
    if n_items is not None:
        base = replace(base, shop=replace(base.shop, n_items=n_items))
    return replace(experiment, base=base, **{name: value for name, value in given.items() if value is not None})
