"""Models by name: ``NAME`` is the practical preset, ``NAME@paper`` the literal one, ``NAME:field=value,...`` a change.

Imports only configurations, so that the command line can check names before anything slow is loaded.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..agents.config import PRESETS, AgentConfig
from ..agents.sb3_config import SB3_PRESETS, SB3Config, check_installed
from ..agents.sqn_config import SQN_PRESETS, SQNConfig
from ..baselines.config import (
    CO_OCCURRENCE,
    SKNN,
    BPRConfig,
    ItemKNNConfig,
    MostPopularConfig,
    MostRecentConfig,
    SessionKNNConfig,
    SPopConfig,
)
from ..baselines.gru4rec_config import GRU4REC_PRESETS, GRU4RecConfig
from ..baselines.rnn_config import RNN_PRESETS, IIRNNConfig, RNNConfig
from ..baselines.sasrec_config import SASREC_PRESETS, SASRecConfig
from ..errors import InputError
from ..nn.schedule import Schedule, ValidateBy

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from .protocol import Recommender

Config = (
    AgentConfig
    | SQNConfig
    | SB3Config
    | Schedule
    | MostPopularConfig
    | MostRecentConfig
    | SPopConfig
    | SessionKNNConfig
    | ItemKNNConfig
)

AnyConfig = TypeVar("AnyConfig", bound="DataclassInstance")

_CONFIGS: dict[str, Mapping[str, Config]] = {
    "most-popular": {"practical": MostPopularConfig()},
    "most-recent": {"practical": MostRecentConfig()},
    "s-pop": {"practical": SPopConfig()},
    "item-knn": {"practical": ItemKNNConfig(), "paper": CO_OCCURRENCE},
    "session-knn": {"practical": SessionKNNConfig(), "paper": SKNN},
    "bpr": {"practical": BPRConfig()},
    "gru4rec": GRU4REC_PRESETS,
    **RNN_PRESETS,
    "sasrec": SASREC_PRESETS,
    **{name: {preset: PRESETS[preset][name] for preset in PRESETS} for name in PRESETS["practical"]},
    "sqn": SQN_PRESETS,
    **{name: {preset: SB3_PRESETS[preset][name] for preset in SB3_PRESETS} for name in SB3_PRESETS["practical"]},
}

MODEL_NAMES = tuple(_CONFIGS)

REFERENCES = ("most-recent", "most-recent:bought=last", "s-pop", "session-knn", "lstm", "lstm-purchase")
"""What every comparison carries: shortcuts that are hard to beat, and the controls without reward or imagination."""

ALL = "all"
"""Stands for every model, each in its practical preset."""

DEFAULT_MODELS = ("most-popular", *REFERENCES, "a3c-f", "a3c-p", "irn-p")


@dataclass(frozen=True)
class ModelSpec:
    """A model as it was asked for and the configuration that this means."""

    label: str
    """As tables name it: the text it was asked for by."""
    config: Config

    @property
    def family(self) -> str:
        """What is trained, whatever its name: equal families with equal configurations are one model."""
        return type(self.config).__name__.removesuffix("Config")

    @property
    def trained(self) -> bool:
        """Whether seeds matter and training takes a while."""
        return isinstance(self.config, (AgentConfig, SQNConfig, SB3Config, Schedule))

    @property
    def needs_users(self) -> bool:
        """Whether it can be trained only on a log that says who each shopper is."""
        match self.config:
            case IIRNNConfig():
                return True
            case BPRConfig():
                return self.config.users == "known"
        return False

    @property
    def validate_by(self) -> ValidateBy:
        """What its training chooses an epoch by, and tuning a configuration."""
        match self.config:
            case AgentConfig() | SQNConfig():
                return self.config.validation
            case Schedule():
                return self.config.validate_by
            case SB3Config():
                return "purchase"
        return "mean"

    def create(self, seed: int, device: str) -> Recommender:
        """The model, not fitted yet."""
        match self.config:
            case AgentConfig():
                from ..agents.recurrent import RecurrentAgent

                return RecurrentAgent(self.config, seed, device)
            case SQNConfig():
                from ..agents.sqn import SQNAgent

                return SQNAgent(self.config, seed, device)
            case SB3Config():
                from ..agents.sb3_agent import SB3Agent

                return SB3Agent(self.config, seed, device)
            case MostPopularConfig():
                from ..baselines.popularity import MostPopular

                return MostPopular(self.config)
            case MostRecentConfig():
                from ..baselines.recency import MostRecent

                return MostRecent(self.config)
            case SPopConfig():
                from ..baselines.popularity import SPop

                return SPop(self.config)
            case SessionKNNConfig():
                from ..baselines.session_knn import SessionKNN

                return SessionKNN(self.config)
            case ItemKNNConfig():
                from ..baselines.item_knn import ItemKNN

                return ItemKNN(self.config)
            case GRU4RecConfig():
                from ..baselines.gru4rec import GRU4Rec

                return GRU4Rec(self.config, seed, device)
            # A subclass of the next one.
            case IIRNNConfig():
                from ..baselines.ii_rnn import IIRNN

                return IIRNN(self.config, seed, device)
            case RNNConfig():
                from ..baselines.rnn import RNN

                return RNN(self.config, seed, device)
            case SASRecConfig():
                from ..baselines.sasrec import SASRec

                return SASRec(self.config, seed, device)
            case BPRConfig():
                from ..baselines.bpr import BPR

                return BPR(self.config, seed, device)
        raise TypeError(f"no model for {type(self.config).__name__}")


def parse_model(text: str) -> ModelSpec:
    """``NAME[@PRESET][:field=value,...]``.

    Raises `InputError` for an unknown name, preset, field or value, and for a model whose package is not installed.
    """
    head, _, overrides = text.partition(":")
    name, _, preset = head.partition("@")
    if name not in _CONFIGS:
        close = get_close_matches(name, MODEL_NAMES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(f"unknown model {name!r}; {hint}known models: {', '.join(MODEL_NAMES)}")
    presets = _CONFIGS[name]
    if (preset or "practical") not in presets:
        raise InputError(f"model {text!r}: unknown preset {preset!r}; {name} has {', '.join(presets)}")
    config = presets[preset or "practical"]
    config = changed(config, overrides, f"model {text!r}", name)
    if isinstance(config, SB3Config):
        check_installed(config)
    return ModelSpec(text, config)


def changed(config: AnyConfig, overrides: str, where: str, what: str) -> AnyConfig:
    """A dataclass with the fields of ``field=value,...`` changed, each value read as its field's type says.

    Raises `InputError`, beginning with `where`, for an unknown field of `what` or a value of another type.
    """
    hints = get_type_hints(type(config))
    changes = {}
    for part in filter(None, overrides.split(",")):
        field, equals, value = part.partition("=")
        if field not in hints or not equals:
            known = ", ".join(f.name for f in fields(config)) or "no fields"
            raise InputError(f"{where}: expected field=value, found {part!r}; {what} has {known}")
        changes[field] = _convert(value, hints[field], f"{where}: {field}")
    return replace(config, **changes)


def parse_models(texts: list[str] | tuple[str, ...]) -> list[ModelSpec]:
    """Several models in the order given, each once; ``all`` are those whose packages are installed."""
    if not texts:
        raise InputError(f"no models given; known models: {', '.join(MODEL_NAMES)}")
    expanded = [name for text in texts for name in (_installed() if text == ALL else [text])]
    return [parse_model(text) for text in dict.fromkeys(expanded)]


def _installed() -> list[str]:
    names = []
    for name in MODEL_NAMES:
        try:
            names.append(parse_model(name).label)
        except InputError:
            # An optional package is missing.
            continue
    return names


def _convert(value: str, hint: Any, where: str) -> Any:
    """`value` as the first type of `hint` that takes it."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if option is types.NoneType and value.lower() == "none":
            return None
        if option is bool and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if get_origin(option) is Literal and value in get_args(option):
            return value
        if option in (int, float):
            try:
                return option(value)
            except ValueError:
                continue
    expected = " or ".join(
        ", ".join(map(repr, get_args(o))) if get_origin(o) is Literal else "none" if o is types.NoneType else o.__name__
        for o in options
    )
    raise InputError(f"{where}: expected {expected}, found {value!r}")
