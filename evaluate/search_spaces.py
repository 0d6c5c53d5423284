"""What `tune` may change of each family of models, as data. Imports nothing heavy.

Only what a practitioner would tune: how a model learns and how large it is. Never what an experiment is about (rewards,
densities), nor what the budget is (epochs, early stopping), nor the figure that epochs are chosen by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from ..agents.config import AgentConfig
from ..agents.sb3_config import SB3A2CConfig, SB3DQNConfig, SB3PPOConfig, SB3QRDQNConfig
from ..agents.sqn_config import SQNConfig
from ..baselines.config import BPRConfig, ItemKNNConfig, MostPopularConfig, MostRecentConfig, SessionKNNConfig
from ..baselines.gru4rec_config import GRU4RecConfig
from ..baselines.rnn_config import IIRNNConfig, RNNConfig
from ..baselines.sasrec_config import SASRecConfig
from ..errors import InputError
from .models import ModelSpec, changed


@dataclass(frozen=True)
class Range:
    """From `low` to `high`, both included: whole numbers where both are, otherwise floats."""

    low: float
    high: float
    log: bool = False
    """Equal ratios are equally likely, not equal differences."""

    def __contains__(self, value: object) -> bool:
        return isinstance(value, (int, float)) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low!r}..{self.high!r}{':log' if self.log else ''}"

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def values(self) -> Sequence[Any] | None:
        """All of them; None where they are floats."""
        return range(int(self.low), int(self.high) + 1) if self.whole else None


@dataclass(frozen=True)
class Choices:
    """One of several values."""

    options: tuple[Any, ...]

    def __contains__(self, value: object) -> bool:
        return value in self.options

    def __str__(self) -> str:
        return "|".join(map(as_text, self.options))

    def values(self) -> Sequence[Any]:
        """All of them."""
        return self.options


Domain = Range | Choices


@dataclass(frozen=True)
class Knob:
    """A field that can be tuned."""

    field: str
    domain: Domain
    when: Callable[[Any], bool] | None = None
    """Of a configuration: whether it reads the field at all."""


_AGENT = (
    Knob("learning_rate", Range(5e-4, 2e-2, log=True)),
    Knob("hidden_units", Choices((64, 128, 256))),
    Knob("dropout", Range(0.0, 0.7)),
    Knob("gamma", Range(0.3, 0.99), when=lambda config: config.bootstrap),
    Knob("n_steps", Choices((1, 3, 5)), when=lambda config: config.bootstrap),
    Knob("value_coefficient", Range(0.05, 1.0, log=True)),
    Knob("supervised_weight", Range(1.0, 20.0, log=True)),
    Knob("purchase_worth", Range(1.0, 5.0, log=True), when=lambda config: config.ranking == "expected_reward"),
    Knob("imagination_weight", Range(0.01, 1.0, log=True)),
    Knob("breadth", Range(1, 4), when=lambda config: config.imagination_weight and config.reconstruct == "imagined"),
    Knob("depth", Range(1, 3), when=lambda config: config.imagination_weight and config.reconstruct == "imagined"),
)
_SQN = (
    Knob("learning_rate", Range(5e-4, 2e-2, log=True)),
    Knob("hidden_units", Choices((64, 128, 256))),
    Knob("dropout", Range(0.0, 0.7)),
    Knob("q_weight", Range(0.1, 3.0, log=True)),
    Knob("gamma", Range(0.0, 0.9)),
)
_SB3 = (
    Knob("learning_rate", Range(3e-5, 1e-2, log=True)),
    Knob("hidden_units", Choices((32, 64, 128))),
)
_ACTOR_CRITIC = (
    Knob("gae_lambda", Range(0.8, 1.0)),
    Knob("ent_coef", Range(1e-4, 1e-2, log=True)),
    Knob("vf_coef", Range(0.1, 1.0, log=True)),
)
_DQN = (
    Knob("batch_size", Range(32, 512, log=True)),
    Knob("target_update_interval", Range(1_000, 40_000, log=True)),
)
_RNN = (
    Knob("learning_rate", Range(5e-4, 1e-2, log=True)),
    Knob("hidden_units", Choices((50, 100, 200))),
    Knob("dropout", Range(0.0, 0.6)),
    Knob("batch_size", Choices((50, 100, 200))),
)
_GRU4REC = (
    Knob("learning_rate", Range(5e-4, 1e-2, log=True), when=lambda config: config.optimizer == "adam"),
    Knob("learning_rate", Range(0.02, 0.5, log=True), when=lambda config: config.optimizer == "adagrad"),
    Knob("momentum", Range(0.0, 0.5), when=lambda config: config.optimizer == "adagrad"),
    Knob("hidden_units", Choices((64, 100, 128, 256))),
    Knob("batch_size", Choices((32, 64, 128))),
    Knob("embedding_dropout", Range(0.0, 0.5)),
    Knob("hidden_dropout", Range(0.0, 0.6)),
    Knob("sample_alpha", Range(0.0, 1.0), when=lambda config: config.n_sample),
    Knob("logq", Range(0.0, 1.0), when=lambda config: config.loss == "cross-entropy" and config.n_sample is not None),
    Knob("bpreg", Range(0.1, 2.0, log=True), when=lambda config: config.loss == "bpr-max"),
    Knob("elu", Range(0.1, 1.0), when=lambda config: config.loss == "bpr-max"),
)
_SASREC = (
    Knob("learning_rate", Range(5e-4, 1e-2, log=True)),
    Knob("hidden_units", Choices((50, 64, 128))),
    Knob("blocks", Range(1, 3)),
    Knob("dropout", Range(0.0, 0.7)),
    Knob("batch_size", Choices((64, 128, 256))),
    Knob("sample_alpha", Range(0.0, 1.0), when=lambda config: config.loss == "sampled"),
)
_BPR = (
    Knob("learning_rate", Range(0.02, 1.0, log=True)),
    Knob("regularisation", Range(1e-5, 1e-2, log=True)),
    Knob("factors", Choices((50, 100, 200))),
)
_DECAYS = Choices(("none", "linear", "div", "quadratic", "log"))
_SESSION_KNN = (
    Knob("k", Range(50, 1_000, log=True)),
    Knob("m", Range(500, 5_000, log=True)),
    Knob("similarity", Choices(("dot", "cosine", "jaccard"))),
    Knob("position", _DECAYS),
    Knob("decay", _DECAYS),
    Knob("idf_weight", Range(0.0, 5.0)),
)
_ITEM_KNN = (
    Knob("k", Range(20, 500, log=True)),
    Knob("itself", Choices((True, False))),
    Knob("regularisation", Range(1.0, 500.0, log=True), when=lambda config: config.similarity == "cosine"),
    Knob("alpha", Range(0.0, 1.0), when=lambda config: config.similarity == "cosine"),
)

SPACES: Mapping[type, tuple[Knob, ...]] = {
    AgentConfig: _AGENT,
    SQNConfig: _SQN,
    SB3PPOConfig: (*_SB3, *_ACTOR_CRITIC, Knob("clip_range", Range(0.1, 0.4))),
    SB3A2CConfig: (*_SB3, *_ACTOR_CRITIC, Knob("n_steps", Range(2, 16, log=True))),
    SB3DQNConfig: (*_SB3, *_DQN),
    SB3QRDQNConfig: (*_SB3, *_DQN),
    GRU4RecConfig: _GRU4REC,
    RNNConfig: _RNN,
    IIRNNConfig: (*_RNN, Knob("sessions_read", Range(1, 30, log=True))),
    SASRecConfig: _SASREC,
    BPRConfig: _BPR,
    SessionKNNConfig: _SESSION_KNN,
    ItemKNNConfig: _ITEM_KNN,
    MostPopularConfig: (Knob("kinds", Choices(("all", "purchases"))),),
    MostRecentConfig: (Knob("bought", Choices(("keep", "last"))),),
}
"""By class of configuration. A knob on a logarithmic range whose field is 0 is a part that the model goes without, and
stays so."""


def search_space(spec: ModelSpec, asked: Sequence[str] = ()) -> dict[str, Domain]:
    """Field by field what may be tried of a model.

    That is its family's space without the knobs that the model does not read and without the fields that its text sets,
    and then what was `asked`, each ``field=low..high[:log]`` or ``field=a|b|c``, in place of or beside them. Raises
    `InputError` for an unknown field, for values that the model does not take, and where nothing is left to tune.
    """
    given = overrides(spec.label)
    space = {
        knob.field: knob.domain
        for knob in SPACES.get(type(spec.config), ())
        if knob.field not in given and _in_use(knob, spec.config)
    }
    for text in asked:
        field, domain = _parse(text, spec)
        space[field] = domain
    if not space:
        raise InputError(f"{spec.label}: has nothing to tune; give fields with --space or choose another model")
    return space


def overrides(label: str) -> dict[str, str]:
    """The fields that a model's text sets, with their values as texts."""
    parts = filter(None, label.partition(":")[2].split(","))
    return {field: value for field, _, value in (part.partition("=") for part in parts)}


def with_changes(spec: ModelSpec, values: Mapping[str, Any]) -> str:
    """The text of the model with these values, read back by `parse_model` to exactly them.

    An `embedding_dim` that equals `hidden_units` goes on doing so, unless the model's text or `values` set it.
    """
    given, base = overrides(spec.label), spec.config
    changes = dict(values)
    equal = getattr(base, "embedding_dim", None) == getattr(base, "hidden_units", 0)
    if equal and "hidden_units" in values and "embedding_dim" not in given:
        changes.setdefault("embedding_dim", values["hidden_units"])
    differing = {field: as_text(value) for field, value in changes.items() if value != getattr(base, field)}
    settings = ",".join(f"{field}={value}" for field, value in {**given, **differing}.items())
    name = spec.label.partition(":")[0]
    return f"{name}:{settings}" if settings else name


def as_text(value: Any) -> str:
    """A value as the text of a model gives it; floats come back to the last bit."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _in_use(knob: Knob, config: Any) -> bool:
    off = isinstance(knob.domain, Range) and knob.domain.log and getattr(config, knob.field) == 0
    return not off and (knob.when is None or bool(knob.when(config)))


def _parse(text: str, spec: ModelSpec) -> tuple[str, Domain]:
    where = f"--space {text}"
    field, _, domain = text.partition("=")
    if not domain:
        raise InputError(f"{where}: expected field=low..high, field=low..high:log or field=a|b|c")
    if not hasattr(spec.config, field):
        close = get_close_matches(field, vars(spec.config), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(f"{where}: {spec.label} has no field {field!r}; {hint}it has {', '.join(vars(spec.config))}")

    def value(part: str) -> Any:
        try:
            return getattr(changed(spec.config, f"{field}={part}", spec.label, spec.label), field)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

    if ".." not in domain:
        options = list(dict.fromkeys(value(part) for part in domain.split("|")))
        if len(options) < 2:
            raise InputError(
                f"{where}: expected two values or more, separated by |, or low..high; to fix the field, tune "
                f"{with_changes(spec, {field: options[0]})}"
            )
        return field, Choices(tuple(options))
    ends, _, scale = domain.partition(":")
    low, high = map(value, ends.split("..", maxsplit=1))
    if not all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in (low, high)):
        raise InputError(f"{where}: expected a range of numbers; give the values as {field}=a|b|c")
    if scale not in ("", "log") or not low < high or not math.isfinite(high) or (scale == "log" and low <= 0):
        raise InputError(f"{where}: expected low below high, both finite, and :log with low above 0 only")
    return field, Range(low, high, log=scale == "log")
