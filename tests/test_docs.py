"""The worked examples of the documentation run as printed."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
from sessiongym import cli
from sessiongym.agents.config import AgentConfig, Branching, Reconstruction
from sessiongym.envs import ReplayOptions
from sessiongym.evaluate.models import parse_models

DOCS = Path(__file__).parents[1] / "docs"
SPARSITY = (DOCS / "sparsity-and-cold-start.md").read_text(encoding="utf-8")
ENVIRONMENT = (DOCS / "environment.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the page's shop lies."""
    folder = tmp_path_factory.mktemp("docs")
    (command,) = re.findall(r"^```bash\nsessiongym (.*)\n```$", SPARSITY, flags=re.MULTILINE)
    done = subprocess.run([sys.executable, "-m", "sessiongym", *command.split()], cwd=folder, capture_output=True)
    assert done.returncode == 0, done.stderr
    return folder


def run(block: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", block],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "160", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_sparsity_example_shows_that_fewer_rewards_teach_less(folder):
    dense_to_sparse, _ = re.findall(r"^```python\n(.*?)^```$", SPARSITY, flags=re.MULTILINE | re.DOTALL)
    printed = run(dense_to_sparse, folder)
    # The first table is that of purchases; its second figure is Recall@5.
    found = re.findall(r"density (\S+) +[\d.]+\*? +([\d.]+)\*? ", printed)[:3]
    assert [density for density, _ in found] == ["1", "0.1", "0.01"]
    recall = [float(value) for _, value in found]
    assert recall[0] > recall[1] > recall[2]
    quoted = re.search(r"Recall@5 falls from ([\d.]+) % to ([\d.]+) % and ([\d.]+) %", SPARSITY)
    assert quoted is not None and [float(value) for value in quoted.groups()] == [round(x, 1) for x in recall]


def test_the_cold_start_example_shows_that_more_is_known_later(folder):
    _, cold_start = re.findall(r"^```python\n(.*?)^```$", SPARSITY, flags=re.MULTILINE | re.DOTALL)
    printed = run(cold_start, folder)
    rows = re.findall(r"^ *(\d+) events known: ([\d.]+)% of (\d+) purchases", printed, flags=re.MULTILINE)
    assert [int(events) for events, _, _ in rows] == [1, 2, 3, 100]
    shares = [float(share) for _, share, _ in rows]
    assert sorted(shares) == shares and shares[0] < shares[-1]
    assert len({purchases for _, _, purchases in rows}) == 1
    assert f"```text\n{printed}```" in SPARSITY


def test_the_commands_of_the_page_are_ones_that_the_command_line_takes(monkeypatch):
    taken = []
    monkeypatch.setattr(cli, "_run", taken.append)
    (command,) = re.findall(r"`sessiongym (compare [^`]*)`", SPARSITY)
    cli.main(command.split())
    assert len(parse_models(taken[0].models)) == 3


def test_the_page_of_the_environment_makes_the_environments_and_names_every_option(folder):
    (block,) = re.findall(r"^```python\n(.*?)^```$", ENVIRONMENT, flags=re.MULTILINE | re.DOTALL)
    printed = run(block + "print(one.reset(seed=0)[0].shape, many.reset(seed=0)[0].shape)", folder)
    assert printed == "(20,) (128, 10)\n"
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.*?) \|", ENVIRONMENT, flags=re.MULTILINE))))
    assert named == {field.name for field in fields(ReplayOptions)} | {"max_episode_steps"}


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (DOCS / page).read_text(encoding="utf-8")):
        assert (DOCS / target).exists(), target


def test_every_field_of_an_agent_is_explained():
    page = (DOCS / "agents.md").read_text(encoding="utf-8")
    assert {field.name for field in fields(AgentConfig)} <= set(re.findall(r"`(\w+)`", page))


@pytest.mark.slow
def test_the_page_of_the_imagination_loss_runs_and_names_every_option(folder):
    page = (DOCS / "imagination-loss.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    printed = run("".join(blocks), folder)
    number = r"\d+\.\d+"
    assert re.fullmatch(rf"cross-entropy {number}, reconstruction {number}\nseen items {number}\n", printed)
    assert {*get_args(Branching), *get_args(Reconstruction)} <= set(re.findall(r'"([\w-]+)"', page))
