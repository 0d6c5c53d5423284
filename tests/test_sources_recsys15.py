"""The RecSys15 files: hand-counted small ones in the original format, and the real buys."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sessiongym.cli import main
from sessiongym.envs.log import CLICK, PURCHASE
from sessiongym.envs.sources import parts
from sessiongym.envs.sources.memory import GB, check_room, peak_bytes
from sessiongym.envs.sources.options import RECSYS15_OPTIONS, PrepareOptions
from sessiongym.envs.sources.recsys15 import prepare_recsys15
from sessiongym.errors import InputError

DATA = Path(os.environ.get("SESSIONGYM_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))

CLICKS = """\
1,2014-04-07T10:51:09.277Z,500,0
1,2014-04-07T10:54:09.868Z,600,0
2,2014-04-08T13:56:37.614Z,500,S
2,2014-04-08T13:57:19.373Z,700,S
2,2014-04-08T13:58:00.000Z,600,S
3,2014-04-09T00:00:00.000Z,600,0
3,2014-04-09T00:00:01.000Z,500,0
4,2014-04-10T00:00:00.000Z,500,12
4,2014-04-10T00:00:01.000Z,800,12
"""
BUYS = """\
1,2014-04-07T10:54:09.868Z,600,1046,1
1,2014-04-07T10:54:09.867Z,500,1046,2
2,2014-04-08T14:00:00.000Z,700,0,0
4,2014-04-10T00:01:00.000Z,800,5,1
4,2014-04-10T00:02:00.000Z,500,5,1
99,2014-04-10T00:02:00.000Z,500,5,1
"""
LOOSE = PrepareOptions(min_item_support=1, buyers_only=True, test_days=1, valid_days=1)


@pytest.fixture
def files(tmp_path):
    def write(clicks=CLICKS, buys=BUYS):
        (tmp_path / "clicks.dat").write_text(clicks)
        (tmp_path / "buys.dat").write_text(buys)
        return tmp_path / "clicks.dat", tmp_path / "buys.dat"

    return write


def test_small_files_come_out_as_counted_by_hand(files):
    lines = []
    data = prepare_recsys15(*files(), options=LOOSE, progress=lines.append)
    counts = {step.pop("step"): tuple(step.values()) for step in data.manifest["steps"]}
    # sessions, events, clicks, purchases, items
    assert counts["read"] == (4, 14, 9, 5, 4)
    assert counts["sessions with a purchase"] == (3, 12, 7, 5, 4)
    assert counts["train+valid"] == (2, 8, 5, 3, 3)
    assert counts["train"] == (1, 4, 2, 2, 2)
    assert counts["valid"] == (1, 2, 2, 0, 2)
    assert counts["test"] == (1, 2, 1, 1, 1)
    assert data.manifest["events_read"] == 15
    assert [(drop["reason"], drop["events"], drop["sessions"]) for drop in data.manifest["dropped"]] == [
        ("buys whose session is not in the clicks", 1, 1),
        ("sessions without a purchase", 2, 1),
        ("events of valid and test whose item does not occur in train", 4, 0),
    ]
    assert data.manifest["paper"]["train+valid"]["ours"] == {"sessions": 2, "events": 8, "items": 3}
    assert data.manifest["sessions_without_purchase"] == {"train": 0, "valid": 1, "test": 0}
    assert any("1 buys of 1 sessions that are not in the clicks" in line for line in lines)


def test_unseen_items_are_kept_after_the_training_items_where_asked(files):
    keep = PrepareOptions(min_item_support=1, buyers_only=True, unseen="keep")
    data = prepare_recsys15(*files(), options=keep)
    assert data.train.item_id.tolist() == [500, 600, 700, 800]
    assert data.train.n_train_items == 2
    assert data.test.item_id[data.test.item].tolist() == [500, 800, 800, 500]


def test_clicks_and_buys_merge_by_time_and_a_tie_puts_the_click_first(files):
    data = prepare_recsys15(*files(), options=PrepareOptions(min_item_support=1, unseen="keep"))
    train = data.train
    assert train.session_id.tolist() == [1]
    first = slice(0, 4)
    assert train.item_id[train.item[first]].tolist() == [500, 500, 600, 600]
    assert train.kind[first].tolist() == [CLICK, PURCHASE, CLICK, PURCHASE]
    assert train.time[0] == 1396867869277 * 10**6


def test_defaults_are_the_papers(files):
    assert (RECSYS15_OPTIONS.latest_days, RECSYS15_OPTIONS.test_days, RECSYS15_OPTIONS.valid_days) == (30, 3, 1)
    assert RECSYS15_OPTIONS.buyers_only and RECSYS15_OPTIONS.unseen == "drop"
    assert (RECSYS15_OPTIONS.min_item_support, RECSYS15_OPTIONS.min_session_length) == (5, 2)


def test_rows_in_any_order_give_the_same_data(files):
    options = PrepareOptions(min_item_support=1, unseen="keep")
    straight = prepare_recsys15(*files(), options=options)
    backwards = "".join(reversed(CLICKS.splitlines(keepends=True)))
    assert prepare_recsys15(*files(clicks=backwards), options=options).fingerprint() == straight.fingerprint()


@pytest.mark.parametrize(
    ("clicks", "message"),
    [
        (CLICKS + "5,2014-04-11T00:00:00.000Z,5\n", r"clicks.dat:10: expected 4 fields separated by ',', found 3"),
        (
            CLICKS.replace("00:00:01.000Z,500", "00:00:xx.000Z,500"),
            r"clicks.dat:7: time must be an ISO-8601 .*00:00:xx",
        ),
        (CLICKS.replace("600,0\n3", "six,0\n3"), r"clicks.dat:6: item must be a whole number, found 'six'"),
        (CLICKS.replace("\n2,", "\n\n2,", 1).replace("\n4,", "\nx,", 1), r"clicks.dat:9: session must be .*'x'"),
        (CLICKS.replace("Z,800", "Z,"), r"clicks.dat:9: item is empty"),
        (CLICKS.replace("2014-04-08T13:57", "2014-04-08 13:57").replace("19.373Z", "19.373"), r"clicks.dat:4: time"),
        ("session,time,item,category\n" + CLICKS, r"clicks.dat:1: looks like a header line"),
        ("", r"clicks.dat: the file is empty"),
        ("\n\n", r"clicks.dat: has no rows"),
    ],
)
def test_a_damaged_line_is_named_with_its_number(files, clicks, message):
    with pytest.raises(InputError, match=message) as error:
        prepare_recsys15(*files(clicks=clicks), options=LOOSE)
    assert "\n" not in str(error.value)


def test_the_line_is_exact_far_into_a_file(files):
    good = "".join(f"{n},2014-04-07T10:51:09.277Z,{n % 50},0\n" for n in range(200_000))
    bad = good + "200000,2014-04-07T10:51:09.277Z,1e,0\n" + good[:100_000]
    with pytest.raises(InputError, match=r"clicks.dat:200001: item must be a whole number, found '1e'"):
        prepare_recsys15(*files(clicks=bad), options=LOOSE)


def test_buys_of_another_data_set_are_refused(files):
    with pytest.raises(InputError, match=r"buys.dat: none of its 1 sessions is in the clicks"):
        prepare_recsys15(*files(buys="99,2014-04-10T00:02:00.000Z,500,5,1\n"), options=LOOSE)


def test_missing_and_packed_files_are_refused(files, tmp_path):
    clicks, _ = files()
    with pytest.raises(InputError, match="no such file"):
        prepare_recsys15(clicks, tmp_path / "absent.dat", LOOSE)
    (tmp_path / "buys.7z").write_bytes(b"7z")
    with pytest.raises(InputError, match="unpack it"):
        prepare_recsys15(clicks, tmp_path / "buys.7z", LOOSE)


@pytest.fixture
def many(tmp_path):
    """Files of so many sessions of one to nine clicks and up to two buys, some lines out of place."""

    def write(n_sessions):
        rng = np.random.default_rng(7)
        session = rng.permutation(np.repeat(np.arange(n_sessions), rng.integers(1, 10, n_sessions)))
        nearly = np.argsort(session + rng.integers(0, 3, len(session)), kind="stable")
        for name, rows in (("clicks", session[nearly]), ("buys", rng.integers(0, n_sessions + 5, n_sessions // 4))):
            day = np.datetime64("2014-04-01T00:00:00.000", "ms") + rows * (60 * 86_400_000 // n_sessions)
            stamps = np.datetime_as_string(day + rng.integers(0, 3_600_000, len(rows)))
            items = 500 + rng.integers(0, 40, len(rows))
            rest = "0" if name == "clicks" else "1046,1"
            lines = [f"{s},{t}Z,{i},{rest}\n" for s, t, i in zip(rows, stamps, items, strict=True)]
            (tmp_path / f"{name}.dat").write_text("".join(lines))
        return tmp_path / "clicks.dat", tmp_path / "buys.dat"

    return write


@pytest.mark.parametrize(
    "options",
    [
        RECSYS15_OPTIONS,
        PrepareOptions(),
        PrepareOptions(latest_month=True, random_split=(0.5, 0.3, 0.2), split_by="content", unseen="keep"),
        PrepareOptions(buyers_only=True, buyers_cut="after", repeats="drop", basket_repeats="drop"),
    ],
)
def test_neither_parser_nor_parts_nor_memory_change_the_data(many, options, monkeypatch):
    files = many(2000)
    whole = prepare_recsys15(*files, options=options, fast=False)
    monkeypatch.setattr(parts, "PART_BYTES", 5000)
    for fast in (True, False):
        for memory in (None, 1e6):
            data = prepare_recsys15(*files, options=options, fast=fast, memory=memory)
            assert data.fingerprint() == whole.fingerprint()
            assert data.manifest == whole.manifest


@pytest.mark.slow
def test_the_peak_stays_below_the_memory_given(many):
    clicks, buys = many(100_000)
    clicks.write_text(clicks.read_text() * 30)
    program = f"""
from pathlib import Path
from sessiongym.envs.sources.memory import GB, peak_bytes
from sessiongym.envs.sources.recsys15 import prepare_recsys15
from sessiongym.envs.sources.options import PrepareOptions
import sys
memory = float(sys.argv[1]) or None
prepare_recsys15(Path({str(clicks)!r}), Path({str(buys)!r}), PrepareOptions(latest_days=5), memory=memory)
print(peak_bytes() / GB)
"""

    def peak(memory):
        command = [sys.executable, "-c", program, str(memory)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    # What the libraries take differs between machines, so the figure is set between the two.
    without, plenty = peak(0), peak(1e6)
    assert plenty < without
    assert peak((plenty + without) / 2) < (plenty + without) / 2


def test_too_little_memory_is_said_before_anything_is_kept(files):
    with pytest.raises(InputError, match=r"4 sessions so far need .* GB, found --memory 0.001; raise it"):
        prepare_recsys15(*files(), options=LOOSE, memory=0.001)
    check_room(peak_bytes() / GB + 1, 10_000, 1_000, "recsys15")
    with pytest.raises(InputError, match=r"the 100,000,000 events of 1,000 sessions .* need about .* --latest-days"):
        check_room(peak_bytes() / GB + 1, 100_000_000, 1_000, "recsys15")
    with pytest.raises(InputError, match="--memory: must be a positive number of GB, found 0"):
        prepare_recsys15(*files(), options=LOOSE, memory=0)


def test_the_command_line_passes_the_memory_on_and_writes_nothing_where_it_is_too_little(files, tmp_path, capsys):
    clicks, buys = map(str, files())
    command = ["prepare", "recsys15", "--clicks", clicks, "--buys", buys, "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--memory", "0.001"])
    assert stop.value.code == 2
    assert "found --memory 0.001; raise it" in capsys.readouterr().err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["buys.dat", "clicks.dat"]


def test_a_file_that_changes_between_two_passes_is_refused(files):
    clicks, buys = files()

    def grow(line):
        if line.endswith(f"clicks from {clicks}"):
            clicks.write_text(CLICKS + CLICKS.replace("\n4,", "\n5,"))

    with pytest.raises(InputError, match=r"clicks.dat: has changed since it was first read"):
        prepare_recsys15(clicks, buys, LOOSE, grow, memory=1e6)


def test_a_long_reading_reports_where_it_is(many, monkeypatch):
    monkeypatch.setattr("sessiongym.envs.sources.recsys15._LINES_A_REPORT", 2000)
    monkeypatch.setattr(parts, "PART_BYTES", 10_000)
    lines = []
    prepare_recsys15(*many(1000), options=PrepareOptions(), progress=lines.append)
    shares = [int(line.split("clicks, ")[1].split("%")[0]) for line in lines if "M lines/s" in line]
    assert shares == sorted(shares) and len(shares) >= 2 and 0 < shares[0] < shares[-1] <= 100


@pytest.fixture
def real_buys():
    file = DATA / "recsys15_buys" / "sampled_buys.csv"
    if not file.is_file():
        pytest.skip(f"no real buys at {file}; set SESSIONGYM_DATA")
    return file


def test_the_real_buys_are_read_whole(files, real_buys, tmp_path):
    head, body = real_buys.read_text().split("\n", 1)
    assert head.startswith("session_id")
    sessions = sorted({line.split(",", 1)[0] for line in body.splitlines()})
    clicks, buys = files("".join(f"{session},2014-04-01T00:00:00.000Z,1,0\n" for session in sessions), body)
    data = prepare_recsys15(clicks, buys, PrepareOptions(min_item_support=1, latest_days=200, test_days=3))
    read = data.manifest["steps"][0]
    assert (read["purchases"], read["sessions"], read["items"]) == (43_946, 16_806, 6_601)


def test_the_header_of_the_real_buys_is_pointed_out(files, real_buys):
    with pytest.raises(InputError, match=r"sampled_buys.csv:1: looks like a header line"):
        prepare_recsys15(files()[0], real_buys, LOOSE)
