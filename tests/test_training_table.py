"""What a comparison says about training: rows of every epoch, and the epochs that were kept."""

import json

import pytest
from sessiongym.evaluate.training import training_console_table, training_markdown, training_table


@pytest.fixture
def cells(tmp_path):
    """Two seeds of a trained model, kept at epochs 1 and 0, and a model that was not trained."""
    for seed, scores in enumerate(([0.1, 0.3, 0.3], [0.4, 0.2])):
        (tmp_path / f"agent{seed}").mkdir()
        records = [{"epoch": e, "events": 10.0 * e, "validation": s, "copy_last": s} for e, s in enumerate(scores)]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"agent{seed}" / "scalars.jsonl").write_text(lines)
    (tmp_path / "recent").mkdir()
    return {
        "agent": {0: tmp_path / "agent0", 1: tmp_path / "agent1"},
        "recent": {0: tmp_path / "recent", 1: tmp_path / "recent"},
    }


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


def test_the_summary_is_the_mean_over_seeds_of_the_kept_epochs(cells):
    row = training_markdown(training_table(cells)).splitlines()[4]
    # Epochs count from 1: (2 + 1) / 2; validation and copy rate: (30 + 40) / 2 %.
    assert row == "| agent | 1.5 | 35.0 | 35.0 |"
    assert training_console_table(training_table(cells)).row_count == 1


def test_nothing_trained_gives_an_empty_table(cells):
    assert training_table({"recent": cells["recent"]}).empty
