"""The comparison: what it writes, and that it survives being stopped at any moment, as real processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from sessiongym.cli import main
from sessiongym.envs.log import PreparedData
from sessiongym.errors import InputError
from sessiongym.evaluate import models
from sessiongym.evaluate.compare import compare
from sessiongym.evaluate.events import SLICES
from sessiongym.evaluate.exports import read_views, table_console, table_markdown
from sessiongym.evaluate.metrics import METRICS
from sessiongym.evaluate.models import REFERENCES, parse_model
from sessiongym.evaluate.runs import Cell, compute_cell, read_events
from sessiongym.evaluate.table import read_table

TINY = "hidden_units=16,embedding_dim=16"
SHORT = f"a3c-p:{TINY},epochs=2"
LONG = f"lstm:{TINY},epochs=30,patience=30"
PLAN = ("--models", SHORT, LONG, "most-recent", "--no-references")
PROC = Path("/proc")

needs_proc = pytest.mark.skipif(not (PROC / "self" / "stat").exists(), reason="finds processes through /proc")


@pytest.fixture(scope="module")
def start():
    """Starts the command as a process of a group of its own, as a shell does; nothing of it outlives the tests."""
    started = []

    def call(data, out, *arguments):
        given = [sys.executable, "-m", "sessiongym", "compare", "--data", data, "--out", out, *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # A shell starts what it runs in the background with SIGINT ignored, and so would every process from there on.
        heard = {"start_new_session": True, "preexec_fn": partial(signal.signal, signal.SIGINT, signal.SIG_DFL)}
        started.append(subprocess.Popen([str(argument) for argument in given], **heard, **pipes))
        return started[-1]

    yield call
    for process in started:
        for pid in _group(process):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shop"
    main(["shop", "--sessions", "200", "--items", "40", "--min-item-support", "1", "--out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def referenced(start, shop, tmp_path_factory):
    """A comparison with references and two seeds: its folder, standard output and standard error."""
    out = tmp_path_factory.mktemp("referenced") / "out"
    process = start(shop, out, "--models", SHORT, "--seeds", 2, "--jobs", 2)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return out, stdout, stderr


@pytest.fixture(scope="module")
def undisturbed(start, shop, tmp_path_factory):
    """table.csv of `PLAN`, computed by one worker that nobody disturbs."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    _finish(start(shop, out, *PLAN, "--jobs", 1))
    return (out / "table.csv").read_bytes()


def _finish(process):
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return stdout, stderr


def _group(process):
    """{pid: command line} of the living members of the process's group."""
    members = {}
    for folder in PROC.glob("[0-9]*"):
        try:
            state, _, group = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:3]
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(group) == process.pid and state != "Z":
            members[int(folder.name)] = command
    return members


def _workers(process):
    return [pid for pid, command in _group(process).items() if "multiprocessing.spawn" in command]


def _status(pid, name):
    lines = (PROC / str(pid) / "status").read_text().splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(f"{name}:"))


def _wait_until(condition, process=None):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        assert process is None or process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


def _into_training(process, data, cells):
    """Wait until one cell is finished and the long one is in mid-training."""
    fingerprint = PreparedData.open(data).fingerprint()
    finished, training = (cells / Cell(parse_model(model), fingerprint, 0).name for model in (SHORT, LONG))
    checkpoint = training.with_name(f"{training.name}.partial") / "checkpoint.safetensors"
    _wait_until(lambda: finished.exists() and checkpoint.exists(), process)
    return finished


def _times(folder):
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def _call(capsys, *arguments):
    capsys.readouterr()
    try:
        main(["compare", *map(str, arguments)])
    except SystemExit as end:
        return end.code, *capsys.readouterr()
    return 0, *capsys.readouterr()


def test_the_table_has_a_row_for_every_seed_and_their_mean(referenced):
    long = read_table(referenced[0] / "table.csv")
    with (referenced[0] / "table.csv").open() as lines:
        assert lines.readline() == "model,slice,metric,k,seed,value,low,high,events\n"
    parts = ("", "/repeat", "/explore")
    assert set(long["slice"]) == {f"{name}{part}" for name in ("purchase", "click", "first", "all") for part in parts}
    assert set(long["seed"]) == {"0", "1", "mean"} and set(long["k"]) == {3, 5, 10}
    models = list(dict.fromkeys(long["model"]))
    assert models == [SHORT, *REFERENCES]
    assert len(long) == len(models) * len(SLICES) * len(METRICS) * 3 * 3
    assert not long.duplicated(["model", "slice", "metric", "k", "seed"]).any()


def test_event_rows_are_those_of_every_model_and_seed(referenced, shop):
    events = pd.read_parquet(referenced[0] / "events.parquet")
    test = PreparedData.open(shop).test
    sizes = events.groupby(["model", "seed"], observed=True).size()
    assert len(sizes) == 2 * (1 + len(REFERENCES)) and set(sizes) == {test.n_events - test.n_sessions}
    cells = referenced[0].parent / "cells"
    for seed in (0, 1):
        cell = Cell(parse_model(SHORT), PreparedData.open(shop).fingerprint(), seed)
        rows = events.loc[(events["model"] == SHORT) & (events["seed"] == seed), :].drop(columns=["model", "seed"])
        pd.testing.assert_frame_equal(rows.reset_index(drop=True), read_events(cells / cell.name))


def test_seeds_matter_to_trained_models_only(referenced):
    long = read_table(referenced[0] / "table.csv").set_index(["model", "seed"])["value"]
    assert not np.array_equal(long.loc[SHORT, "0"], long.loc[SHORT, "1"], equal_nan=True)
    assert np.array_equal(long.loc["s-pop", "0"], long.loc["s-pop", "1"], equal_nan=True)


def test_the_table_goes_to_stdout_and_plain_progress_to_stderr(referenced):
    out, stdout, stderr = referenced
    assert "Purchase, " in stdout and "most-recent:bought=last" in stdout.replace("\n", "")
    files = "table.csv, table.md, training.csv, events.parquet, views.json, manifest.json"
    assert stdout.splitlines()[-1] == f"written to {out}: {files}"
    assert "finished" not in stdout and "\x1b" not in stdout + stderr
    n_cells = 2 * 3 + len(REFERENCES) - 2
    lines = [line.split(" s ", 1)[1] for line in stderr.splitlines()]
    assert lines[0].startswith(f"{n_cells} cells, 0 of them finished before")
    assert lines[-1].endswith(f"finished ({n_cells} of {n_cells})")
    assert f"{SHORT} seed 1: epoch 1/2" in lines


def test_caveats_of_the_data_stand_once_under_the_tables(referenced):
    for text in (referenced[1], (referenced[0] / "table.md").read_text()):
        assert text.count("Note: simulated shoppers, not recorded ones") == 1
        assert text.count("Note: 2 seed(s): a published table needs at least 5.") == 1
        assert text.count("Note: Mean over 2 seeds, intervals over sessions; ties: expected.") == 1


def test_the_tables_of_the_views_are_what_is_printed_and_written(referenced):
    out, stdout, _ = referenced
    views, notes = read_views(out), json.loads((out / "manifest.json").read_text())["notes"]
    assert (out / "table.md").read_text(encoding="utf-8") == table_markdown(*views, notes=notes)
    console = Console(width=80, file=StringIO())
    console.print(table_console(*views, notes=notes))
    printed = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert stdout.startswith(printed)


def test_the_same_command_again_computes_nothing(start, referenced, shop):
    out = referenced[0]
    table, cells = (out / "table.csv").read_bytes(), _times(out.parent / "cells")
    _, stderr = _finish(start(shop, out, "--models", SHORT, "--seeds", 2, "--jobs", 2))
    assert "10 cells, 10 of them finished before" in stderr and len(stderr.splitlines()) == 1
    assert (out / "table.csv").read_bytes() == table
    assert _times(out.parent / "cells") == cells
    assert sorted(path.name for path in out.parent.iterdir()) == ["cells", "out"]


def test_another_plan_into_the_same_folder_is_refused_unless_told_to_replace(referenced, shop, tmp_path, capsys):
    out, cells = tmp_path / "out", referenced[0].parent / "cells"
    shutil.copytree(referenced[0], out)
    before = _times(out)
    given = "--data", shop, "--out", out, "--cells", cells, "--models", SHORT
    status, _, err = _call(capsys, *given, "--seeds", 1)
    assert status == 2 and err.startswith(f"error: {out}: already holds another comparison (it differs in seeds)")
    assert err.count("\n") == 1 and _times(out) == before
    assert _call(capsys, *given, "--seeds", 1, "--overwrite")[0] == 0
    assert set(read_table(out / "table.csv")["seed"]) == {"0", "mean"}


def test_differences_to_another_model_make_the_tables_anew_and_compute_no_cell(referenced, shop, tmp_path, capsys):
    out, cells = tmp_path / "out", referenced[0].parent / "cells"
    shutil.copytree(referenced[0], out)
    before, table = _times(cells), (out / "table.csv").read_bytes()
    given = "--data", shop, "--out", out, "--cells", cells, "--models", SHORT, "--seeds", 2
    for against in ("most-recent", SHORT):
        status, stdout, stderr = _call(capsys, *given, "--against", against)
        assert status == 0 and "10 cells, 10 of them finished before" in stderr and len(stderr.splitlines()) == 1
        differences = pd.read_csv(out / "differences.csv")
        assert set(differences["against"]) == {against} and set(differences["k"]) == {5}
        assert set(differences["model"]) == {SHORT, *REFERENCES} - {against}
        title = f"Recall@5 minus that of {against}"
        assert title in " ".join(stdout.split()) and f"**{title}**" in (out / "table.md").read_text()
        assert "table.csv, table.md, differences.csv, training.csv" in stdout.splitlines()[-1]
        assert json.loads((out / "manifest.json").read_text())["against"] == against
    assert (out / "table.csv").read_bytes() == table and _times(cells) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--models", SHORT, "--against", "irn-p"], f"({', '.join([SHORT, *REFERENCES])}), found 'irn-p'"),
        (["--models", "s-pop", "--no-references", "--against", "s-pop"], "(s-pop), found 's-pop'"),
        (["--models", "s-pop", "--no-references", "--against", "lstm"], "(s-pop), found 'lstm'"),
    ],
)
def test_differences_to_a_model_that_is_not_compared_are_refused_before_anything_is_made(
    tmp_path, capsys, arguments, said
):
    status, _, err = _call(capsys, "--out", tmp_path / "out", *arguments)
    assert status == 2 and err.count("\n") == 1 and not list(tmp_path.iterdir())
    assert err.startswith("error: --against: expected one of several models of this comparison") and said in err


def test_info_describes_a_comparison(referenced, capsys):
    main(["info", str(referenced[0])])
    out = capsys.readouterr().out
    assert f"comparison of {SHORT}, most-recent" in out and "2 seed(s)" in out and "note: simulated" in out


def test_an_empty_slice_is_blank_and_choice_sets_keep_their_caveats(tmp_path, capsys):
    file, data, out = tmp_path / "sets.txt", tmp_path / "data", tmp_path / "out"
    # Nobody clicks twice on anything, so no click repeats; some lines repeat another.
    file.write_text("".join(f"{n % 7} {n % 5 + 7} {n % 3 + 12};{n % 7}\n" for n in range(150)))
    split = "--min-item-support", "1", "--split-by", "session"
    main(["prepare", "choice-sets", "--file", str(file), *split, "--out", str(data)])
    prepared = PreparedData.open(data)
    compute_cell(Cell(parse_model("most-popular"), prepared.fingerprint(), 0), prepared, tmp_path / "cells", "cpu")
    status, stdout, _ = _call(capsys, "--data", data, "--models", "most-popular", "--no-references", "--out", out)
    assert status == 0
    rows = [line.split(",") for line in (out / "table.csv").read_text().splitlines() if ",click/repeat," in line]
    assert len(rows) == len(METRICS) * 3 * 2
    assert {tuple(row[5:]) for row in rows} == {("", "", "", "0")}
    for text in (" ".join(stdout.split()), (out / "table.md").read_text()):
        assert "Note: The file gives no order: the order within a session is imposed (seed 0)" in text
        assert "Note: The split is random (seed 0), not by time." in text
        assert "repeat an earlier line; identical sessions are NOT kept together by the split." in text


def test_all_models_are_those_that_the_log_has_users_for_and_the_table_says_who_is_left_out(
    shop, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(models, "MODEL_NAMES", ("most-recent", "s-pop", "ii-rnn-ap"))
    plan = ("--models", "all", "--no-references", "--jobs", "1")
    assert _call(capsys, "--data", shop, "--out", tmp_path / "all", *plan)[0] == 0
    assert set(read_table(tmp_path / "all" / "table.csv")["model"]) == {"most-recent", "s-pop"}
    assert "Left out, because the log has no users: ii-rnn-ap." in (tmp_path / "all" / "table.md").read_text()
    code, _, error = _call(
        capsys, "--data", shop, "--out", tmp_path / "named", "--models", "ii-rnn-ap", "--no-references"
    )
    assert code == 2 and "ii-rnn-ap: reads what a user did before, and" in error and "has no users" in error
    assert not (tmp_path / "named").exists()


def test_data_that_is_in_no_folder_is_refused(shop, tmp_path):
    data = PreparedData.open(shop)
    loose = PreparedData(data.train, data.valid, data.test, data.manifest)
    with pytest.raises(InputError, match="the data from its folder"):
        compare(loose, ["most-recent"], 1, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_at_once_on_the_same_cells_both_get_the_table_of_one_job(start, shop, tmp_path, undisturbed):
    outs = [tmp_path / "a", tmp_path / "b"]
    processes = [start(shop, out, *PLAN, "--jobs", 2) for out in outs]
    for process in processes:
        _finish(process)
    assert [(out / "table.csv").read_bytes() for out in outs] == [undisturbed] * 2
    assert len(list((tmp_path / "cells").iterdir())) == 3


def _interrupt(process):
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert stderr.splitlines()[-1].endswith("stopped; finished cells are kept, the same command goes on from there")
    assert "Traceback" not in stderr and "Error" not in stderr


def _kill_parent(process):
    process.kill()
    process.communicate(timeout=60)


def _kill_worker(process):
    workers = _workers(process)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (1, "")
    assert stderr.splitlines()[-1].startswith("error: a worker process died") and "Traceback" not in stderr


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("disturb", [_interrupt, _kill_parent, _kill_worker])
def test_stopped_in_mid_training_no_process_stays_and_the_same_command_finishes(
    start, shop, tmp_path, undisturbed, disturb
):
    out, cells = tmp_path / "out", tmp_path / "cells"
    process = start(shop, out, *PLAN, "--jobs", 2)
    finished = _into_training(process, shop, cells)
    disturb(process)
    _wait_until(lambda: not _group(process))
    assert not out.exists()
    kept = _times(finished)
    _finish(start(shop, out, *PLAN, "--jobs", 2))
    assert (out / "table.csv").read_bytes() == undisturbed
    assert _times(finished) == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells", "out"]
    assert not list(cells.glob("*.partial"))


@needs_proc
def test_interrupted_while_workers_still_start_nothing_but_the_hint_is_printed(start, shop, tmp_path):
    process = start(shop, tmp_path / "out", *PLAN, "--jobs", 2)
    _wait_until(lambda: len(_workers(process)) == 2, process)
    blocked = [_status(pid, "SigBlk") for pid in _workers(process)]
    assert all(int(mask, 16) & 1 << (signal.SIGINT - 1) for mask in blocked)
    _interrupt(process)
    _wait_until(lambda: not _group(process))
