"""Online learning: nothing is ranked by who has seen it, everything once and in order, the same after an interruption,
and training as it would be without the ranking."""

# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportArgumentType=false

import os
import signal
import subprocess
import sys
from dataclasses import replace

import numba
import numpy as np
import pandas as pd
import pytest
import torch
from sessiongym.agents.a3c import A3CLearner
from sessiongym.agents.config import PRESETS
from sessiongym.agents.recurrent import RecurrentAgent
from sessiongym.agents.training import OnlineTrainer
from sessiongym.baselines.config import MostPopularConfig
from sessiongym.baselines.popularity import MostPopular
from sessiongym.baselines.recency import MostRecent
from sessiongym.baselines.session_knn import SessionKNN
from sessiongym.envs.log import PreparedData, SessionLog
from sessiongym.errors import InputError
from sessiongym.evaluate import online
from sessiongym.evaluate.events import rank_events
from sessiongym.evaluate.metrics import recall
from sessiongym.evaluate.models import parse_model
from sessiongym.evaluate.online import check_online, online_curves, read_online, run_online
from sessiongym.evaluate.ranks import rank_bounds

N = 20


def small(name, preset="practical", **changes):
    """A preset in its own shape, cut down to a few units and 12 events an update."""
    config = PRESETS[preset][name]
    dim = None if config.embedding_dim is None else 6
    size = {"hidden_units": 8, "embedding_dim": dim, "distilled_units": 4, "lanes": 4, "unroll": 3}
    # High, so that one update more or less shows in the ranks.
    size["learning_rate"] = 0.05
    schedule = {"refresh_events": 60, "imagination_start": min(config.imagination_start, 50)}
    return replace(config, **{**size, **schedule, **changes})


CONFIGS = {
    "a3c-p": small("a3c-p"),
    "a3c-f": small("a3c-f"),
    "irn-p": small("irn-p"),
    "irn-f@paper": small("irn-f", "paper"),
    "prn-p@paper": small("prn-p", "paper"),
    "distilled": small("irn-p", "paper", imagination_policy="distilled", imagination_gate=0.3),
    "history": small("a3c-f", "paper", history=3, value_target="online"),
    "lstm": small("lstm"),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
MODELS = {
    **{name: lambda config=config: RecurrentAgent(config, 1) for name, config in CONFIGS.items()},
    "most-popular": MostPopular,
    "most-recent": MostRecent,
}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


@pytest.fixture(autouse=True)
def one_thread():
    n_threads = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads[0])
    numba.set_num_threads(n_threads[1])


def make_log(seed, lengths):
    rng = np.random.default_rng(seed)
    n_events = int(np.sum(lengths))
    frame = pd.DataFrame(
        {
            "session": np.repeat(np.arange(len(lengths)), lengths),
            "item": rng.integers(0, N, n_events),
            "time": np.arange(n_events),
            "kind": (rng.random(n_events) < 0.25).astype(int),
        }
    )
    return SessionLog.from_pandas(frame, item_id=np.arange(N))


def make_data(train):
    manifest = {"notes": []}
    return PreparedData(train=train, valid=make_log(8, [3, 4]), test=make_log(9, [2, 5, 1, 4]), manifest=manifest)


@pytest.fixture(scope="module")
def data():
    # Sessions of one event among them, and a long one that is left alone at the end.
    return make_data(make_log(4, [*np.random.default_rng(4).integers(1, 9, 40), 30]))


def run(make, data, folder, **options):
    folder.mkdir(exist_ok=True)
    model = make()
    return model, run_online(model, data, folder=folder, **{"points": 4, **options})


def assert_equal_weights(a, b):
    for (name, x), y in zip(a.policy.state_dict().items(), b.policy.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


def assert_equal_results(found, expected):
    for name in ("stream", "test", "events"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(expected, name), check_exact=True)


@pytest.fixture
def taught(monkeypatch):
    """The steps that each update of an agent has learned from, as (item, action) pairs."""
    updates = []
    losses = A3CLearner._losses

    def recording(learner, steps, returns, apart):
        rows = steps.chosen(torch.stack([steps.item.flatten(), steps.action.flatten()], dim=1))
        updates.append(rows.tolist())
        return losses(learner, steps, returns, apart)

    monkeypatch.setattr(A3CLearner, "_losses", recording)
    return updates


def pairs(log):
    event = log.batch().target_events()
    return np.stack([log.item[event - 1], log.item[event]], axis=1)


@every_model
def test_every_event_but_the_first_of_a_session_is_ranked_once(make, data, tmp_path):
    _, result = run(make, data, tmp_path)
    table, log = result.stream, data.train
    event = log.offset[table["session"]] + table["position"] - 1
    assert sorted(event) == log.batch().target_events().tolist()
    np.testing.assert_array_equal(table["item"], log.item[event])
    np.testing.assert_array_equal(table["kind"], log.kind[event])
    assert np.all(table["rank_low"] >= 0) and np.all(table["rank_high"] > table["rank_low"])
    assert np.all(table["rank_high"] <= N)


@every_config
def test_every_event_is_learned_from_once_after_it_was_ranked(config, data, tmp_path, taught):
    _, result = run(lambda: RecurrentAgent(config), data, tmp_path)
    assert sorted(map(tuple, np.concatenate(taught))) == sorted(map(tuple, pairs(data.train)))
    log = data.train
    event = (log.offset[result.stream["session"]] + result.stream["position"] - 1).to_numpy()
    # In the order in which they were ranked, each by weights that had fewer updates than the one that learns from it.
    np.testing.assert_array_equal(np.stack([log.item[event - 1], log.item[event]], axis=1), np.concatenate(taught))
    learned_in = np.repeat(np.arange(len(taught)), [len(rows) for rows in taught])
    assert np.all(result.stream["update"] <= learned_in)
    assert max(map(len, taught)) == config.lanes * config.unroll


@every_config
def test_lanes_without_a_session_teach_nothing(config, data, tmp_path, monkeypatch):
    expected, _ = run(lambda: RecurrentAgent(config), data, tmp_path / "as it was")
    following, rng, n_other = online._Stream.next, np.random.default_rng(1), 0

    def other(stream):
        nonlocal n_other
        chunk = following(stream)
        if chunk.real is None:
            return chunk
        n_other += np.count_nonzero(~chunk.real)
        item, action = (
            np.where(chunk.real, column, rng.integers(0, N, column.shape)).astype(np.int32)
            for column in (chunk.item, chunk.action)
        )
        reward = np.where(chunk.real, chunk.reward, 7).astype(np.float32)
        return replace(chunk, item=item, action=action, reward=reward)

    monkeypatch.setattr(online._Stream, "next", other)
    found, _ = run(lambda: RecurrentAgent(config), data, tmp_path / "another")
    assert n_other > 50
    # Rows of a table that are read are brought up to date, which rounds.
    torch.testing.assert_close(found.policy.state_dict(), expected.policy.state_dict(), rtol=1e-5, atol=1e-6)


def test_sessions_begin_in_the_order_of_their_start_and_go_on_without_a_gap(data, tmp_path):
    _, result = run(MODELS["a3c-p"], data, tmp_path)
    begun = result.stream["session"].drop_duplicates()
    assert begun.is_monotonic_increasing
    for _, positions in result.stream.groupby("session")["position"]:
        assert positions.tolist() == list(range(2, len(positions) + 2))


@every_model
def test_no_rank_depends_on_its_event_or_any_that_is_ranked_later(make, data, tmp_path):
    _, expected = run(make, data, tmp_path / "as it was")
    log = data.train
    event = (log.offset[expected.stream["session"]] + expected.stream["position"] - 1).to_numpy()
    # The last event of an update half-way: those before it in that update must be ranked before anything is learned.
    update = expected.stream["update"].to_numpy()
    place = int(np.flatnonzero(update == update.max() // 2)[-1])
    known = np.concatenate([event[:place], log.offset[np.unique(expected.stream["session"][:place])]])
    # That event, the rest of the stream, and sessions that have not begun.
    poisoned = np.setdiff1d(np.arange(log.n_events), known)
    item, kind = log.item.copy(), log.kind.copy()
    item[poisoned], kind[poisoned] = (item[poisoned] + 7) % N, 1 - kind[poisoned]
    changed = make_data(replace(log, item=item, kind=kind))
    _, found = run(make, changed, tmp_path / "poisoned")
    columns = ["session", "position", "update", "rank_low", "rank_high"]
    before, expected_before = (result.stream[columns][:place] for result in (found, expected))
    pd.testing.assert_frame_equal(before, expected_before, check_exact=True)
    assert not found.stream.equals(expected.stream)


@every_model
def test_a_stream_that_is_cut_off_ranks_the_same_up_to_there(make, data, tmp_path):
    _, whole = run(make, data, tmp_path / "whole")
    part = data.train.select(np.arange(28))
    _, cut = run(make, make_data(part), tmp_path / "cut")
    # Until a lane of the shorter stream finds no session any more.
    n_same = int(np.argmax(whole.stream["session"].to_numpy() >= 28))
    assert n_same > 60
    pd.testing.assert_frame_equal(whole.stream[:n_same], cut.stream[:n_same], check_exact=True)


@every_config
def test_ranks_are_those_of_the_evaluator_for_the_agent_with_those_weights(config, data, tmp_path, monkeypatch):
    """Dropout is off, the ranking rule is the agent's own, and the session so far is encoded by the present weights."""
    by_update = []
    learn = OnlineTrainer.learn

    def ranking(trainer, rollouts):
        with trainer.between():
            by_update.append(rank_events(trainer.agent, data.train))
        learn(trainer, rollouts)

    monkeypatch.setattr(OnlineTrainer, "learn", ranking)
    _, result = run(lambda: RecurrentAgent(config), data, tmp_path)
    everything = pd.concat(by_update, keys=range(len(by_update)), names=["update"]).reset_index("update")
    keys = ["update", "session", "position"]
    expected = result.stream[keys].merge(everything, on=keys, how="left", validate="one_to_one")
    # Sessions are encoded in other batches there, so that scores a rounding apart may change places.
    differ = (result.stream[["rank_low", "rank_high"]] != expected[["rank_low", "rank_high"]]).any(axis=1)
    assert differ.mean() < 0.01


@every_config
def test_ranking_changes_nothing_in_what_is_trained(config, data, tmp_path, monkeypatch):
    ranking, _ = run(lambda: RecurrentAgent(config), data, tmp_path / "ranking")
    monkeypatch.setattr(OnlineTrainer, "score_rows", lambda trainer, batch, rows: torch.zeros(len(rows), N))
    monkeypatch.setattr(online._Run, "_rank_test", lambda run: None)
    monkeypatch.setattr(online._Run, "events", lambda run: rank_events(MostRecent().fit(data.train), data.test))
    silent, _ = run(lambda: RecurrentAgent(config), data, tmp_path / "silent")
    assert_equal_weights(ranking, silent)


@every_config
def test_the_weights_are_those_of_one_epoch_in_order_of_time(config, tmp_path):
    # Sessions of one length, as many as fill the lanes and updates: there an epoch ends with its last session.
    data = make_data(make_log(3, [7] * 24))
    online_agent, _ = run(lambda: RecurrentAgent(config, 5), data, tmp_path)
    once = replace(config, order="chronological", learning_rate_end=1.0, epochs=1)
    assert_equal_weights(online_agent, RecurrentAgent(once, 5).fit(data.train))


@every_config
def test_until_the_lanes_run_out_of_sessions_each_update_is_that_of_an_epoch(config, data, tmp_path, monkeypatch):
    biases = []
    update = A3CLearner.update

    def recording(learner):
        update(learner)
        biases.append(learner.policy.head.bias.detach().clone())

    monkeypatch.setattr(A3CLearner, "update", recording)
    run(lambda: RecurrentAgent(config, 2), data, tmp_path)
    ours, biases = biases, []
    RecurrentAgent(replace(config, order="chronological", learning_rate_end=1.0, epochs=1), 2).fit(data.train)
    n_whole = int((data.train.length[:30] - 1).clip(0).sum()) // (config.lanes * config.unroll) - 4
    assert n_whole > 5
    assert all(torch.equal(a, b) for a, b in zip(ours[:n_whole], biases, strict=False))


@pytest.mark.parametrize("name", ["irn-p", "irn-f@paper", "a3c-f"])
def test_frozen_copies_are_refreshed_every_refresh_events(name, data, tmp_path, monkeypatch):
    refreshed = []
    refresh = A3CLearner._refresh_when_due

    def recording(learner):
        due = refresh(learner)
        refreshed.extend([learner.events] if due else [])
        return due

    monkeypatch.setattr(A3CLearner, "_refresh_when_due", recording)
    run(MODELS[name], data, tmp_path)
    # At the first update after each multiple; the last updates have fewer than 12 events.
    n_due = (data.train.batch().n_rows - 1) // 60
    assert [events // 60 for events in refreshed] == list(range(1, n_due + 1))
    assert all(events % 60 < 12 for events in refreshed)


@every_model
def test_a_run_that_is_interrupted_again_and_again_ends_as_if_left_alone(make, data, tmp_path, monkeypatch):
    monkeypatch.setattr(online, "CHECKPOINT_SECONDS", -1.0)
    expected_model, expected = run(make, data, tmp_path / "whole")
    update, stop_at = online._Run.update, 0

    def failing(run):
        if run.n_updates == stop_at:
            raise KeyboardInterrupt
        update(run)

    with monkeypatch.context() as patch:
        patch.setattr(online._Run, "update", failing)
        n_updates = int(expected.test["update"].max())
        # Before the first update, after it, in the middle, and where lanes have no session left.
        for stop_at in (0, 1, n_updates // 2, n_updates - 1):  # noqa: B007 - `failing` reads it
            with pytest.raises(KeyboardInterrupt):
                run(make, data, tmp_path / "cut")
    model, found = run(make, data, tmp_path / "cut")
    assert_equal_results(found, expected)
    assert_equal_results(read_online(tmp_path / "cut"), expected)
    if isinstance(model, RecurrentAgent):
        assert_equal_weights(model, expected_model)
    assert_equal_results(run(make, data, tmp_path / "cut")[1], expected)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from sessiongym.agents.recurrent import RecurrentAgent
from sessiongym.envs.log import PreparedData
from sessiongym.evaluate import online
from sessiongym.evaluate.models import parse_model

torch.set_num_threads(1)
online.CHECKPOINT_SECONDS = -1.0
folder = Path(sys.argv[1])

def progress(done, total, text):
    if done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)

model = parse_model(sys.argv[2]).create(0, "cpu")
online.run_online(model, PreparedData.open(folder / "data"), folder=folder / "run", progress=progress, points=4)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_process_that_is_killed_goes_on_to_the_same_result(data, tmp_path):
    saved = data.save(tmp_path / "data")
    name = "irn-f:hidden_units=8,embedding_dim=8,lanes=2,unroll=2,imagination_start=20"
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", KILLED, str(tmp_path), name]
    killed = subprocess.run(command, env=os.environ, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (tmp_path / "run" / "stream.parquet").exists()

    def make():
        return parse_model(name).create(0, "cpu")

    expected_model, expected = run(make, saved, tmp_path / "whole")
    model, found = run(make, saved, tmp_path / "run")
    assert_equal_results(found, expected)
    assert_equal_weights(model, expected_model)


@pytest.mark.parametrize("name", ["irn-p", "a3c-f"])
def test_a_seed_gives_the_same_run_bit_for_bit_and_another_seed_another(name, data, tmp_path):
    def make(seed):
        return lambda: RecurrentAgent(CONFIGS[name], seed)

    torch.manual_seed(1)
    model, first = run(make(0), data, tmp_path / "first")
    torch.manual_seed(2)
    again, second = run(make(0), data, tmp_path / "second")
    assert_equal_results(second, first)
    assert_equal_weights(model, again)
    _, other = run(make(3), data, tmp_path / "other")
    assert not other.stream.equals(first.stream)


@pytest.mark.parametrize("config", [MostPopularConfig(), MostPopularConfig(kinds="purchases")], ids=lambda c: c.kinds)
def test_popularity_after_the_stream_is_that_of_the_log(config, data, tmp_path):
    playable = data.train.select(np.flatnonzero(data.train.length >= 2))
    model, _ = run(lambda: MostPopular(config), data, tmp_path)
    np.testing.assert_array_equal(model.counts, MostPopular(config).fit(playable).counts)


def test_most_recent_knows_an_item_of_the_session_that_the_stream_has_not_held_before(tmp_path):
    item = np.array([5, 3, 5, 3, 3], dtype=np.int32)
    log = replace(make_log(0, [5]), item=item)
    _, result = run(MostRecent, make_data(log), tmp_path)
    # Targets 3, 5, 3, 3 in the states (5), (5, 3), (5, 3, 5), (5, 3, 5, 3).
    assert result.stream["rank_low"].tolist() == [1, 1, 1, 0]
    assert result.stream["rank_high"].tolist() == [N, 2, 2, 1]


def test_the_test_split_is_ranked_at_evenly_spaced_moments_by_the_weights_of_each(data, tmp_path):
    model, result = run(MODELS["a3c-p"], data, tmp_path)
    moments = result.test[["update", "events_learned"]].drop_duplicates()
    n_events = len(result.stream)
    per_update = 12
    for number, learned in enumerate(moments["events_learned"], start=1):
        assert n_events * number / 4 <= learned < n_events * number / 4 + per_update
    assert len(moments) == 4 and learned == n_events
    last = result.test[result.test["events_learned"] == n_events]
    at_the_end = rank_events(model, data.test, train=data.train)
    pd.testing.assert_frame_equal(result.events, at_the_end, check_exact=True)
    np.testing.assert_array_equal(last[["rank_low", "rank_high"]], at_the_end[["rank_low", "rank_high"]])


def test_more_moments_than_updates_are_as_many_as_there_are_updates(data, tmp_path):
    _, result = run(MODELS["lstm"], data, tmp_path, points=10_000)
    assert result.test["update"].drop_duplicates().tolist() == list(range(1, result.test["update"].max() + 1))


def test_curves_are_means_of_the_metrics_over_the_events_between_two_moments(data, tmp_path):
    _, result = run(MODELS["a3c-p"], data, tmp_path)
    curves = online_curves(tmp_path)
    stream = curves[(curves["curve"] == "stream") & (curves["slice"] == "purchase") & (curves["metric"] == "recall")]
    n_before = 0
    for row in stream.itertuples():
        part = result.stream[n_before : row.events_learned]
        bought = part[part["kind"] == 1]
        assert row.n_events == len(bought)
        assert row.value == pytest.approx(recall(bought["rank_low"], bought["rank_high"], 5).mean())
        n_before = row.events_learned
    assert n_before == len(result.stream)
    last = curves[(curves["curve"] == "test") & (curves["slice"] == "all") & (curves["metric"] == "recall")].iloc[-1]
    assert last["value"] == pytest.approx(recall(result.events["rank_low"], result.events["rank_high"], 5).mean())
    assert set(curves["metric"]) == {"recall", "mrr"} and set(curves["k"]) == {5}


def test_a_window_over_the_whole_stream_gives_the_mean_so_far(data, tmp_path):
    _, result = run(MostRecent, data, tmp_path)
    curves = online_curves(tmp_path, slices=("all",), metrics=("recall",), ks=(3,), window=10**6)
    stream = curves[curves["curve"] == "stream"]
    hit = recall(result.stream["rank_low"], result.stream["rank_high"], 3)
    so_far = np.cumsum(hit)[stream["events_learned"] - 1] / stream["events_learned"]
    np.testing.assert_allclose(stream["value"], so_far)
    with pytest.raises(InputError, match="window: expected at least 1 event, found 0"):
        online_curves(tmp_path, window=0)


@pytest.mark.parametrize("name", ["irn-p", "history", "most-recent"])
def test_no_more_is_scored_at_once_than_max_scores_and_ranks_do_not_depend_on_it(name, data, tmp_path, monkeypatch):
    _, expected = run(MODELS[name], data, tmp_path / "at once")
    shapes = []

    def counting(scores, row, target):
        shapes.append(tuple(scores.shape))
        return rank_bounds(scores, row, target)

    monkeypatch.setattr(online, "rank_bounds", counting)
    _, found = run(MODELS[name], data, tmp_path / "by rows", max_scores=5 * N)
    assert max(shapes) == (5, N)
    differ = (found.stream[["rank_low", "rank_high"]] != expected.stream[["rank_low", "rank_high"]]).any(axis=1)
    assert differ.mean() < 0.01


def test_a_model_that_needs_the_whole_log_is_refused():
    with pytest.raises(InputError, match="SessionKNN is trained on a whole log at once; expected an A3C"):
        check_online(SessionKNN())
    with pytest.raises(InputError, match="SQNAgent is trained on a whole log"):
        check_online(parse_model("sqn").create(0, "cpu"))


@pytest.mark.parametrize(("field", "value"), [("workers", 2), ("density", 0.5)])
def test_settings_that_have_no_meaning_online_are_refused(field, value, data, tmp_path):
    with pytest.raises(InputError, match=rf"expected {field}=\d, .* found {value}; change the model"):
        run(lambda: RecurrentAgent(small("a3c-p", **{field: value})), data, tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_a_folder_of_another_run_and_points_below_one_are_refused(data, tmp_path):
    run(MostRecent, data, tmp_path)
    with pytest.raises(InputError, match="another model, data set or seed"):
        run(MostPopular, data, tmp_path)
    with pytest.raises(InputError, match="points: expected at least 1 moment"):
        run(MostRecent, data, tmp_path, points=0)
    with pytest.raises(InputError, match="expected a finished online run"):
        read_online(tmp_path / "nowhere")
