"""Choice sets: clicks and purchases without order, time or session id."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sessiongym.envs.log import CLICK, PURCHASE
from sessiongym.envs.sources.choice_sets import prepare_choice_sets
from sessiongym.envs.sources.options import CHOICE_SETS_OPTIONS, PrepareOptions
from sessiongym.errors import InputError

DATA = Path(os.environ.get("SESSIONGYM_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))

LOOSE = replace(CHOICE_SETS_OPTIONS, min_item_support=1)


@pytest.fixture
def written(tmp_path):
    def write(text):
        (tmp_path / "sets.txt").write_text(text)
        return tmp_path / "sets.txt"

    return write


@pytest.fixture(scope="session")
def real():
    file = DATA / "recsys15_choice_sets" / "yc-items-5-10-4-8.txt"
    if not file.is_file():
        pytest.skip(f"no real choice sets at {file}; set SESSIONGYM_DATA")
    return file


@pytest.fixture(scope="session")
def prepared(real):
    return prepare_choice_sets(real)


@pytest.fixture(scope="session")
def lines_of():
    def read(log):
        """{line number: (clicks in order, purchases in order)}."""
        events = list(zip(log.item_id[log.item].tolist(), log.kind.tolist(), strict=True))
        return {
            int(line): tuple([i for i, k in events[a:b] if k == kind] for kind in (CLICK, PURCHASE))
            for line, a, b in zip(log.session_id, log.offset[:-1], log.offset[1:], strict=True)
        }

    return read


def test_the_real_file_has_the_counts_of_its_description(prepared):
    read = prepared.manifest["steps"][0]
    assert [read[name] for name in ("sessions", "clicks", "purchases", "items")] == [156_039, 611_065, 297_255, 2_975]
    repeats = 156_039 - 122_697
    assert any(note.startswith(f"{repeats} of 156039 lines (21.4 %) repeat") for note in prepared.notes)


def test_every_real_line_is_found_again_under_its_number(real, prepared, lines_of):
    found = {}
    for log in (prepared.train, prepared.valid, prepared.test):
        found.update(lines_of(log))
    lines = real.read_text().splitlines()
    assert len(found) == len(lines)
    for number, line in enumerate(lines, start=1):
        for side, items in zip(line.split(";"), found[number], strict=True):
            assert sorted(map(int, side.split())) == sorted(items)


def test_identical_real_lines_share_a_split_by_default_and_not_by_session(real, prepared):
    for name in ("valid", "test"):
        assert prepared.manifest["overlap"][name]["sessions_also_in_train"] == 0
    assert "kept in one split" in prepared.notes[2]
    apart = prepare_choice_sets(real, replace(CHOICE_SETS_OPTIONS, split_by="session"))
    lines = real.read_text().splitlines()
    train = {lines[number - 1] for number in apart.train.session_id}
    shared = sum(lines[number - 1] in train for number in apart.test.session_id)
    assert apart.manifest["overlap"]["test"]["sessions_also_in_train"] == shared > 0
    assert "NOT kept together" in apart.notes[2]


def test_the_order_is_clicks_then_purchases_and_both_shuffled_by_the_seed(prepared, real):
    train = prepared.train
    rises = np.diff(train.kind.astype(int)) < 0
    assert (np.flatnonzero(rises) + 1 == train.offset[1:-1]).all()
    assert prepare_choice_sets(real).fingerprint() == prepared.fingerprint()
    assert prepare_choice_sets(real, replace(CHOICE_SETS_OPTIONS, seed=1)).fingerprint() != prepared.fingerprint()


def test_each_order_of_a_line_is_equally_likely(written, lines_of):
    n = 6000
    data = prepare_choice_sets(written("1 2 3;1 2\n" * n), replace(LOOSE, split_by="session"))
    orders = [order for log in (data.train, data.valid, data.test) for order in lines_of(log).values()]
    for side, n_orders in ((0, 6), (1, 2)):
        _, count = np.unique([order[side] for order in orders], axis=0, return_counts=True)
        # Five standard deviations of a binomial count.
        assert len(count) == n_orders
        assert np.abs(count - n / n_orders).max() < 5 * (n / n_orders * (1 - 1 / n_orders)) ** 0.5


def test_notes_state_the_imposed_order_and_the_random_split(prepared):
    assert "order within a session is imposed (seed 0)" in prepared.notes[0]
    assert "split is random (seed 0)" in prepared.notes[1]
    assert prepared.test.notes == prepared.notes


def test_lines_that_name_the_same_sets_in_another_order_are_the_same_content(written):
    data = prepare_choice_sets(written("1 2 3;1 2\n3 2 1;2 1\n" * 50 + "1 2;1\n" * 10 + "1 3;1\n" * 10), LOOSE)
    assert any(note.startswith("117 of 120 lines") for note in data.notes)
    assert data.manifest["overlap"]["test"]["sessions_also_in_train"] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2;1\n1 2 3\n", r"sets.txt:2: expected 2 fields separated by ';', found 1"),
        ("1 2;1\n\n1 2;1;2\n", r"sets.txt:3: expected 2 fields .* found 3"),
        ("1 2;1\n\n1 x;1\n", r"sets.txt:3: item ids must be whole numbers, found 'x'"),
        ("1 2;1\n1 2;1.5\n", r"sets.txt:2: item ids must be whole numbers, found '1.5'"),
        ("1 2;1\n1 2;\n", r"sets.txt:2: no bought items, expected at least one"),
        ("1 2;1\n ;1\n", r"sets.txt:2: no clicks items"),
        ("1;1\n1;x\n1;\nx;1\n ;1\n", r"sets.txt:2: item ids must be whole numbers, found 'x'"),
        ("", r"sets.txt: the file is empty"),
    ],
)
def test_a_damaged_line_is_named_with_its_number(written, text, message):
    with pytest.raises(InputError, match=message) as error:
        prepare_choice_sets(written(text), LOOSE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PrepareOptions(), "no times, found a split by time; give --random-split"),
        (PrepareOptions(split_at="start"), "no times, found a split by time; give --random-split"),
        (replace(CHOICE_SETS_OPTIONS, split_at="start"), "--split-at start: belongs to the split by time"),
        (replace(CHOICE_SETS_OPTIONS, latest_days=3.0), "no times, found --latest-days"),
        (replace(CHOICE_SETS_OPTIONS, latest_month=True), "no times, found --latest-month"),
    ],
)
def test_options_that_need_times_are_refused_by_name(written, options, message):
    with pytest.raises(InputError, match=message):
        prepare_choice_sets(written("1 2;1\n"), options)
