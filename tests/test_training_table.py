"""What a comparison says about training: rows of every epoch, and the epochs that were kept."""

import io
import json
import re

import pytest
from rich.console import Console
from sessiongym.evaluate.comparison_views import training_views
from sessiongym.evaluate.exports import table_console, table_markdown
from sessiongym.evaluate.training import training_table


def _write(folder, records):
    folder.mkdir()
    records = [{"epoch": float(epoch), "events": 10.0 * epoch, **record} for epoch, record in enumerate(records)]
    (folder / "scalars.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture
def cells(tmp_path):
    """Two seeds of a trained model, kept at epochs 1 and 0, and a model that was not trained."""
    (tmp_path / "recent").mkdir()
    scores = ([0.1, 0.3, 0.3], [0.4, 0.2])
    return {
        "agent": {
            seed: _write(tmp_path / f"agent{seed}", [{"validation": s, "copy_last": s} for s in scores[seed]])
            for seed in (0, 1)
        },
        "recent": {0: tmp_path / "recent", 1: tmp_path / "recent"},
    }


# The widest figures that are to be expected.
POLICY = {
    "validation": 1.0,
    "entropy": 10.5,
    **dict.fromkeys(("copy_last", "copy_earlier", "copy_any", "imagined_true", "imagined_new", "imagined_bias"), 1.0),
}
LEARNING = {
    **{f"gradient_norm_{loss}": 123.4567 for loss in ("policy", "value", "supervised", "imagination")},
    "advantage_mean": -12.345,
    "advantage_negative_share": 1.0,
    "value_bias": -0.001,
    "value_calibration_error": 12.345,
}


@pytest.fixture
def learners(tmp_path):
    """An agent with everything that there is to say, one from elsewhere without, and one of which two seeds differ."""
    return {
        "agent:imagination_weight=0.03,learning_rate=0.001": {0: _write(tmp_path / "whole", [POLICY | LEARNING])},
        "sb3-dqn": {0: _write(tmp_path / "sb3", [{"validation": 0.5}])},
        "lstm": {
            0: _write(tmp_path / "first", [{"validation": 0.1, "gradient_norm_policy": 0.25}]),
            1: _write(tmp_path / "second", [{"validation": 0.3}]),
        },
    }


def _markdown(folders):
    return table_markdown(*training_views(training_table(folders)))


def _rows(markdown):
    """The cells of each table, by model and heading."""
    tables = []
    for block in re.findall(r"(?:^\|.*\n?)+", markdown, flags=re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines()]
        tables.append({row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows})
    return tables


def test_every_epoch_is_a_row_and_the_first_best_one_is_kept(cells):
    table = training_table(cells)
    assert list(table[["model", "seed", "epoch"]].itertuples(index=False, name=None)) == [
        ("agent", 0, 0),
        ("agent", 0, 1),
        ("agent", 0, 2),
        ("agent", 1, 0),
        ("agent", 1, 1),
    ]
    assert table["kept"].tolist() == [False, True, False, True, False]


def test_every_scalar_is_a_column_in_the_order_of_its_record(learners):
    table = training_table(learners)
    records = [json.loads(line) for line in (learners["lstm"][0] / "scalars.jsonl").read_text().splitlines()]
    assert set(records[0]) <= set(table.columns)
    assert list(table.columns[:6]) == ["model", "seed", "kept", "epoch", "events", "validation"]
    assert table["gradient_norm_policy"].isna().tolist() == [False, True, False, True]


def test_the_summary_is_the_mean_over_seeds_of_the_kept_epochs(cells):
    # Epochs count from 1: (2 + 1) / 2; validation and copy rate: (30 + 40) / 2 %.
    assert _rows(_markdown(cells)) == [{"agent": {"epoch": "1.5", "valid.": "35.0", "last": "35.0"}}]


def test_models_and_sections_that_have_nothing_to_say_are_left_out(cells, learners):
    markdown = _markdown(learners)
    policy, learning = _rows(markdown)
    assert list(policy) == list(learners) and policy["sb3-dqn"]["last"] == ""
    assert list(learning) == [next(iter(learners)), "lstm"]
    # Only one of its seeds has been looked at.
    assert learning["lstm"]["policy"] == "0.250" and learning["lstm"]["value"] == ""
    assert "How it learns" in markdown and "How it learns" not in _markdown(cells)


def test_a_terminal_of_80_columns_shows_every_figure(learners):
    printed = io.StringIO()
    Console(width=80, file=printed).print(table_console(*training_views(training_table(learners))))
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for models in _rows(_markdown(learners)):
        for label, figures in models.items():
            # A label may go on in the next lines.
            assert any(line.split()[1:] == [*filter(None, figures.values())] for line in lines if label[:9] in line)
        assert any(line.split() == " ".join(["model", *figures]).split() for line in lines)
    label = next(iter(learners))
    assert label in "".join(line.split()[0] for line in lines if line.strip())


def test_what_rounds_to_nothing_has_no_sign(learners):
    _, learning = _rows(_markdown(learners))
    assert learning[next(iter(learners))]["V bias"] == "0.00"


def test_nothing_trained_gives_an_empty_table(cells):
    assert training_table({"recent": cells["recent"]}).empty
