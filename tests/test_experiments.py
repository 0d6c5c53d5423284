"""The experiments: what they compare, what they cost, and what their tables say, run as the command."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from sessiongym.agents.config import AgentConfig
from sessiongym.cli import main
from sessiongym.envs.log import PreparedData
from sessiongym.errors import InputError
from sessiongym.evaluate.compare import compare
from sessiongym.evaluate.experiments import published
from sessiongym.evaluate.experiments.claims import CLAIMS
from sessiongym.evaluate.experiments.definitions import EXPERIMENTS, READINGS, ExperimentName, System, Variant
from sessiongym.evaluate.experiments.design import design
from sessiongym.evaluate.experiments.plan import PlannedCell, duration, wall_seconds
from sessiongym.evaluate.experiments.run import make_plan, notes_of, run_experiment
from sessiongym.evaluate.exports import read_views
from sessiongym.evaluate.metrics import recall
from sessiongym.evaluate.models import REFERENCES, parse_model
from sessiongym.evaluate.runs import Cell, compute_cell, read_events, read_extra
from sessiongym.evaluate.views import LineChart, Table

TINY = "hidden_units=8,embedding_dim=8,epochs=2"
REFERENCE = Path(os.environ.get("SESSIONGYM_DATA") or Path(__file__).parents[1] / ".." / "shared" / "data").parent


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shop"
    main(["shop", "--sessions", "200", "--items", "40", "--min-item-support", "1", "--out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return tmp_path_factory.mktemp("cells")


def run(name, shop, out, cells, *arguments) -> dict[str, Any]:
    """The experiment as the command runs it, without the controls, which are large."""
    main(["experiment", name, "--data", str(shop), "--out", str(out), "--cells", str(cells), "--jobs", "2", *arguments])
    return {view.name: view for view in read_views(out)}


@pytest.fixture
def without_references(monkeypatch):
    """Experiments without what they add to every table, to be quick."""
    for name, experiment in EXPERIMENTS.items():
        monkeypatch.setitem(EXPERIMENTS, name, replace(experiment, references=False))


@pytest.fixture
def quick(without_references, monkeypatch):
    """Cells computed in this process, one after the other, and no pictures: other tests have both."""

    def compute(todo, data, cells, jobs, device, extra=None):
        cells.mkdir(exist_ok=True)
        return {cell.name: compute_cell(cell, data, cells, device, extra=extra) for cell in todo}

    monkeypatch.setattr("sessiongym.evaluate.experiments.run.compute_cells", compute)
    monkeypatch.setattr("sessiongym.evaluate.exports.has_figures", lambda view: False)


def test_the_command_knows_every_experiment_by_its_name():
    assert get_args(ExperimentName) == tuple(EXPERIMENTS)
    assert all(name == experiment.name for name, experiment in EXPERIMENTS.items())


@pytest.mark.parametrize("preset", ["practical", "paper"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_design_has_distinct_labels_and_the_references_of_a_table(name, preset):
    made = design(EXPERIMENTS[name], preset)
    labels = [entry.label for entry in made.entries]
    assert len(labels) == len(set(labels))
    if EXPERIMENTS[name].references:
        assert {"most-recent", "s-pop", "session-knn"} <= set(made.models)
        assert len([model for model in made.models if model.split("@")[0] in REFERENCES]) >= len(REFERENCES)


def test_every_reading_can_be_had_in_the_literal_preset():
    assert design(EXPERIMENTS["readings"], "paper").notes == ()
    assert len({variant.label for variant in READINGS}) == len(READINGS)


def test_a_reading_that_a_preset_cannot_have_is_left_out_and_named():
    made = design(EXPERIMENTS["readings"], "practical")
    assert any("irn-p, V at purchases only" in note for note in made.notes)
    assert made.find("irn-p", Variant("V at purchases only", "value_at=reward")) is None


def test_what_concerns_imagination_alone_leaves_other_agents_their_cell():
    made = design(EXPERIMENTS["readings"], "paper")
    before = next(variant for variant in READINGS if variant.changes == "reconstruction=before")
    plain, imagining = made.find("a3c-p@paper", before), made.find("irn-p@paper", before)
    assert plain is not None and imagining is not None and isinstance(imagining.spec.config, AgentConfig)
    assert plain.spec.config == parse_model("a3c-p@paper").config and not plain.changed
    assert imagining.spec.config.reconstruction == "before" and imagining.changed


def test_models_without_a_knob_stand_beside_the_variants_once():
    made = design(EXPERIMENTS["table2"])
    assert [entry.variant.label for entry in made.entries if entry.model == "session-knn"] == ["d = 1"]
    assert len([entry for entry in made.entries if entry.model == "lstm"]) == 4
    assert [entry.label for entry in design(EXPERIMENTS["table3"]).entries if entry.model == "lstm"] == ["lstm"]


def test_tuned_models_take_the_place_of_presets_and_say_so():
    made = design(EXPERIMENTS["table1"], tuned={"irn-p": "irn-p:learning_rate=0.01", "bpr": "bpr"})
    entry = next(entry for entry in made.entries if entry.system.name == "irn-p")
    assert isinstance(entry.spec.config, AgentConfig) and entry.spec.config.learning_rate == 0.01
    assert entry.label == "irn-p (tuned)"
    assert entry.system.label == "IRN-P" and "bpr" in made.models


def test_named_models_take_the_place_of_the_systems():
    made = design(EXPERIMENTS["table1"], models=["irn-p@paper", "rnn"])
    assert made.models[:2] == ["irn-p@paper", "rnn"]
    assert made.entries[0].system.label == "IRN-P" and made.entries[1].system == System("rnn")


def test_the_figures_of_the_paper_are_those_of_the_paper():
    file = REFERENCE / "reference" / "irn_paper.json"
    if not file.exists():
        pytest.skip("the printed figures are not at hand (reference/irn_paper.json beside the data)")
    paper = json.loads(file.read_text())
    columns = [(c.split("@")[0], int(c.split("@")[1])) for c in paper["table1_columns"]]
    table1 = {
        (system, kind, metric, k): value
        for kind in ("purchase", "click")
        for system, values in paper[f"table1_{kind}"].items()
        for (metric, k), value in zip(columns, values, strict=True)
    }
    table2 = {
        (system, d, metric): value
        for metric in ("recall", "mrr")
        for system, values in paper["table2_density"][f"{metric}@5"].items()
        for d, value in zip(paper["table2_density"]["columns"], values, strict=True)
    }
    table3 = {
        (planner, part, metric): value
        for metric in ("recall", "mrr")
        for planner, values in paper["table3_planning"][f"{metric}@5"].items()
        for part, value in zip(paper["table3_planning"]["columns"], values, strict=True)
    }
    assert (published.TABLE1, published.TABLE2, published.TABLE3) == (table1, table2, table3)


def test_the_longest_cells_start_first_and_decide_how_long_it_takes():
    cell = Cell(parse_model("bpr"), "data", 0)
    planned = [PlannedCell("a", cell, False, seconds) for seconds in (1.0, 2.0, 3.0, 4.0)]
    assert wall_seconds(planned, 1) == 10 and wall_seconds(planned, 2) == 5 and wall_seconds(planned, 9) == 4
    assert wall_seconds([*planned, PlannedCell("a", cell, True, None)], 1) == 10
    assert [duration(s) for s in (9.6, 150, 7200)] == ["10 s", "2 min", "2.0 h"]


def test_a_dry_run_names_every_missing_cell_and_computes_none(shop, tmp_path, capsys):
    main(["experiment", "table1", "--data", str(shop), "--out", str(tmp_path / "out"), "--seeds", "2", "--dry-run",
          "--models", f"a3c-p:{TINY}", "bpr"])  # fmt: skip
    printed = capsys.readouterr().out
    assert "12 cells, 0 of them finished" in printed and f"a3c-p:{TINY}: 2 to compute, up to" in printed
    assert not (tmp_path / "out").exists() and not (tmp_path / "cells").exists()


def test_table1_shows_what_compare_computes_and_computes_no_cell_of_it_twice(
    shop, cells, tmp_path, without_references, capsys
):
    models = [f"a3c-p:{TINY}", f"irn-p:{TINY},imagination_start=0", "bpr:epochs=2", "session-knn"]
    data = PreparedData.open(shop)
    long = compare(data, models, 2, tmp_path / "compare", references=False, cells=cells, jobs=2).long
    before = sorted(os.listdir(cells))
    views = run("table1", shop, tmp_path / "out", cells, "--seeds", "2", "--models", *models)
    assert sorted(os.listdir(cells)) == before
    printed = capsys.readouterr().out
    assert "7 cells, 7 of them finished" in printed
    assert printed.count("Note: simulated shoppers, not recorded ones") == 1
    assert printed.count("Note: 2 seed(s): a published table needs at least 5.") == 1
    table = views["purchase"]
    assert [row.label for row in table.rows] == models
    assert [row.paper_label for row in table.rows] == ["A3C-P", "IRN-P", "BPR", "CKNN"]
    mean = long.loc[(long["seed"] == "mean") & (long["slice"] == "purchase") & (long["metric"] == "recall")]
    for row in table.rows:
        expected = mean.loc[(mean["model"] == row.label) & (mean["k"] == 5)].iloc[0]
        figure = row.figures[1]
        assert (figure.value, figure.low, figure.high) == tuple(expected[["value", "low", "high"]])
        assert figure.paper == published.TABLE1[row.paper_label, "purchase", "recall", 5]
    assert {row.label for row in views["differences"].rows} == {models[0], *models[2:]}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["data_manifest"]["fingerprint"] == data.fingerprint()
    assert "simulated shoppers, not recorded ones" in manifest["notes"]
    assert "2 seed(s): a published table needs at least 5." in manifest["notes"]
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_another_experiment_in_the_folder_is_not_replaced_unless_asked(shop, cells, tmp_path, quick):
    run("table1", shop, tmp_path / "out", cells, "--seeds", "1", "--models", "s-pop", "most-recent")
    kept = (tmp_path / "out" / "table.csv").read_bytes()
    plan = make_plan(EXPERIMENTS["table1"], PreparedData.open(shop), cells, n_seeds=1, models=["s-pop"])
    with pytest.raises(InputError, match="already holds another experiment"):
        run_experiment(plan, tmp_path / "out")
    assert (tmp_path / "out" / "table.csv").read_bytes() == kept
    run_experiment(plan, tmp_path / "out", overwrite=True)
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="is not an experiment"):
        run_experiment(plan, tmp_path / "mine", overwrite=True)


def test_table2_puts_every_density_beside_the_papers(shop, cells, tmp_path, quick):
    agent = f"irn-p:{TINY},imagination_start=0"
    views = run("table2", shop, tmp_path / "out", cells, "--seeds", "1", "--models", agent, "session-knn")
    table = views["density-purchase"]
    assert [column.label for column in table.columns][:4] == [f"Recall@5, d = {d}" for d in ("1", "0.1", "0.05", "0")]
    assert [figure.paper for figure in table.rows[0].figures[:4]] == [0.752, 0.735, 0.725, 0.653]
    assert all(figure.value is not None for figure in table.rows[0].figures)
    assert [figure.value is None for figure in table.rows[1].figures] == [False, True, True, True] * 2
    assert views["density-purchase-recall"].series[0].x == (0.0, 0.05, 0.1, 1.0)


def test_table3_has_a_row_a_planner(shop, cells, tmp_path, quick):
    agent = f"irn-p:{TINY},imagination_start=0"
    views = run("table3", shop, tmp_path / "out", cells, "--seeds", "1", "--models", agent)
    table = views["planners"]
    assert [row.paper_label for row in table.rows] == ["1,1", "2,1", "1,2", "2,2"]
    assert table.rows[1].figures[0].paper == 0.413
    assert len(views["differences"].rows) == 3


def test_figure3_draws_validation_over_epochs_for_every_density(shop, cells, tmp_path, quick):
    agent = f"a3c-f:{TINY}"
    views = run("figure3", shop, tmp_path / "out", cells, "--seeds", "2", "--models", agent)
    chart = views["learning-d-01-recall"]
    assert isinstance(chart, LineChart) and chart.series[0].label == agent and chart.series[0].x == (1.0, 2.0)
    training = pd.read_csv(tmp_path / "out" / "training.csv")
    chosen = training[(training["model"] == f"{agent} · d = 0.1") & (training["epoch"] == 1)]
    assert chart.series[0].y[1] == pytest.approx(chosen["purchase_recall@5"].mean())


def test_cold_start_ends_where_the_whole_session_is_known(shop, cells, tmp_path, quick):
    views = run("figure4-cold-start", shop, tmp_path / "out", cells, "--seeds", "1", "--models", "session-knn", "s-pop")
    data = PreparedData.open(shop)
    plan = make_plan(EXPERIMENTS["figure4-cold-start"], data, cells, n_seeds=1, models=["s-pop"])
    folder = cells / plan.cells["s-pop"][0].name
    capped, events = read_extra(folder, "cold-start"), read_events(folder)
    assert sorted(capped["cap"].unique()) == list(range(1, 11))
    late, early = capped.loc[capped["cap"] == 10], (events["position"] <= 11).to_numpy()
    np.testing.assert_array_equal(late["rank_low"].to_numpy()[early], events["rank_low"].to_numpy()[early])
    table = views["cold-start-purchase-recall-table"]
    first = capped.loc[(capped["cap"] == 1) & (capped["kind"] == 1)]
    hits = recall(first["rank_low"].to_numpy(), first["rank_high"].to_numpy(), 5)
    assert table.rows[1].figures[0].value == pytest.approx(hits.mean(), rel=1e-12)
    assert views["cold-start-purchase-recall"].series[1].x == tuple(map(float, range(1, 11)))


def test_figure4_online_has_both_curves_and_cells_of_its_own(shop, cells, tmp_path, quick):
    agent = f"a3c-p:{TINY}"
    views = run("figure4-online", shop, tmp_path / "out", cells, "--seeds", "2", "--models", agent, "most-recent")
    chart = views["online-stream-purchase-recall"]
    assert [line.label for line in chart.series] == [agent, "most-recent"]
    assert len(chart.series[0].x) > 5 and len(chart.series[0].low) == len(chart.series[0].x)
    data = PreparedData.open(shop).fingerprint()
    fit, online = Cell(parse_model(agent), data, 0), Cell(parse_model(agent), data, 0, "online")
    assert fit.name != online.name and (cells / online.name).exists()
    with pytest.raises(InputError, match="trained on a whole log at once"):
        make_plan(EXPERIMENTS["figure4-online"], PreparedData.open(shop), cells, models=["session-knn"])


def test_agents_whose_training_ends_before_they_imagine_are_named(shop, cells):
    data = PreparedData.open(shop)
    n_events = data.train.n_events
    models = [f"irn-p:imagination_start={2 * n_events - more},epochs=2" for more in (0, 1)]
    for name, silent in (("table1", models[:1]), ("figure4-online", models)):
        notes = notes_of(make_plan(EXPERIMENTS[name], data, cells, models=[*models, "a3c-p"]))
        assert [note.split()[0] for note in notes if "imagines nothing" in note] == silent


def test_ii_rnn_needs_users_and_compares_with_the_rnn(shop, tmp_path, cells, quick):
    with pytest.raises(SystemExit):
        run("ii-rnn", shop, tmp_path / "none", cells)
    folder = tmp_path / "regulars"
    main(["shop", "--sessions", "400", "--items", "40", "--users", "60", "--min-item-support", "1",
          "--user-split", "share", "--min-user-sessions", "3", "--out", str(folder)])  # fmt: skip
    small = "hidden_units=8,epochs=2"
    models = ["most-recent", f"rnn:{small}", f"ii-rnn-lhs:{small}"]
    views = run("ii-rnn", folder, tmp_path / "out", cells, "--seeds", "2", "--models", *models)
    assert [row.label for row in views["ii-rnn"].rows] == models
    assert [row.label for row in views["ii-rnn-points"].rows] == [models[0], models[2]]
    value = {row.label: row.figures[0].value for row in views["ii-rnn"].rows}
    points = {row.label: row.figures[0].value for row in views["ii-rnn-points"].rows}
    assert points[models[2]] == pytest.approx(value[models[2]] - value[models[1]])
    assert views["first-n"].series[0].x[0] == 1.0


def test_the_claims_are_differences_of_mean_recall(shop, cells, tmp_path, quick, monkeypatch):
    small = "hidden_units=8,epochs=2"
    systems = tuple(
        System(system.name, f"{model}{',' if ':' in model else ':'}{small}", system.label)
        for system in EXPERIMENTS["readings"].systems
        for model in [system.model("paper")]
    )
    monkeypatch.setitem(
        EXPERIMENTS, "readings", replace(EXPERIMENTS["readings"], systems=systems, variants=READINGS[:2])
    )
    views = run("readings", shop, tmp_path / "out", cells, "--seeds", "1")
    claims, purchases = views["claims"], views["readings-purchase"]
    assert isinstance(claims, Table) and [column.label for column in claims.columns] == [c.label for c in CLAIMS]
    value = dict(zip([c.label for c in purchases.columns], [f.value for f in purchases.rows[1].figures], strict=True))
    by_name = {system.name: system.paper for system in systems}
    for claim, figure in zip(CLAIMS, claims.rows[1].figures, strict=True):
        if claim.slice == "purchase":
            expected = sum(weight * value[by_name[name]] for name, weight in claim.weights)
            assert figure.value is not None and figure.low is not None and figure.high is not None
            assert figure.value == pytest.approx(expected, abs=1e-12)
            assert figure.low <= figure.value <= figure.high
