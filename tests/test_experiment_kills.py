"""An experiment killed at random moments and continued ends with the tables of one left alone, no cell lost or redone.

SESSIONGYM_KILLS says how many kills (default 10).
"""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from sessiongym.cli import main

KILLS = int(os.environ.get("SESSIONGYM_KILLS", "10"))
TINY = "hidden_units=8,embedding_dim=8"
MODELS = ("bpr:epochs=3", f"a3c-p:{TINY},epochs=6,patience=6", f"irn-p:{TINY},epochs=3,imagination_start=0", "s-pop")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shop"
    main(["shop", "--sessions", "300", "--items", "40", "--min-item-support", "1", "--out", str(folder)])
    return folder


def start(shop, folder):
    """The command, in a process group of its own."""
    command = [sys.executable, "-m", "sessiongym", "experiment", "figure4-cold-start", "--data", str(shop)]
    command += ["--out", str(folder / "out"), "--seeds", "2", "--jobs", "2", "--models", *MODELS]
    with (folder / "log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def finished_cells(folder):
    """Name of each finished cell, and what would change if it were computed again."""
    cells = folder / "cells"
    found = {}
    for cell in cells.iterdir() if cells.exists() else ():
        if not cell.name.endswith((".partial", ".lock")):
            file = (cell / "manifest.json").stat()
            found[cell.name] = file.st_ino, file.st_mtime_ns
    return found


def tables(folder):
    """Every file of the result that holds figures, by name."""
    out = folder / "out"
    files = [out / "table.csv", out / "training.csv", out / "views.json", *sorted((out / "tables").iterdir())]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="kills process groups")
def test_killed_at_any_moment_and_continued_it_ends_as_if_left_alone(shop, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    began = time.monotonic()
    assert start(shop, alone).wait(600) == 0, (alone / "log").read_text()
    whole, expected, cells = time.monotonic() - began, tables(alone), set(finished_cells(alone))

    rng = np.random.default_rng(0)
    killed, rounds = 0, 0
    while killed < KILLS:
        folder = tmp_path / f"round{rounds}"
        folder.mkdir()
        rounds, before, ended = rounds + 1, {}, False
        while not ended:
            process = start(shop, folder)
            # Long enough now and then for an epoch or a cell to end, so that a round ends some day.
            patience = rng.uniform(0.05, 0.8) * whole if killed < KILLS else 600
            try:
                status = process.wait(patience)
                assert status == 0, (folder / "log").read_text()
                ended = True
            except subprocess.TimeoutExpired:
                if rng.random() < 0.5:
                    # Only the main process: its workers must end by themselves.
                    process.kill()
                else:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                killed += 1
            now = finished_cells(folder)
            assert before.items() <= now.items(), "a finished cell was lost or computed again"
            before = now
        assert set(before) == cells
        assert tables(folder) == expected
        assert not list((folder / "cells").glob("*.partial")), "unfinished work was left behind"
        assert not [name for name in os.listdir(folder / "out") if name.startswith(".")]
        shutil.rmtree(folder)
    assert killed == KILLS
    print(f"{killed} kills in {rounds} rounds")
