"""Model names: every one parses and builds, a change reaches its field, and what is not understood says what is."""

# pyright: reportAttributeAccessIssue=false

from dataclasses import fields, replace
from importlib.util import find_spec
from inspect import signature
from typing import get_args, get_origin, get_type_hints

import pytest
from sessiongym.agents.config import PRESETS, AgentConfig
from sessiongym.agents.sb3_agent import algorithm_of
from sessiongym.agents.sb3_config import SB3_PRESETS
from sessiongym.baselines.gru4rec_config import GRU4RecConfig
from sessiongym.errors import InputError
from sessiongym.evaluate.models import DEFAULT_MODELS, MODEL_NAMES, REFERENCES, parse_model, parse_models
from sessiongym.evaluate.protocol import Recommender
from sessiongym.evaluate.runs import Cell

WITH_PAPER = (
    "item-knn",
    "session-knn",
    "gru4rec",
    "rnn",
    "ii-rnn-ap",
    "ii-rnn-lhs",
    "sasrec",
    "sqn",
    *PRESETS["paper"],
)
SB3_NAMES = tuple(SB3_PRESETS["practical"])
if find_spec("sb3_contrib") is None:
    # The extra `contrib` is not installed; test_sb3.py says so where it skips.
    SB3_NAMES = tuple(name for name in SB3_NAMES if name != "sb3-qrdqn")
NAMES = tuple(name for name in MODEL_NAMES if name in SB3_NAMES or name not in SB3_PRESETS["practical"])
PRESET_NAMES = [*(f"{name}@paper" for name in WITH_PAPER), *(f"{name}@default" for name in SB3_NAMES)]


def _cell(text, data="d", seed=0):
    return Cell(parse_model(text), data, seed).name


def _refused(text):
    """The one line that an unknown text is refused with."""
    with pytest.raises(InputError) as caught:
        parse_model(text)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


@pytest.mark.parametrize("text", [*NAMES, *PRESET_NAMES, *DEFAULT_MODELS])
def test_every_name_and_preset_parses_and_builds(text):
    spec = parse_model(text)
    assert spec.label == text
    assert isinstance(spec.create(seed=0, device="cpu"), Recommender)


def test_the_default_models_hold_all_references_and_the_agents():
    assert set(REFERENCES) < set(DEFAULT_MODELS)
    assert {"a3c-f", "a3c-p", "irn-p"} < set(DEFAULT_MODELS)


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("name", list(PRESETS["paper"]))
def test_a_preset_is_the_configuration_of_that_name(name, preset):
    assert parse_model(f"{name}@{preset}").config == PRESETS[preset][name]


@pytest.mark.parametrize("preset", list(SB3_PRESETS))
@pytest.mark.parametrize("name", SB3_NAMES)
def test_a_preset_of_stable_baselines3_is_the_configuration_of_that_name(name, preset):
    assert parse_model(f"{name}@{preset}").config == SB3_PRESETS[preset][name]


@pytest.mark.parametrize("name", SB3_NAMES)
def test_the_default_preset_has_the_hyperparameters_of_stable_baselines3(name):
    algorithm = algorithm_of(SB3_PRESETS["default"][name])[0]
    defaults = {p.name: p.default for p in signature(algorithm.__init__).parameters.values()}
    arguments = SB3_PRESETS["default"][name].algorithm_arguments()
    if defaults["max_grad_norm"] is None:
        defaults["max_grad_norm"] = float("inf")
    assert arguments == {field: defaults[field] for field in arguments}


def test_without_contrib_the_model_that_needs_it_names_the_extra(monkeypatch):
    monkeypatch.setattr("sessiongym.agents.sb3_config.find_spec", lambda name: None)
    assert "pip install 'sessiongym[contrib]'" in _refused("sb3-qrdqn")
    assert parse_model("sb3-dqn").trained


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("irn-p:epochs=7", {"epochs": 7}),
        ("irn-p:gamma=0.5", {"gamma": 0.5}),
        ("irn-p:learning_rate=1e-4", {"learning_rate": 1e-4}),
        ("irn-p:density=1", {"density": 1.0}),
        ("irn-p:ranking=policy,bootstrap=true", {"ranking": "policy", "bootstrap": True}),
        ("irn-p:ranking=policy,n_steps=5", {"ranking": "policy", "n_steps": 5}),
        ("irn-p:bootstrap=False", {"bootstrap": False}),
        ("irn-p:embedding_dim=None,tied=false", {"embedding_dim": None, "tied": False}),
        ("irn-p:embedding_dim=32", {"embedding_dim": 32}),
        ("irn-p:reconstruction=before,drop=click", {"reconstruction": "before", "drop": "click"}),
    ],
)
def test_a_change_reaches_its_field_with_its_type(text, changes):
    config = parse_model(text).config
    assert config == replace(PRESETS["practical"]["irn-p"], **changes)
    for name, value in changes.items():
        assert type(getattr(config, name)) is type(value)


@pytest.mark.parametrize("text", NAMES)
def test_every_field_takes_its_own_value_back(text):
    """So a type of field that the parser does not know cannot slip in."""
    config = parse_model(text).config
    for field in fields(config):
        value = getattr(config, field.name)
        assert parse_model(f"{text}:{field.name}={value}").config == config
        hint = get_type_hints(type(config))[field.name]
        for choice in get_args(hint) if get_origin(hint) is not None else ():
            if isinstance(choice, str) and choice != "expected_reward":
                # Some choices are particular about other fields.
                plain = {AgentConfig: "ranking=policy,", GRU4RecConfig: "n_sample=8,"}.get(type(config), "")
                assert getattr(parse_model(f"{text}:{plain}{field.name}={choice}").config, field.name) == choice


def test_a_misspelt_name_is_answered_with_the_near_one_and_all_others():
    message = _refused("a3c-pp")
    assert "did you mean 'a3c-p'" in message
    assert all(name in message for name in MODEL_NAMES)
    assert "did you mean" not in _refused("zzzz")


def test_an_unknown_preset_is_answered_with_those_of_the_model():
    assert "practical, paper" in _refused("irn-p@papers").replace("paper, practical", "practical, paper")
    assert "practical" in _refused("most-popular@paper")


@pytest.mark.parametrize("part", ["epoch=3", "epochs", "=3", "epochs:3"])
def test_an_unknown_field_is_answered_with_the_fields(part):
    message = _refused(f"a3c-p:{part}")
    assert repr(part) in message
    assert all(field.name in message for field in fields(AgentConfig))


def test_a_model_without_fields_says_so():
    assert "no fields" in _refused("s-pop:k=3")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("epochs=ten", "int"),
        ("epochs=1.5", "int"),
        ("gamma=high", "float"),
        ("bootstrap=maybe", "bool"),
        ("embedding_dim=wide", "int or none"),
        ("reconstruction=behind", "'after', 'before', 'alone'"),
    ],
)
def test_a_value_of_the_wrong_type_is_answered_with_the_right_one(change, expected):
    message = _refused(f"irn-p:{change}")
    field, _, value = change.partition("=")
    assert field in message and repr(value) in message and expected in message


@pytest.mark.parametrize(
    "change",
    [
        "epochs=0",
        "lanes=0",
        "unroll=-1",
        "depth=0",
        "breadth=0",
        "hidden_units=0",
        "embedding_dim=0",
        "embedding_dim=none",
        "copy_window=-1",
        "dropout=1",
        "dropout=-0.1",
        "patience=-1",
        "learning_rate=-1",
        "learning_rate=nan",
        "learning_rate_end=2",
        "max_events=0",
        "clip_norm=0",
        "gamma=1.5",
        "density=2",
        "density=nan",
        "imagination_weight=-1",
        "imagination_weight=inf",
        "value_coefficient=-0.5",
        "imagination_start=-1",
    ],
)
def test_a_value_out_of_range_is_refused_before_anything_is_trained(change):
    # practical ties the output to the embedding, which therefore cannot be none.
    assert change.partition("=")[0] in _refused(f"irn-p:{change}")


@pytest.mark.parametrize(
    "text",
    [
        "sb3-ppo:lanes=0",
        "sb3-ppo:batch_size=1",
        "sb3-ppo:lanes=1,n_steps=1",
        "sb3-ppo:gae_lambda=2",
        "sb3-a2c:ent_coef=-1",
        "sb3-a2c:max_grad_norm=0",
        "sb3-dqn:gamma=1.1",
        "sb3-dqn:total_steps=0",
        "sb3-dqn:exploration_fraction=0",
        "sb3-dqn:learning_rate=inf",
        "sb3-qrdqn:n_quantiles=0",
    ],
)
def test_a_value_out_of_range_is_refused_for_stable_baselines3_as_well(text):
    assert text.partition("=")[0].rpartition(":")[2] in _refused(text)


def test_what_the_ranking_by_expected_reward_cannot_use_is_refused_with_the_way_out():
    message = _refused("a3c-p:click_reward=1,n_steps=3")
    assert "found click_reward=1.0, n_steps=3; add ranking=policy" in message
    assert parse_model("a3c-p:click_reward=1,n_steps=3,ranking=policy").config.n_steps == 3


def test_models_asked_for_twice_are_one_and_keep_their_order():
    specs = parse_models(["s-pop", "a3c-p", "s-pop", "most-popular"])
    assert [spec.label for spec in specs] == ["s-pop", "a3c-p", "most-popular"]
    with pytest.raises(InputError, match="known models"):
        parse_models([])


def test_equal_configurations_share_a_cell_whatever_their_label():
    config = parse_model("a3c-p").config
    assert _cell("a3c-p") == _cell("a3c-p@practical") == _cell(f"a3c-p:epochs={config.epochs}")
    assert _cell("a3c-p@paper:policy_weight=one,value_coefficient=0") == _cell("lstm-purchase@paper")
    assert _cell("irn-p@paper:imagination_weight=0") == _cell("a3c-p@paper")
    for text in NAMES:
        config = parse_model(text).config
        for field in fields(config):
            assert _cell(text) == _cell(f"{text}:{field.name}={getattr(config, field.name)}"), field.name


def test_different_models_data_and_seeds_have_cells_of_their_own():
    texts = [*NAMES, *PRESET_NAMES, "a3c-p:epochs=3", "most-recent:bought=last"]
    names = [_cell(text) for text in texts]
    names += [_cell("a3c-p", data="e"), _cell("a3c-p", seed=1)]
    assert len(set(names)) == len(names)


def test_the_seed_of_a_model_without_random_draws_does_not_matter():
    assert _cell("s-pop", seed=3) == _cell("s-pop", seed=0)
