"""What the README prints is what runs. Its two lines that install are run, as printed, by `.ci/run`."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from sessiongym import cli
from sessiongym.baselines.popularity import MostPopular
from sessiongym.envs.log import PURCHASE
from sessiongym.evaluate import purchase_recall, rank_events, recall
from sessiongym.evaluate.models import DEFAULT_MODELS, MODEL_NAMES, parse_model, parse_models

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
INSTALLS = "python3 -m venv .venv && .venv/bin/pip install "


def _blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def _commands():
    lines = "".join(_blocks("bash") + _blocks("sh")).splitlines()
    parts = [part.removeprefix(".venv/bin/") for line in lines for part in line.split(" && ")]
    return [part.split()[1:] for part in parts if part.startswith("sessiongym ")]


def test_every_bash_block_is_run_here_or_by_ci():
    lines = "".join(_blocks("bash")).splitlines()
    assert [line for line in lines if not line.startswith((INSTALLS, "sessiongym shop "))] == []
    assert sum(line.startswith(INSTALLS) for line in lines) == 2
    # This is how .ci/run finds the lines to run; the two must not drift apart.
    assert f"'^{INSTALLS}" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the README's shop lies."""
    folder = tmp_path_factory.mktemp("readme")
    (shop,) = [block for block in _blocks("bash") if block.startswith("sessiongym shop ")]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    subprocess.run(["bash", "-ec", shop], cwd=folder, env={**os.environ, "PATH": path}, check=True)
    return folder


@pytest.fixture
def route(folder, monkeypatch, capsys):
    """Runs one of the README's three agents as printed: what it defines, and what it prints."""

    def run(number):
        snippets = _blocks("python")
        assert len(snippets) == 3
        # Twenty lines is what the README promises a reader who is short of time.
        assert len([line for line in snippets[number].splitlines() if line.strip()]) <= 20
        (folder / "agent.py").write_text(snippets[number], encoding="utf-8")
        monkeypatch.chdir(folder)
        result = runpy.run_path("agent.py")
        return result, capsys.readouterr().out

    return run


def _recalls(result, name):
    events = result["events"][name][0]
    return recall(events["rank_low"], events["rank_high"], 5)[events["kind"] == PURCHASE].mean()


def test_the_agent_learns_and_is_scored_as_printed(route):
    result, printed = route(0)
    assert "mine" in printed and "Lift" in printed and "simulated" in printed

    data, mine = result["data"], result["models"]["mine"]
    popular = MostPopular().fit(data.train)
    assert purchase_recall(mine, data.test) > purchase_recall(popular, data.test)

    def explored(events):
        return recall(events["rank_low"], events["rank_high"], 5)[~events["repeat"]].mean()

    assert explored(result["events"]["mine"][0]) > explored(rank_events(popular, data.test))


@pytest.mark.slow
def test_the_agent_of_stable_baselines3_learns_and_is_scored_as_printed(route):
    result, printed = route(1)
    assert "dqn" in printed and "simulated" in printed
    popular = MostPopular().fit(result["data"].train)
    assert _recalls(result, "dqn") > purchase_recall(popular, result["data"].test)


def test_the_plain_scoring_function_is_scored_as_printed(route):
    result, printed = route(2)
    assert "fading" in printed and "simulated" in printed
    popular = MostPopular().fit(result["data"].train)
    assert purchase_recall(result["model"], result["data"].test) > purchase_recall(popular, result["data"].test)


@pytest.mark.parametrize("arguments", _commands(), ids=" ".join)
def test_every_command_is_one_that_the_command_line_takes(arguments, monkeypatch):
    taken = []
    monkeypatch.setattr(cli, "_run", taken.append)
    cli.main(arguments)
    (command,) = taken
    parse_models(getattr(command, "models", None) or DEFAULT_MODELS)
    parse_model(getattr(command, "model", DEFAULT_MODELS[0]))


def test_the_models_it_lists_are_those_that_exist():
    rows = re.findall(r"^\| (`[^-|][^|]*`) \|", README, flags=re.MULTILINE)
    names = [name.split(":")[0] for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert set(names) == set(MODEL_NAMES)
    for text in re.findall(r"`((?:irn|a3c|lstm|session|sb3)-?[a-z]*[@:][^`]+)`", README):
        parse_model(text)
