"""The long table and the ones people read."""

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from sessiongym.errors import InputError
from sessiongym.evaluate.comparison_views import print_table, slice_tables
from sessiongym.evaluate.events import SLICES, slice_masks
from sessiongym.evaluate.exports import table_cells, table_markdown
from sessiongym.evaluate.metrics import METRICS, metric_at
from sessiongym.evaluate.statistics import session_bootstrap
from sessiongym.evaluate.table import COLUMNS, long_table, read_table, write_table


def _events(scale, seed, max_k=0):
    """An event table of 150 sessions with made-up ranks; the events are the same whatever the arguments."""
    shared, own = np.random.default_rng(0), np.random.default_rng(seed)
    length = shared.integers(1, 8, size=150)
    n = int(length.sum())
    low = own.exponential(scale, n).astype(np.int32)
    return pd.DataFrame(
        {
            "session": np.repeat(3 * np.arange(150, dtype=np.int32), length),
            "position": np.concatenate([np.arange(2, 2 + m) for m in length]).astype(np.int32),
            "item": shared.integers(0, 50, n).astype(np.int32),
            "kind": (shared.random(n) < 0.2).astype(np.uint8),
            "repeat": shared.random(n) < 0.4,
            "rank_low": low,
            "rank_high": low + own.integers(1, 4, n).astype(np.int32),
            "max_k": np.full(n, max_k, np.int16),
        }
    )


@pytest.fixture
def events():
    return {
        "most-recent": {0: _events(6, 1)},
        "irn-p:n=2,m=1": {seed: _events(3, 10 + seed) for seed in (0, 1, 2)},
        "actor": {0: _events(4, 20, max_k=4), 7: _events(4, 21, max_k=4)},
    }


@pytest.fixture
def long(events):
    return long_table(events, resamples=200)


def _row(long, *key):
    return long.set_index(["model", "slice", "metric", "k", "seed"]).sort_index().loc[key]


def test_there_is_one_row_for_each_model_slice_metric_k_and_seed(long):
    assert tuple(long.columns) == COLUMNS
    assert len(long) == 12 * 3 * 3 * (2 + 4 + 3)
    assert not long.duplicated(["model", "slice", "metric", "k", "seed"]).any()
    assert set(long["slice"]) == set(SLICES) and long["model"][0] == "most-recent"
    assert list(dict.fromkeys(long.loc[long["model"] == "actor", "seed"])) == ["0", "7", "mean"]


@pytest.mark.parametrize("ties", ["expected", "pessimistic"])
def test_every_figure_is_the_bootstrap_of_its_events(events, ties):
    long = long_table(events, resamples=200, ties=ties, seed=5)
    frames = events["irn-p:n=2,m=1"]
    masks = slice_masks(frames[0])
    for name in SLICES:
        for metric in METRICS:
            by_seed = {
                s: metric_at(metric, f["rank_low"].to_numpy(), f["rank_high"].to_numpy(), 5, ties)
                for s, f in frames.items()
            }
            by_seed["mean"] = np.mean(list(by_seed.values()), axis=0)
            for s, values in by_seed.items():
                inside = np.where(masks[name], values, np.nan)[:, None]
                expected = session_bootstrap(inside, frames[0]["session"].to_numpy(), resamples=200, seed=5)
                row = _row(long, "irn-p:n=2,m=1", name, metric, 5, str(s))
                np.testing.assert_allclose(row[["value", "low", "high"]], np.concatenate(expected), rtol=1e-12)
                assert row["events"] == masks[name].sum()


def test_the_table_repeats_itself_bit_for_bit(events, long):
    pd.testing.assert_frame_equal(long_table(events, resamples=200), long, check_exact=True)


def test_it_reads_back_from_csv_as_it_was(events, tmp_path):
    long = long_table({"nan": events["actor"], **events}, resamples=50)
    write_table(long, tmp_path / "table.csv")
    pd.testing.assert_frame_equal(read_table(tmp_path / "table.csv"), long, check_exact=True)
    with open(tmp_path / "table.csv") as file:
        assert file.readline() == "model,slice,metric,k,seed,value,low,high,events\n"


def test_an_empty_slice_has_no_events_and_a_blank_value(events, tmp_path):
    clicks = {m: {s: f.assign(kind=np.uint8(0)) for s, f in by_seed.items()} for m, by_seed in events.items()}
    long = long_table(clicks, resamples=50)
    empty = long[long["slice"].str.startswith("purchase")]
    assert set(empty["events"]) == {0}
    for column in ("value", "low", "high"):
        assert np.isnan(empty[column]).all()
    write_table(long, tmp_path / "table.csv")
    assert "most-recent,purchase,recall,3,0,,,,0\n" in (tmp_path / "table.csv").read_text()
    assert "| most-recent |  |  |  |  |  |  |" in table_markdown(*slice_tables(long))


def test_figures_beyond_what_an_actions_only_model_can_give_are_blank(long):
    actor = long[long["model"] == "actor"]
    assert np.isnan(actor.loc[actor["k"] > 4, ["value", "low", "high"]].to_numpy()).all()
    assert not np.isnan(actor.loc[actor["k"] <= 4, "value"].to_numpy()).any() and min(actor["events"]) > 0


def test_tables_of_different_events_are_refused(events):
    events["irn-p:n=2,m=1"][2] = events["irn-p:n=2,m=1"][2].iloc[:-1]
    with pytest.raises(InputError, match=r"irn-p:n=2,m=1 \(seed 2\) and most-recent \(seed 0\) were ranked on diff"):
        long_table(events)
    with pytest.raises(InputError, match="at least one seed"):
        long_table({"actor": {}})


def test_a_log_with_nothing_to_predict_gives_blanks(events):
    nothing = {"m": {0: events["actor"][0].iloc[:0]}}
    long = long_table(nothing, resamples=10)
    assert set(long["events"]) == {0} and np.isnan(long["value"]).all()
    assert "Purchase, 0 events" in table_markdown(*slice_tables(long))


def test_six_metrics_side_by_side_fit_a_terminal_of_80_columns_and_caveats_are_stated_once(long):
    console = Console(width=80, file=io.StringIO())
    print_table(long, notes=["order imposed", "order imposed"], console=console)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert all(name in text for name in ("most-recent", "irn-p:n=2,m=1", "Purchase, ", "Click, ", "First, "))
    for said in ("order imposed", "ties: expected", "1 to 3 seeds", "best of its column", "earlier in the session"):
        assert text.count(said) == 1
    assert text.count("Purchase, ") == 1


def test_only_recall_at_the_headline_k_has_its_interval_in_text(events):
    for ks, headline in (((3, 5, 10), 5), ((1, 2, 20), 2)):
        for table in slice_tables(long_table(events, ks, resamples=20)):
            with_interval = [column.label for column in table.columns if column.interval]
            expected = ["Repeat", "Explore", "Lift"] if table.name == "purchase-parts" else [f"Recall@{headline}"]
            assert with_interval == expected
            assert all(figure.low is not None for row in table.rows[:2] for figure in row.figures[:2])


def test_the_best_of_each_column_is_marked_and_lift_is_relative_to_most_recent(long):
    lines = table_markdown(*slice_tables(long)).splitlines()
    best, parts = [line for line in lines if line.startswith("| irn-p")][:2]
    assert best.count("**") == 12
    lift = parts.split("|")[-2].strip(" *")
    values = [_row(long, model, "purchase", "recall", 5, "mean")["value"] for model in ("irn-p:n=2,m=1", "most-recent")]
    assert lift == f"{100 * (values[0] / values[1] - 1):+.1f}"
    assert "Lift" not in table_markdown(*slice_tables(long[long["model"] != "most-recent"]))


def test_a_lift_has_its_sign_where_nothing_is_below_the_baseline(long):
    parts = slice_tables(long, baseline="most-recent")[1]
    least = min(parts.rows, key=lambda row: row.figures[2].value if row.figures[2].value is not None else 9.0)
    parts = slice_tables(long, baseline=least.label)[1]
    assert {cells[2].value[:1] for cells in table_cells(parts)} == {"+", ""}


def test_other_files_are_refused(tmp_path):
    (tmp_path / "other.csv").write_text("model,value\na,1\n")
    with pytest.raises(InputError, match=r"other.csv:1: expected columns"):
        read_table(tmp_path / "other.csv")
    (tmp_path / "torn.csv").write_text(",".join(COLUMNS) + "\nm,all,recall,3,0,zero,0,1,5\n")
    with pytest.raises(InputError, match=r"torn.csv:2: expected a number in column 'value', found 'zero'"):
        read_table(tmp_path / "torn.csv")
    with pytest.raises(InputError, match=r"none.csv: cannot be read"):
        read_table(tmp_path / "none.csv")
