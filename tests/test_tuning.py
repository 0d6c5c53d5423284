"""Tuning: validation alone, stopped at any moment and continued, and a result that experiments read back."""

import csv
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sessiongym.baselines.config import ItemKNNConfig, SessionKNNConfig
from sessiongym.cli import main
from sessiongym.envs.log import PreparedData
from sessiongym.errors import InputError
from sessiongym.evaluate import tuned, tuning
from sessiongym.evaluate.models import _CONFIGS, MODEL_NAMES, parse_model
from sessiongym.evaluate.runs import train_run
from sessiongym.evaluate.search_spaces import Choices, Range, search_space, with_changes
from sessiongym.evaluate.tuned import tuned_specs
from sessiongym.evaluate.tuning import tune
from sessiongym.evaluate.views import views_from_json, views_to_json

LSTM = "lstm:hidden_units=8,embedding_dim=8,epochs=3"
KNN_TRIALS = 14
"""More than the ten that the sampler draws at random."""

TUNABLE = [
    f"{name}@{preset}" if preset != "practical" else name
    for name in MODEL_NAMES
    for preset in _CONFIGS[name]
    if name not in ("s-pop", "sb3-qrdqn")
]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shop"
    main(["shop", "--sessions", "200", "--items", "40", "--min-item-support", "1", "--out", str(folder)])
    return folder


@pytest.fixture(autouse=True)
def threads():
    """The command line trains with one thread; other tests keep theirs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def knn(shop, tmp_path_factory):
    """A study of session-KNN that nobody disturbs."""
    return tune("session-knn", shop, tmp_path_factory.mktemp("knn"), trials=KNN_TRIALS)


@pytest.fixture(scope="module")
def lstm(shop, tmp_path_factory):
    """A study of a trained model that nobody disturbs."""
    torch.set_num_threads(1)
    return tune(LSTM, shop, tmp_path_factory.mktemp("lstm"), trials=3)


def _scores(result):
    return [(trial.number, trial.spec, trial.score, trial.error) for trial in result.trials]


def _draw(domain, generator):
    if isinstance(domain, Choices):
        return domain.options[generator.integers(len(domain.options))]
    if domain.whole:
        return int(generator.integers(domain.low, domain.high, endpoint=True))
    return float(generator.uniform(domain.low, domain.high))


def test_every_model_with_a_knob_has_a_space():
    without = []
    for name in MODEL_NAMES:
        config = _CONFIGS[name]["practical"]
        if not fields(config):
            without.append(name)
        elif name != "sb3-qrdqn":
            assert search_space(parse_model(name))
    assert without == ["s-pop"]
    with pytest.raises(InputError, match="s-pop: has nothing to tune"):
        search_space(parse_model("s-pop"))


@pytest.mark.parametrize("model", TUNABLE)
def test_what_a_space_proposes_is_read_back_from_its_text_to_exactly_that(model):
    spec, generator = parse_model(model), np.random.default_rng(0)
    space = search_space(spec)
    for _ in range(30):
        values = {field: _draw(domain, generator) for field, domain in space.items()}
        config = parse_model(with_changes(spec, values)).config
        found = {field: getattr(config, field) for field in values}
        assert found == values and list(map(type, found.values())) == list(map(type, values.values()))
        same = ("epochs", "patience", "total_steps", "max_events", "density", "validate_by")
        assert all(getattr(config, name, None) == getattr(spec.config, name, None) for name in same)


@pytest.mark.parametrize("name", [name for name in MODEL_NAMES if name not in ("s-pop", "sb3-qrdqn")])
def test_a_space_holds_the_practical_preset(name):
    spec = parse_model(name)
    outside = {f: d for f, d in search_space(spec).items() if getattr(spec.config, f) not in d}
    assert outside == {}


@given(st.floats(1e-12, 1e12))
def test_any_float_survives_the_text_of_a_model(value):
    spec = parse_model("lstm:epochs=2")
    text = with_changes(spec, {"learning_rate": value})
    assert parse_model(text).config == replace(spec.config, learning_rate=value)


def test_a_part_that_a_model_goes_without_is_not_tuned():
    spaces = {name: set(search_space(parse_model(name))) for name in ("lstm", "a3c-f", "a3c-p", "irn-p", "prn-p")}
    assert spaces["irn-p"] - spaces["a3c-p"] == {"imagination_weight", "breadth", "depth"}
    assert spaces["prn-p"] - spaces["a3c-p"] == {"imagination_weight"}
    assert spaces["a3c-f"] - spaces["lstm"] == {"value_coefficient", "gamma", "n_steps"}


def test_a_field_that_the_model_sets_stays_as_it_is_unless_it_is_asked_for():
    spec = parse_model("lstm:dropout=0.2")
    assert "dropout" not in search_space(spec)
    assert search_space(spec, ["dropout=0.1..0.3"])["dropout"] == Range(0.1, 0.3)
    assert with_changes(spec, {"dropout": 0.25}) == "lstm:dropout=0.25"


def test_the_embedding_of_a_tied_layer_follows_the_units_unless_it_is_set():
    assert with_changes(parse_model("lstm"), {"hidden_units": 64}) == "lstm:hidden_units=64,embedding_dim=64"
    fixed = parse_model("lstm:embedding_dim=128")
    assert with_changes(fixed, {"hidden_units": 64}) == "lstm:embedding_dim=128,hidden_units=64"
    assert with_changes(parse_model("lstm@paper"), {"hidden_units": 64}) == "lstm@paper:hidden_units=64"


def test_a_space_on_the_command_line_has_the_types_of_the_fields():
    asked = ["learning_rate=1e-4..1e-2:log", "n_sample=none|512", "hidden_units=8..64:log", "order=time|shuffled"]
    space = search_space(parse_model("gru4rec"), asked)
    rate, units = space["learning_rate"], space["hidden_units"]
    assert isinstance(rate, Range) and rate == Range(1e-4, 1e-2, log=True) and not rate.whole
    assert space["n_sample"] == Choices((None, 512)) and space["order"] == Choices(("time", "shuffled"))
    assert isinstance(units, Range) and units == Range(8, 64, log=True) and units.whole
    assert search_space(parse_model("item-knn"), ["itself=true|false"])["itself"] == Choices((True, False))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dropout", r"--space dropout: expected field=low\.\.high, field=low\.\.high:log or field=a\|b\|c"),
        ("dropuot=0..0.5", "lstm has no field 'dropuot'; did you mean 'dropout'"),
        ("dropout=0.5..0.1", "expected low below high"),
        ("dropout=0..0.5:log", "log with low above 0"),
        ("dropout=0..0.5:ln", "expected low below high"),
        ("dropout=0..2", r"--space dropout=0\.\.2: dropout: expected a share in \[0, 1\), found 2"),
        ("dropout=0..x", "dropout: expected float, found 'x'"),
        ("dropout=0.1", "to fix the field, tune lstm:dropout=0.1"),
        ("tied=true..false", r"expected a range of numbers; give the values as tied=a\|b\|c"),
        ("order=shuffled|sorted", "order: expected 'chronological', 'shuffled', found 'sorted'"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(text, message):
    with pytest.raises(InputError, match=message) as error:
        search_space(parse_model("lstm"), [text])
    assert "\n" not in str(error.value)


def test_the_test_split_is_never_opened(shop, lstm, tmp_path):
    shutil.copytree(shop, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "test")
    assert _scores(tune(LSTM, tmp_path / "data", tmp_path / "out", trials=3)) == _scores(lstm)


def test_trial_0_is_the_model_as_it_is_with_the_score_of_the_epoch_that_a_run_keeps(shop, lstm, tmp_path):
    data = PreparedData.open(shop)
    train_run(tmp_path / "run", parse_model(LSTM), data, 0, "cpu")
    records = map(json.loads, (tmp_path / "run" / "scalars.jsonl").read_text().splitlines())
    assert lstm.trials[0].spec == LSTM
    assert lstm.trials[0].score == max(record["validation"] for record in records)
    assert lstm.best.score == max(trial.score for trial in lstm.trials)


@pytest.mark.parametrize("function", ["_next", "_run_trial", "_validation_score", "_add", "write_tuning"])
def test_an_interrupted_study_ends_as_one_left_alone(shop, knn, tmp_path, monkeypatch, function):
    # Once before and once after the step, in the sixth and the twelfth trial.
    real, calls = getattr(tuning, function), []

    def interrupted(*arguments, **options):
        calls.append(None)
        if len(calls) in (6, 12) or (function == "write_tuning" and len(calls) == 1):
            raise KeyboardInterrupt
        result = real(*arguments, **options)
        if len(calls) in (7, 13):
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(tuning, function, interrupted)
    stops, result = 0, None
    while result is None:
        try:
            result = tune("session-knn", shop, tmp_path, trials=KNN_TRIALS)
        except KeyboardInterrupt:
            stops += 1
            assert not (tmp_path / "session-knn" / "best.json").exists()
    assert stops == (1 if function == "write_tuning" else 4)
    assert _scores(result) == _scores(knn)


@pytest.mark.slow
def test_a_killed_training_goes_on_from_its_checkpoint_and_counts_once(shop, lstm, tmp_path, monkeypatch):
    script = f"""
import os, signal, torch
from pathlib import Path
from sessiongym.evaluate import tuning

def update(display, job, done, total, text):
    if job == "trial 1" and text.startswith("epoch 3"):
        os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
tuning.ProgressDisplay.update = update
tuning.tune({LSTM!r}, Path({str(shop)!r}), Path({str(tmp_path)!r}), trials=3)
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == -signal.SIGKILL
    shown = []
    monkeypatch.setattr(
        tuning.ProgressDisplay, "update", lambda display, job, done, total, text: shown.append((job, text))
    )
    assert _scores(tune(LSTM, shop, tmp_path, trials=3)) == _scores(lstm)
    assert shown[0][0] == "trial 1" and shown[0][1].startswith("epoch 3/3")
    assert not list((tmp_path / LSTM).glob("trials/*/checkpoint.safetensors"))


@pytest.mark.slow
def test_a_study_killed_at_random_moments_ends_as_one_left_alone(shop, tmp_path):
    script = "import sys, torch; from pathlib import Path; from sessiongym.evaluate.tuning import tune; "
    script += "torch.set_num_threads(1); tune(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), trials=5)"

    def run(out, seconds=None):
        """The exit status of a process, killed so many seconds after it took up the study, and how many it had."""
        lock = out / LSTM / "lock"
        lock.unlink(missing_ok=True)
        with subprocess.Popen([sys.executable, "-c", script, LSTM, shop, out], stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and not lock.exists():
                time.sleep(0.001)
            started = time.monotonic()
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
        return process.returncode, time.monotonic() - started

    returned, seconds = run(tmp_path / "whole")
    assert returned == 0
    draw = random.Random(0)
    # The first comes early enough for a machine that has become several times as fast.
    moments = [0.1, *(draw.uniform(0, 1) for _ in range(7))]
    returned = [run(tmp_path / "cut", moment * seconds)[0] for moment in moments]
    assert returned[0] == -signal.SIGKILL and set(returned) <= {0, -signal.SIGKILL}
    assert run(tmp_path / "cut")[0] == 0
    whole, cut = (_scores(tune(LSTM, shop, tmp_path / name, trials=5)) for name in ("whole", "cut"))
    assert cut == whole


def test_more_trials_go_on_and_fewer_are_the_first_ones(shop, knn, tmp_path, monkeypatch):
    first = tune("session-knn", shop, tmp_path, trials=4)
    assert _scores(first) == _scores(knn)[:4]
    assert _scores(tune("session-knn", shop, tmp_path, trials=KNN_TRIALS)) == _scores(knn)
    monkeypatch.setattr(tuning, "_run_trial", None)
    assert _scores(tune("session-knn", shop, tmp_path, trials=4)) == _scores(first)
    assert json.loads((tmp_path / "session-knn" / "best.json").read_text())["trials"] == 4


def test_another_seed_tries_other_configurations(shop, knn, tmp_path):
    other = tune("session-knn", shop, tmp_path, trials=3, seed=1)
    assert not {trial.spec for trial in other.trials[1:]} & {trial.spec for trial in knn.trials[1:]}


def test_a_space_no_larger_than_the_budget_is_tried_in_full_and_each_once(shop, tmp_path):
    asked = ["k=10..12", "alpha=0.5|0.75"]
    result = tune("item-knn:itself=true,regularisation=5", shop, tmp_path, trials=9, space=asked)
    configs = [parse_model(trial.spec).config for trial in result.trials]
    tried = [(config.k, config.alpha) for config in configs if isinstance(config, ItemKNNConfig)]
    # The preset's k of 100 is outside.
    grid = [(k, alpha) for k in (10, 11, 12) for alpha in (0.5, 0.75)]
    assert tried == [(100, 0.75), *grid]
    assert any("the space holds no more, of a budget of 9" in note for note in result.notes)


def test_a_configuration_tried_before_is_not_trained_again(shop, tmp_path, monkeypatch):
    trained, real = [], tuning._validation_score

    def counting(spec, *rest):
        trained.append(spec.label)
        return real(spec, *rest)

    monkeypatch.setattr(tuning, "_validation_score", counting)
    asked = ["k=10|20|30|40", "m=100|200|300"]
    spec = "session-knn:similarity=cosine,position=log,decay=div,idf_weight=2"
    result = tune(spec, shop, tmp_path, trials=12, space=asked)
    assert len(trained) == len({trial.spec for trial in result.trials}) < len(result.trials) == 12
    assert len({(trial.spec, trial.score) for trial in result.trials}) == len(trained)


def test_a_configuration_that_the_model_refuses_is_a_failed_trial(shop, tmp_path):
    model = "irn-p:hidden_units=8,embedding_dim=8,epochs=1,max_events=1,branching=tree"
    fixed = "dropout=0,learning_rate=0.01,value_coefficient=0.2,supervised_weight=5,purchase_worth=2"
    asked = ["breadth=4|16", "depth=2|3"]
    result = tune(f"{model},{fixed},imagination_weight=0.1", shop, tmp_path, trials=5, space=asked)
    failed = [trial for trial in result.trials if trial.score is None]
    assert [parse_text(trial.spec) for trial in failed] == [("16", "3")]
    assert "a tree of breadth 16 and depth 3" in failed[0].error
    assert any("1 of them failed" in note for note in result.notes)
    with (result.folder / "trials.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["score"] == "" for row in rows] == [trial.score is None for trial in result.trials]


def parse_text(text):
    values = dict(part.split("=") for part in text.split(":")[1].split(","))
    return values["breadth"], values["depth"]


def test_a_model_that_cannot_be_trained_on_the_data_says_so(shop, tmp_path):
    for model in ("ii-rnn-ap", "bpr:users=known"):
        with pytest.raises(InputError, match=f"{model}: reads what a user did before, and .*shop has no users"):
            tune(model, shop, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_of_trial_0_is_an_error(shop, tmp_path, monkeypatch):
    def diverge(*_):
        raise InputError("scores contain NaN")

    monkeypatch.setattr(tuning, "_validation_score", diverge)
    with pytest.raises(InputError, match="scores contain NaN"):
        tune("session-knn", shop, tmp_path)


def test_another_study_is_never_mixed_in(shop, tmp_path):
    tune("most-recent", shop, tmp_path)
    with pytest.raises(InputError, match=r"already holds another study \(it differs in seed\)"):
        tune("most-recent", shop, tmp_path, seed=1)
    other = tmp_path / "other"
    main(["shop", "--sessions", "200", "--items", "40", "--min-item-support", "1", "--seed", "1", "--out", str(other)])
    with pytest.raises(InputError, match=r"it differs in data"):
        tune("most-recent", other, tmp_path)


def test_what_is_no_study_is_left_alone(shop, tmp_path):
    foreign = tmp_path / "most-recent"
    foreign.mkdir()
    (foreign / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="most-recent: exists and is not a study"):
        tune("most-recent", shop, tmp_path)
    assert [path.name for path in foreign.iterdir()] == ["manifest.json"]
    (foreign / "study.sqlite").write_text("nonsense, and long enough to be taken for a header of a file of SQLite")
    with pytest.raises(InputError, match=r"study.sqlite: cannot be read as a study") as error:
        tune("most-recent", shop, tmp_path)
    assert "\n" not in str(error.value)


def test_a_study_is_worked_on_by_one_process_at_a_time(shop, tmp_path):
    with tuning._locked(tmp_path / "most-recent"):
        with pytest.raises(InputError, match="another process is at work on this study"):
            tune("most-recent", shop, tmp_path)
    assert tune("most-recent", shop, tmp_path).trials


@pytest.mark.parametrize(("options", "flag"), [({"trials": 0}, "--trials"), ({"seed": -1}, "--seed")])
def test_options_out_of_range_are_refused(shop, tmp_path, options, flag):
    with pytest.raises(InputError, match=flag):
        tune("most-recent", shop, tmp_path, **options)


def test_a_folder_name_with_any_character_holds_a_study(shop, tmp_path):
    out = tmp_path / "a b?c={x}%20#1"
    assert len(tune("most-recent", shop, out).trials) == 2
    assert len(tune("most-recent", shop, out).trials) == 2
    assert (out / "most-recent" / "study.sqlite").exists()


def test_the_result_says_what_it_is_and_what_it_is_not(shop, knn):
    content = json.loads((knn.folder / "best.json").read_text())
    assert parse_model(content["spec"]).config == parse_model(knn.best.spec).config
    assert (content["model"], content["preset"], content["budget"]) == ("session-knn", "practical", KNN_TRIALS)
    assert content["data"] == PreparedData.open(shop).fingerprint()
    assert content["preset_score"] == knn.trials[0].score and content["best_score"] == knn.best.score
    assert "optuna" in content["versions"]
    for notes in (content["notes"], knn.notes, *(view.notes for view in knn.views)):
        assert any("biased upwards" in note and "no result" in note for note in notes)
        assert any(note.startswith(f"Budget: {KNN_TRIALS} trials") for note in notes)
        assert set(PreparedData.open(shop).notes) <= set(notes)


def test_the_views_and_the_file_hold_the_trials(knn):
    table, chart = knn.views
    assert views_from_json(json.loads(json.dumps(views_to_json(knn.views))), "here") == list(knn.views)
    assert [row.label for row in table.rows] == [trial.spec for trial in knn.trials]
    best, each = chart.series
    scores = [trial.score for trial in knn.trials]
    assert list(each.y) == scores and list(best.y) == [max(scores[: n + 1]) for n in range(KNN_TRIALS)]
    with (knn.folder / "trials.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [float(row["score"]) for row in rows] == scores
    assert [float(row["best_so_far"]) for row in rows] == list(best.y)
    configs = [parse_model(row["spec"]).config for row in rows]
    assert [int(row["k"]) for row in rows] == [config.k for config in configs if isinstance(config, SessionKNNConfig)]


def test_experiments_find_the_tuned_models_by_the_names_that_were_asked(shop, tmp_path):
    results = {model: tune(model, shop, tmp_path) for model in ("most-recent", "most-popular")}
    found = tuned_specs(tmp_path, PreparedData.open(shop).fingerprint())
    assert found == {model: result.best.spec for model, result in results.items()}
    assert found["most-recent"] == "most-recent:bought=last"


def test_a_result_that_does_not_fit_is_refused(shop, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"expected MODEL/best.json, found none"):
        tuned_specs(tmp_path, "0")
    tune("most-recent", shop, tmp_path)
    fingerprint, file = PreparedData.open(shop).fingerprint(), tmp_path / "most-recent" / "best.json"
    with pytest.raises(InputError, match=rf"best.json: tuned on data with fingerprint {fingerprint} .*, expected 0"):
        tuned_specs(tmp_path, "0")
    content = json.loads(file.read_text())
    for change, message in [
        ({"format": "other"}, "expected format 'sessiongym.tuned'"),
        ({"schema": 99}, "written with schema 99"),
        ({"config": {"bought": "keep"}}, "the presets of most-recent have changed"),
        ({"spec": "most-recent:gone=1"}, "best.json: .*expected field=value"),
    ]:
        file.write_text(json.dumps({**content, **change}))
        with pytest.raises(InputError, match=message):
            tuned_specs(tmp_path, fingerprint)
    for text, message in [
        ("{", "best.json: cannot be read"),
        ('{"format": "sessiongym.tuned", "schema": 1}', "config, "),
    ]:
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            tuned_specs(tmp_path, fingerprint)


def test_reading_results_loads_nothing_heavy(tmp_path):
    heavy = ("torch", "numba", "pandas", "pyarrow", "optuna", "sqlalchemy")
    code = f"import sys, {tuned.__name__}, {tuning.__name__}; print(*(name for name in {heavy} if name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr
