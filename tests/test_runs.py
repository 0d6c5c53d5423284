"""Runs and cells: written whole, resumed exactly, never computed twice."""

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
import torch
from sessiongym.baselines.session_knn import SessionKNN
from sessiongym.cli import main
from sessiongym.envs.log import PreparedData
from sessiongym.errors import InputError
from sessiongym.evaluate import runs
from sessiongym.evaluate.events import rank_events
from sessiongym.evaluate.models import parse_model
from sessiongym.evaluate.runs import Cell, check_device, compute_cell, open_run, read_events, read_extra, train_run

TINY = "hidden_units=16,embedding_dim=16"
A3C = f"a3c-p:{TINY},epochs=3"


FILES = {
    "manifest.json",
    "agent.json",
    "model.safetensors",
    "scalars.jsonl",
    "tensorboard",
    "events.parquet",
    "honesty.json",
    "last.safetensors",
}
"""Of the cell of an agent."""


@pytest.fixture(scope="module")
def shops(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for seed in (0, 1):
        sizes = ["--sessions", "200", "--items", "40", "--min-item-support", "1", "--seed", str(seed)]
        main(["shop", *sizes, "--out", str(folder / f"shop{seed}")])
    return [PreparedData.open(folder / f"shop{seed}") for seed in (0, 1)]


@pytest.fixture
def shop(shops):
    return shops[0]


@pytest.fixture(autouse=True)
def threads():
    """The command line trains with one thread; other tests keep theirs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _content(folder, *names):
    return {name: (folder / name).read_bytes() for name in names}


def test_train_then_evaluate_is_the_cell_bit_for_bit(shop, tmp_path):
    model, run = f"irn-p:{TINY},epochs=3,imagination_start=0", tmp_path / "run"
    main(["train", model, "--seed", "3", "--data", str(shop.path), "--out", str(run)])
    main(["evaluate", str(run), "--data", str(shop.path)])
    cell = compute_cell(Cell(parse_model(model), shop.fingerprint(), 3), shop, tmp_path / "cells", "cpu")
    names = ("model.safetensors", "events.parquet", "honesty.json", "scalars.jsonl")
    assert _content(run, *names) == _content(cell, *names)


def test_an_interrupted_training_ends_with_the_weights_of_one_left_alone(shop, tmp_path):
    spec = parse_model(A3C)
    train_run(tmp_path / "whole", spec, shop, 1, "cpu")

    def stop(done, total, text):
        if text.startswith("epoch 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(tmp_path / "cut", spec, shop, 1, "cpu", stop)
    assert not (tmp_path / "cut").exists() and (tmp_path / "cut.partial" / "checkpoint.safetensors").exists()
    epochs = []
    train_run(tmp_path / "cut", spec, shop, 1, "cpu", lambda done, total, text: epochs.append(text.split(",")[0]))
    assert epochs[0] == "epoch 2/3"
    names = ("model.safetensors", "scalars.jsonl")
    assert _content(tmp_path / "cut", *names) == _content(tmp_path / "whole", *names)
    assert not (tmp_path / "cut.partial").exists()


@pytest.mark.parametrize("model", ["sb3-dqn", "sb3-a2c:n_steps=4"])
def test_an_agent_of_stable_baselines3_is_a_cell_like_any_other(shop, tmp_path, model):
    model += "" if ":" in model else ":batch_size=32"
    model += f",{TINY},total_steps=512,evaluation_steps=256"
    run = tmp_path / "run"
    main(["train", model, "--seed", "3", "--data", str(shop.path), "--out", str(run)])
    main(["evaluate", str(run), "--data", str(shop.path)])
    cell = compute_cell(Cell(parse_model(model), shop.fingerprint(), 3), shop, tmp_path / "cells", "cpu")
    names = ("model.safetensors", "events.parquet", "honesty.json", "scalars.jsonl")
    assert _content(run, *names) == _content(cell, *names)
    assert {path.name for path in cell.iterdir()} == FILES
    assert "stable-baselines3" in json.loads((cell / "manifest.json").read_text())["versions"]


def test_unfinished_work_on_something_else_is_not_mixed_up(shop, tmp_path):
    def stop(done, total, text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(tmp_path / "run", parse_model(A3C), shop, 1, "cpu", stop)
    with pytest.raises(InputError, match=r"run.partial: holds unfinished work on another model, data set or seed"):
        train_run(tmp_path / "run", parse_model(A3C), shop, 2, "cpu")


def test_a_finished_run_is_never_trained_over(shop, tmp_path):
    train_run(tmp_path / "run", parse_model("most-recent"), shop, 0, "cpu")
    with pytest.raises(InputError, match="run: already exists"):
        train_run(tmp_path / "run", parse_model("most-recent"), shop, 0, "cpu")


def test_a_run_is_refused_other_data_than_its_own(shops, tmp_path, capsys):
    run = tmp_path / "run"
    train_run(run, parse_model("most-recent"), shops[0], 0, "cpu")
    with pytest.raises(SystemExit) as end:
        main(["evaluate", str(run), "--data", str(shops[1].path)])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith(f"error: {run}: trained on data with fingerprint ")
    assert error.count("\n") == 1 and str(shops[0].path) in error and str(shops[1].path) in error
    assert not (run / "events.parquet").exists() and not (run / "table.csv").exists()


def test_a_model_without_weights_is_fitted_anew_when_its_run_is_opened(shop, tmp_path):
    spec = parse_model("session-knn:k=7")
    train_run(tmp_path / "run", spec, shop, 0, "cpu")
    _, model = open_run(tmp_path / "run", shop, "cpu")
    events = runs.rank_into(tmp_path / "run", model, shop, "most-recent")
    cell = compute_cell(Cell(spec, shop.fingerprint(), 0), shop, tmp_path / "cells", "cpu")
    pd.testing.assert_frame_equal(events, read_events(cell))


def test_a_reopened_run_keeps_its_configuration_whatever_its_name_means_by_now(shop, tmp_path):
    train_run(tmp_path / "knn", parse_model("session-knn"), shop, 0, "cpu")
    manifest = json.loads((tmp_path / "knn" / "manifest.json").read_text())
    manifest["config"]["k"] = 7
    (tmp_path / "knn" / "manifest.json").write_text(json.dumps(manifest))
    _, model = open_run(tmp_path / "knn", shop, "cpu")
    assert isinstance(model, SessionKNN) and model.config.k == 7


def test_a_cell_holds_what_can_be_kept_and_nothing_to_unpickle(shop, tmp_path):
    spec = parse_model(A3C)
    folder = compute_cell(Cell(spec, shop.fingerprint(), 5), shop, tmp_path, "cpu")
    names = {path.name for path in folder.iterdir()}
    assert names == FILES and [path.name for path in tmp_path.iterdir()] == [folder.name]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["config"]["hidden_units"] == 16 and manifest["seed"] == 5 and manifest["notes"] == list(shop.notes)
    assert manifest["data"] == shop.fingerprint() and "torch" in manifest["versions"]
    epochs = [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in epochs] == [0, 1, 2]


def test_a_finished_cell_is_left_untouched(shop, tmp_path):
    cell = Cell(parse_model("s-pop"), shop.fingerprint(), 0)
    folder = compute_cell(cell, shop, tmp_path, "cpu")
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}
    assert compute_cell(cell, shop, tmp_path, "cpu") == folder
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]} == before


def test_cells_are_one_only_if_model_configuration_data_and_seed_are():
    cell = Cell(parse_model("a3c-p"), "data", 0)
    units = cell.spec.config.hidden_units  # pyright: ignore[reportAttributeAccessIssue]
    assert Cell(parse_model(f"a3c-p:hidden_units={units}"), "data", 0).name == cell.name
    others = [
        Cell(parse_model("a3c-p@paper"), "data", 0),
        Cell(parse_model("a3c-p:gamma=0.5"), "data", 0),
        Cell(parse_model("a3c-p"), "other", 0),
        Cell(parse_model("a3c-p"), "data", 1),
        Cell(parse_model("most-recent"), "data", 0),
        Cell(parse_model("s-pop"), "data", 0),
    ]
    assert len({cell.name, *(other.name for other in others)}) == 1 + len(others)
    assert Cell(parse_model("s-pop"), "data", 4).name == Cell(parse_model("s-pop"), "data", 0).name


def test_many_at_once_compute_every_cell_once_and_whole(shop, tmp_path, monkeypatch):
    trained, n_workers = Counter(), 8

    def train_into(work, spec, data, seed, device, progress):
        trained[seed] += 1
        (work / "manifest.json").write_text(str(seed))

    monkeypatch.setattr(runs, "_train_into", train_into)
    monkeypatch.setattr(runs, "rank_into", lambda folder, model, data, name: None)
    cells = [Cell(parse_model("a3c-p"), "data", seed) for seed in range(100)]
    together = threading.Barrier(n_workers)

    def work(_):
        together.wait()
        return [compute_cell(cell, shop, tmp_path, "cpu") for cell in cells]

    with ThreadPoolExecutor(n_workers) as pool:
        folders = list(pool.map(work, range(n_workers)))
    assert trained == Counter(range(len(cells)))
    assert all(found == folders[0] for found in folders)
    assert [(folder / "manifest.json").read_text() for folder in folders[0]] == [str(cell.seed) for cell in cells]
    assert {path.name for path in tmp_path.rglob("*")} == {"manifest.json", *(cell.name for cell in cells)}


def test_the_cpu_is_always_there_and_auto_finds_something():
    assert check_device("cpu") == "cpu"
    assert check_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    for wrong in ("", "tpu", "cuda:-1", "cuda:x", "cpu:0"):
        with pytest.raises(InputError, match="expected cpu, cuda, cuda:N or auto"):
            check_device(wrong)


@pytest.mark.parametrize(
    "model", ["lstm:hidden_units=8,embedding_dim=8,epochs=3", "rnn:hidden_units=8,epochs=3", "bpr:epochs=3"]
)
def test_the_last_weights_are_those_of_a_training_that_chooses_nothing(shop, tmp_path, model):
    spec = parse_model(model)
    cell = compute_cell(Cell(spec, shop.fingerprint(), 0), shop, tmp_path / "cells", "cpu", extra="last")
    last = spec.create(0, "cpu")
    last.fit(shop.train, None)
    pd.testing.assert_frame_equal(read_extra(cell, "last"), rank_events(last, shop.test, train=shop.train))


def test_a_cell_without_last_weights_says_what_to_do(shop, tmp_path):
    cell = Cell(parse_model("bpr:epochs=1"), shop.fingerprint(), 0)
    folder = compute_cell(cell, shop, tmp_path / "cells", "cpu")
    (folder / "last.safetensors").unlink()
    with pytest.raises(InputError, match=r"remove .* to compute it anew"):
        compute_cell(cell, shop, tmp_path / "cells", "cpu", extra="last")
