"""What earlier sessions are worth: the figures of II-RNN's comparison, their intervals, and the page that shows how."""

# pyright: reportArgumentType=false, reportOptionalSubscript=false

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sessiongym import cli
from sessiongym.envs.log import PreparedData
from sessiongym.errors import InputError
from sessiongym.evaluate.differences import paired_differences
from sessiongym.evaluate.inter_session import (
    comparison_events,
    first_n_plot,
    first_n_rows,
    ii_rnn_markdown,
    ii_rnn_table,
)
from sessiongym.evaluate.metrics import metric_at
from sessiongym.evaluate.models import parse_models
from sessiongym.evaluate.runs import read_events
from sessiongym.evaluate.statistics import session_bootstrap
from sessiongym.evaluate.table import long_table

PAGE = (Path(__file__).parents[1] / "docs" / "ii-rnn.md").read_text(encoding="utf-8")
POINTS = ["points", "points_low", "points_high"]


def event_table(rank_low, users=True, max_k=0, width=2):
    """An event table with the given ranks, whose sessions, of 1 to 7 events to predict, depend on their number alone.

    Its users have four sessions each, or where `users` is off it does not say whose they are.
    """
    n = len(rank_low)
    length = np.random.default_rng(0).integers(1, 8, n)
    session = np.repeat(np.arange(n), length)[:n].astype(np.int32)
    table = pd.DataFrame(
        {
            "session": session,
            "position": (np.arange(n) - np.searchsorted(session, session) + 2).astype(np.int32),
            "item": np.zeros(n, np.int32),
            "kind": np.zeros(n, np.uint8),
            "repeat": np.zeros(n, bool),
            "rank_low": np.asarray(rank_low, np.int32),
            "rank_high": np.asarray(rank_low, np.int32) + width,
            "max_k": np.full(n, max_k, np.int16),
        }
    )
    return table.assign(user=session // 4) if users else table


def ranks(scale, seed, n=600):
    return np.random.default_rng(seed).exponential(scale, n).astype(np.int32)


def models(users=True):
    """A rule with one seed, two learners with several, a twin of the first, and an agent that only acts."""
    rnn = {seed: event_table(ranks(6, 10 + seed), users) for seed in (0, 1, 2)}
    return {
        "most-recent": {0: event_table(ranks(7, 1), users)},
        "rnn": rnn,
        "ii-rnn": {seed: event_table(ranks(4, 20 + seed), users) for seed in (0, 4)},
        "twin": dict(reversed(rnn.items())),
        "actor": {0: event_table(ranks(4, 30), users, max_k=1)},
    }


def hits(by_seed, metric, k):
    values = [metric_at(metric, f["rank_low"].to_numpy(), f["rank_high"].to_numpy(), k) for f in by_seed.values()]
    return np.mean(values, axis=0)


@pytest.fixture(scope="module")
def events():
    return models()


@pytest.fixture(scope="module")
def table(events):
    return ii_rnn_table(events, ks=(5, 10), resamples=300)


@pytest.fixture(scope="module")
def first_n(events):
    return first_n_rows(events, resamples=300)


@pytest.fixture(scope="module")
def shops(tmp_path_factory):
    """A folder with the log of a shop of returning shoppers, one of strangers, and a comparison on the first."""
    folder = tmp_path_factory.mktemp("ii-rnn")
    sizes = ["--sessions", "300", "--items", "40", "--min-item-support", "1"]
    split = ["--users", "40", "--taste-persistence", "0.8", "--user-split", "share", "--min-user-sessions", "3"]
    cli.main(["shop", *sizes, *split, "--out", str(folder / "regulars")])
    cli.main(["shop", *sizes, "--out", str(folder / "strangers")])
    compared = ["--models", "rnn", "most-recent", "item-knn", "--no-references", "--seeds", "2"]
    out = ["--out", str(folder / "runs" / "regulars"), "--jobs", "1"]
    cli.main(["compare", "--data", str(folder / "regulars"), *compared, *out])
    return folder


def test_a_table_worked_by_hand():
    # Ranks 1, 7 and 2 of the RNN, then 1, 4 and a miss of II-RNN: Recall@5 2/3 both, MRR@5 1.5/3 and 1.25/3.
    events = {"rnn": {0: event_table([0, 6, 1], width=1)}, "ii-rnn": {0: event_table([0, 3, 90], width=1)}}
    table = ii_rnn_table(events, ks=(5,), resamples=50).set_index(["model", "metric"])
    assert table["value"].to_dict() == pytest.approx(
        {("rnn", "recall"): 2 / 3, ("rnn", "mrr"): 0.5, ("ii-rnn", "recall"): 2 / 3, ("ii-rnn", "mrr"): 1.25 / 3}
    )
    assert table.loc[("ii-rnn", "mrr"), ["points", "percent"]].tolist() == pytest.approx([-25 / 3, -50 / 3])
    assert set(table["events"]) == {3}


def test_figures_are_those_of_the_main_table(events, table):
    long = long_table(events, (5, 10), resamples=10).query("seed == 'mean' and slice == 'all'")
    value = long.set_index(["model", "metric", "k"])["value"]
    assert len(table) == 5 * 2 * 2 and table["value"].isna().sum() == 4
    for row in table.itertuples():
        assert row.value == pytest.approx(value[row.model, row.metric, row.k], abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("users", [True, False], ids=["user", "session"])
def test_intervals_draw_whole_users_or_sessions_where_users_are_not_known(users):
    events = models(users)
    table = ii_rnn_table(events, resamples=200, seed=3).set_index(["model", "metric", "k"])
    drawn = "user" if users else "session"
    unit = events["rnn"][0][drawn].to_numpy()
    for metric in ("recall", "mrr"):
        both = [hits(events[model], metric, 10) for model in ("ii-rnn", "rnn")]
        columns = np.stack([both[0], 100 * (both[0] - both[1])], axis=1)
        expected = np.stack(session_bootstrap(columns, unit, resamples=200, seed=3))
        row = table.loc[("ii-rnn", metric, 10)]
        found = np.stack([row[["value", "low", "high"]].astype(float), row[POINTS].astype(float)], axis=1)
        np.testing.assert_allclose(found, expected, atol=1e-9)
        assert (row["drawn"], row["n_drawn"]) == (drawn, len(np.unique(unit)))


def test_sessions_of_a_user_that_go_together_widen_the_interval():
    user = event_table(np.zeros(2000))["user"].to_numpy()
    low = np.random.default_rng(5).integers(0, 12, user.max() + 1)[user]
    width = {}
    for users in (True, False):
        events = {"rnn": {0: event_table(np.zeros(2000), users)}, "ii-rnn": {0: event_table(low, users)}}
        row = first_n_rows(events, resamples=500).query("model == 'ii-rnn' and n == 1").iloc[0]
        width[users] = row["high"] - row["low"]
    assert width[True] > 1.5 * width[False]


def test_first_n_counts_the_first_n_recommendations_of_every_session(events, first_n):
    assert first_n.groupby("model", sort=False)["n"].apply(list).to_dict() == {m: [*range(1, 8)] for m in events}
    position = events["rnn"][0]["position"].to_numpy()
    recall = {model: hits(by_seed, "recall", 5) for model, by_seed in events.items()}
    for row in first_n.itertuples():
        early = position <= row.n + 1
        expected = np.nan if row.model == "actor" else recall[row.model][early].mean()
        assert row.events == early.sum()
        assert row.value == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_first_n_ends_at_the_figure_of_the_table(table, first_n):
    shared = ["model", "value", "low", "high", "percent", *POINTS, "all_low", "all_high", "differs", "events"]
    last = first_n.query("n == 7")[shared].reset_index(drop=True)
    pd.testing.assert_frame_equal(last, table.query("metric == 'recall' and k == 5")[shared].reset_index(drop=True))


def test_the_first_recommendation_is_judged_as_by_paired_differences():
    events = models(users=False)
    rows = first_n_rows(events, n_max=1, resamples=400, seed=2).query("model != 'rnn'")
    other = paired_differences(events, "rnn", resamples=400, seed=2).query("slice == 'first'")
    assert rows["model"].tolist() == other["model"].tolist()
    names = ["points", "low", "high", "all_low", "all_high"]
    found = rows[[*POINTS, "all_low", "all_high"]].to_numpy(float)
    np.testing.assert_allclose(found, other[names].to_numpy(float), atol=1e-9)
    assert rows["differs"].tolist() == other["differs"].tolist()


@pytest.mark.parametrize("model", ["rnn", "twin"])
def test_a_model_does_not_differ_from_itself(table, model):
    rows = table[table["model"] == model]
    assert np.abs(rows[["percent", *POINTS, "all_low", "all_high"]].to_numpy(float)).max() < 1e-9
    assert not rows["differs"].any()


def test_a_clear_winner_is_marked_and_what_is_relative_to_nothing_is_not_a_number():
    events = {"rnn": {0: event_table(np.full(300, 50))}, "ii-rnn": {0: event_table(np.zeros(300))}}
    row = ii_rnn_table(events, ks=(5,), resamples=100).query("model == 'ii-rnn' and metric == 'recall'").iloc[0]
    assert row["differs"] and row["points"] == 100 and np.isnan(row["percent"])
    row = ii_rnn_table(events, "ii-rnn", (5,), resamples=100).query("model == 'rnn' and metric == 'recall'").iloc[0]
    assert row["differs"] and row["percent"] == row["percent_low"] == -100


def test_markdown_shows_every_figure_beside_what_it_is_relative_to(table):
    text = ii_rnn_markdown(table, ["No recorded shoppers."])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == ["model", "Recall@5", "Recall@10", "MRR@5", "MRR@10"]
    by_model = {line[0]: line[1:] for line in lines[2:]}
    for model, rows in table.groupby("model"):
        for row, cell in zip(rows.itertuples(), by_model[model], strict=True):
            relative = "" if model == "rnn" else f" ({row.percent:+z.1f} %)"
            plain = "" if model == "actor" else f"{100 * row.value:.2f}{relative}"
            assert cell == (f"**{plain}**" if row.differs else plain)
    n_drawn = table["n_drawn"].iloc[0]
    assert f"1 to 3 seeds, over 600 events of {n_drawn} users; in brackets relative to rnn; ties: expected." in text
    assert text.endswith("Note: No recorded shoppers.\n")


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_plot_names_every_model_and_is_the_same_for_the_same_rows(first_n, tmp_path, ending):
    for name in ("one", "two"):
        first_n_plot(first_n, tmp_path / f"{name}.{ending}")
    one, two = ((tmp_path / f"{name}.{ending}").read_bytes() for name in ("one", "two"))
    assert one == two and sorted(path.name for path in tmp_path.iterdir()) == [f"one.{ending}", f"two.{ending}"]
    if ending == "png":
        assert one.startswith(b"\x89PNG")
    else:
        shown = set(re.findall(r">([^<>]+)</text>", one.decode()))
        assert {"most-recent", "rnn", "ii-rnn", "twin", "Recall@5 in %"} <= shown and "actor" not in shown


def test_labels_of_a_plot_do_not_touch(first_n, tmp_path):
    names = [f"model {i}" for i in range(9)]
    same = pd.concat([first_n[first_n["model"] == "rnn"].assign(model=name) for name in names])
    first_n_plot(same, tmp_path / "plot.svg")
    # In points, at a font of 9.
    height = re.findall(r' y="([\d.]+)"[^>]*>model \d</text>', (tmp_path / "plot.svg").read_text(encoding="utf-8"))
    assert len(height) == len(names) and np.diff(np.sort(np.array(height, float))).min() > 9


def test_a_plot_leaves_the_settings_of_its_caller_alone(tmp_path):
    code = (
        "import sys, pandas as pd, sessiongym.evaluate.inter_session as own\n"
        "assert 'matplotlib' not in sys.modules\n"
        "rows = pd.DataFrame({'model': ['rnn'], 'n': 1, 'k': 5, 'value': .5, 'low': .4, 'high': .6,\n"
        "                     'drawn': 'user', 'n_drawn': 9})\n"
        f"own.first_n_plot(rows, {str(tmp_path / 'plot.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bad_input_is_refused_in_one_line(events, first_n, tmp_path):
    other = {**events, "rnn": {0: event_table(ranks(6, 1, 599))}}
    empty = {"rnn": {0: event_table(ranks(6, 1))[:0]}}
    for call, said in (
        (lambda: ii_rnn_table(events, "gru4rec"), "most-recent, rnn, ii-rnn, twin, actor.*found 'gru4rec'"),
        (lambda: first_n_rows(events, against="gru4rec"), "found 'gru4rec'"),
        (lambda: ii_rnn_table(other), "different events"),
        (lambda: first_n_rows(empty), "no event"),
        (lambda: first_n_rows(events, n_max=0), "n_max of at least 1, found 0"),
        (lambda: ii_rnn_table(events, ks=(0,)), "at least 1, each once, found '0'"),
        (lambda: first_n_plot(first_n, tmp_path / "plot.pdf"), r"plot\.pdf: expected a file that ends in"),
        (lambda: first_n_plot(first_n[first_n["model"] == "actor"], tmp_path / "plot.png"), "no figures"),
    ):
        with pytest.raises(InputError, match=said) as raised:
            call()
        assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_gives_back_every_event_table_with_the_user_of_each_session(shops):
    data, folder = PreparedData.open(shops / "regulars"), shops / "runs" / "regulars"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    events, anonymous = comparison_events(folder, data), comparison_events(folder)
    assert list(events) == list(anonymous) == manifest["models"]
    for model, cells in manifest["cells"].items():
        assert list(events[model]) == [0, 1]
        for cell, frame, without in zip(cells, events[model].values(), anonymous[model].values(), strict=True):
            assert np.array_equal(frame["user"], data.test.user[frame["session"]])
            pd.testing.assert_frame_equal(frame.drop(columns="user"), without)
            pd.testing.assert_frame_equal(without, read_events(shops / "runs" / "cells" / cell)[without.columns])


def test_a_folder_of_other_data_is_refused(shops):
    folder = shops / "runs" / "regulars"
    with pytest.raises(InputError, match="compares models on data with fingerprint"):
        comparison_events(folder, PreparedData.open(shops / "strangers"))
    with pytest.raises(InputError, match=r"expected format 'sessiongym\.comparison'"):
        comparison_events(shops / "regulars")


def test_a_damaged_folder_is_refused(shops, tmp_path):
    for damage in (lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:-9])):
        folder = shutil.copytree(shops / "runs" / "regulars", tmp_path / "runs", dirs_exist_ok=True)
        damage(folder / "events.parquet")
        with pytest.raises(InputError, match=r"events\.parquet: cannot be read .*; run the comparison again") as raised:
            comparison_events(folder)
        assert "\n" not in str(raised.value)


def test_the_commands_of_the_page_are_ones_that_the_command_line_takes(monkeypatch):
    taken = []
    monkeypatch.setattr(cli, "_run", taken.append)
    commands = [line for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.M | re.S) for line in block.splitlines()]
    for command in commands:
        name, *arguments = command.split()
        assert name == "sessiongym"
        cli.main(arguments)
    compared = [command for command in taken if hasattr(command, "models")]
    assert len(taken) == len(commands) and all(parse_models(command.models) for command in compared)


def test_the_lines_of_the_page_make_its_table_and_its_plot(shops):
    block, _ = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    done = subprocess.run([sys.executable, "-c", block], cwd=shops, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| model | Recall@5 | Recall@10 | Recall@20 | MRR@5 | MRR@10 | MRR@20 |" in done.stdout
    assert "rnn</text>" in (shops / "first-n.svg").read_text(encoding="utf-8")


def test_the_blend_of_the_page_runs_where_users_are_known(shops):
    _, block = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    block = block.replace('"globo"', '"regulars"')
    done = subprocess.run([sys.executable, "-c", block], cwd=shops, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = [[float(word) for word in line.split()] for line in done.stdout.splitlines()]
    assert [row[0] for row in figures] == [0, 0.03, 0.1, 0.3, 1]
    assert all(0 <= figure <= 100 for row in figures for figure in row[1:])
