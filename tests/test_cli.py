"""The command line as a user meets it: help, preparing, describing, and every kind of bad input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sessiongym.cli import main
from sessiongym.envs.log import PreparedData

DATA = Path(os.environ.get("SESSIONGYM_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))

CLICKS = """\
1,2014-04-07T10:51:09.277Z,500,0
1,2014-04-07T10:54:09.868Z,600,0
2,2014-04-08T13:56:37.614Z,500,S
2,2014-04-08T13:57:19.373Z,600,S
3,2014-04-09T00:00:00.000Z,600,0
3,2014-04-09T00:00:01.000Z,500,0
"""
BUYS = """\
1,2014-04-07T10:54:09.868Z,600,1046,1
2,2014-04-08T14:00:00.000Z,500,0,0
3,2014-04-09T00:01:00.000Z,500,5,1
99,2014-04-10T00:02:00.000Z,500,5,1
"""
TINY = "a3c-p:hidden_units=8,embedding_dim=8,epochs=1"


@pytest.fixture
def command(capsys):
    """Calls the command line in this process: exit status, standard output, standard error."""

    def call(*arguments):
        status = 0
        capsys.readouterr()
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def refused(command, tmp_path):
    """The error line of a command that must leave the folder of the test as it was."""

    def call(*arguments):
        before = sorted(tmp_path.rglob("*"))
        status, _, err = command(*arguments)
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert status == 2 and len(errors) == 1 and err.splitlines()[-1] == errors[0], err
        assert sorted(tmp_path.rglob("*")) == before
        return errors[0]

    return call


@pytest.fixture
def files(tmp_path):
    def write(clicks=CLICKS, buys=BUYS):
        (tmp_path / "clicks.dat").write_text(clicks)
        (tmp_path / "buys.dat").write_text(buys)
        loose = "--min-item-support", 1, "--test-days", 0.25, "--valid-days", 0.25
        out = tmp_path / "out"
        given = "--clicks", tmp_path / "clicks.dat", "--buys", tmp_path / "buys.dat", "--out", out
        return ("prepare", "recsys15", *given, *loose)

    return write


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shop"
    main(["shop", "--sessions", "150", "--items", "30", "--min-item-support", "1", "--out", str(folder)])
    return folder


def _process(*arguments, flags=()):
    given = [sys.executable, *flags, "-m", "sessiongym", *map(str, arguments)]
    return subprocess.run(given, capture_output=True, text=True, timeout=120)


def test_help_of_a_real_process_names_every_command_and_loads_nothing_heavy():
    done = _process("--help", flags=["-X", "importtime"])
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("compare", "train", "evaluate", "prepare", "shop", "info"))
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "sessiongym.cli" in loaded
    assert not loaded & {"torch", "numba", "pandas", "pyarrow", "matplotlib"}


@pytest.mark.parametrize(
    ("subcommand", "options"),
    [
        (
            "compare",
            "--data --models --seeds --out --no-references --against --ks --ties --jobs --device --cells --overwrite",
        ),
        ("train", "--data --out --seed --device"),
        ("evaluate", "--data --ks --ties --device"),
        ("prepare recsys15", "--clicks --buys --out --min-item-support --latest-days --random-split --split-by --seed"),
        ("prepare recsys15", "--repeats --basket-repeats --buyers-cut --latest-month --split-at"),
        ("prepare taobao", "--file --item-level --gap --click --purchase --outside --out --split-at --seed"),
        ("prepare rees46", "--files --item-level --click --purchase --out --repeats --seed"),
        ("prepare table", "--events --user --gap --session --item --time --time-unit --kind --click --purchase --sep"),
        ("prepare choice-sets", "--file --out --seed"),
        ("prepare lastfm", "--file --item-level --gap --out --consecutive-repeats --max-session-length --overwrite"),
        ("prepare reddit", "--file --gap --out --min-user-sessions --user-split --user-test --user-valid --unseen"),
        ("shop", "--sessions --items --seed --out"),
        ("info", "FOLDER"),
    ],
)
def test_help_of_every_command_lists_its_options(command, subcommand, options):
    status, out, err = command(*subcommand.split(), "--help")
    assert (status, err) == (0, "")
    wanted = [option for option in options.split() if option.startswith("--")]
    assert all(f"{option} " in out or f"{option}," in out or f"{option}\n" in out for option in wanted), out


def test_original_challenge_files_become_a_prepared_folder(command, files, tmp_path):
    status, out, err = command(*files())
    assert status == 0
    data = PreparedData.open(tmp_path / "out")
    assert [part.n_sessions for part in (data.train, data.valid, data.test)] == [1, 1, 1]
    assert "dropped 1 buys of 1 sessions that are not in the clicks (3 buys stay)" in err
    assert "prepared from recsys15" in out and "buys whose session is not in the clicks" in out
    assert not list(tmp_path.glob(".*"))


def test_recorded_events_with_named_columns_become_a_prepared_folder(command, tmp_path):
    events = DATA / "taobao_actions" / "events.csv"
    if not events.is_file():
        pytest.skip(f"no recorded events at {events}; set SESSIONGYM_DATA")
    flags = (
        "--user user_idx --gap 3600 --item item_idx --time timestamp --time-unit s --kind behaviour --click fav,cart "
        "--purchase buy --buyers-only --min-item-support 20"
    )
    status, out, _ = command("prepare", "table", "--events", events, *flags.split(), "--out", tmp_path / "taobao")
    assert status == 0 and "prepared from table" in out
    data = PreparedData.open(tmp_path / "taobao")
    with events.open() as lines:
        assert data.manifest["events_read"] == sum(1 for _ in lines) - 1
    bought = [step["purchases"] for step in data.manifest["steps"] if step["step"] == "sessions with a purchase"]
    assert bought == [data.manifest["steps"][0]["purchases"]]
    assert min(part.n_sessions for part in (data.train, data.valid, data.test)) > 100
    assert data.manifest["source"]["format"]["click"] == ["fav", "cart"]


def test_the_original_taobao_file_becomes_a_prepared_folder(command, tmp_path):
    rows = [(u, i, "pv" if i else "buy", day * 86_400 + i) for day in (0, 3, 6) for u in range(4) for i in range(3)]
    text = "".join(f"{u},{i},{i + 50},{behavior},{1511539200 + time}\n" for u, i, behavior, time in rows)
    (tmp_path / "UserBehavior.csv").write_text(text + "1,1,51,pv,1\n")
    given = "--file", tmp_path / "UserBehavior.csv", "--item-level", "category", "--split-at", "start"
    status, out, err = command("prepare", "taobao", *given, "--min-item-support", 1, "--out", tmp_path / "out")
    assert status == 0 and "prepared from taobao" in out and "whose first event is within 1 days" in out
    assert "read 37 events from" in err and "dropped 1 events: events outside 25 November to 3 December 2017" in err
    data = PreparedData.open(tmp_path / "out")
    assert data.train.item_id.tolist() == [50, 51, 52] and data.train.n_purchases == 4
    assert data.train.user is not None and data.train.user.tolist() == [0, 1, 2, 3]
    assert data.manifest["options"]["split_at"] == "start"


def test_several_rees46_files_become_one_prepared_folder(command, tmp_path):
    header = "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session\n"
    for month in (10, 11):
        row = f"2019-{month}-0{{}} 00:00:00 UTC,{{}},7,9,,,1.5,{month},{month}-{{}}\n".format
        visits = [row(day, kind, day) for day in (1, 3, 3, 5) for kind in ("view", "view", "purchase")]
        (tmp_path / f"2019-{month}.csv").write_text(header + "".join(visits))
    given = "--files", tmp_path / "2019-10.csv", tmp_path / "2019-11.csv", "--repeats", "drop"
    status, out, err = command("prepare", "rees46", *given, "--out", tmp_path / "out")
    assert status == 0 and "prepared from rees46" in out and "exact repeats of an event" in out
    assert err.count("read 12 events from") == 2
    data = PreparedData.open(tmp_path / "out")
    assert data.test.session_id.tolist() == ["11-5"] and data.train.session_id.tolist() == [
        "10-1",
        "10-3",
        "10-5",
        "11-1",
    ]


@pytest.mark.parametrize("source", ["lastfm", "reddit"])
def test_user_histories_become_a_prepared_folder_with_their_caveat(command, tmp_path, source):
    hours = [(user, hour, item) for user in ("user_000001", "user_000002") for hour in range(8, 18, 2) for item in "ab"]
    text = "".join(f"{user}\t2009-05-04T{hour:02}:00:00Z\t\t{item}\t\tsong\n" for user, hour, item in hours[::-1])
    if source == "reddit":
        text = "username,subreddit,utc\n" + "".join(f"{user},{item},{hour * 3600}.0\n" for user, hour, item in hours)
    (tmp_path / "file").write_text(text)
    given = "prepare", source, "--file", tmp_path / "file", "--out", tmp_path / "out"
    status, out, err = command(*given)
    assert status == 0 and f"prepared from {source}" in out and "read 20 " in err
    assert "split: per user" in out and "note: The split is per user, not a cut in time" in out
    data = PreparedData.open(tmp_path / "out")
    assert [log.n_sessions for log in (data.train, data.valid, data.test)] == [6, 2, 2]
    assert data.train.item_id.tolist() == ["a", "b"] and data.test.item.tolist() == [0, 1, 0, 1]
    assert command(*given, "--overwrite", "--user-split", "last", "--user-valid", 2, "--min-user-sessions", 4)[0] == 0
    assert PreparedData.open(tmp_path / "out").valid.n_sessions == 4


def test_anonymous_data_has_no_user_histories(refused, files):
    error = refused(*files(), "--user-split", "share", "--min-user-sessions", 3)
    assert "recsys15: --user-split share needs to know whose the sessions are" in error


def test_choices_that_the_paper_leaves_open_reach_the_manifest(command, files, tmp_path):
    status, out, _ = command(*files(), "--latest-month", "--repeats", "drop", "--basket-repeats", "drop")
    assert status == 0 and "sessions that start in 2014-04, the month of the newest event" in out
    options = PreparedData.open(tmp_path / "out").manifest["options"]
    assert (options["latest_month"], options["repeats"], options["basket_repeats"]) == (True, "drop", "drop")


def test_choice_sets_come_with_their_caveats(command, tmp_path):
    file = tmp_path / "sets.txt"
    file.write_text("".join(f"{n % 7} {n % 5 + 7} {n % 3 + 12};{n % 7}\n" for n in range(60)))
    status, out, _ = command("prepare", "choice-sets", "--file", file, "--min-item-support", 1, "--out", tmp_path / "o")
    assert status == 0
    notes = [line for line in out.splitlines() if line.startswith("note: ")]
    assert len(notes) == 3 and "order within a session is imposed" in notes[0] and "random" in notes[1]
    assert "repeat an earlier line" in notes[2]


def test_info_tells_the_kinds_of_folder_apart(command, shop, tmp_path):
    run = tmp_path / "run"
    assert command("train", "most-recent", "--data", shop, "--out", run)[0] == 0
    assert "run of most-recent, seed 0" in command("info", run)[1]
    assert "simulated" in command("info", run)[1]
    assert "prepared from shop" in command("info", shop)[1]
    assert "session log" in command("info", shop / "train")[1]


def test_a_shop_is_made_with_any_knob_and_says_which(command, refused, tmp_path):
    shop = ("shop", "--sessions", "600", "--items", "40")
    assert command(*shop, "--knobs", "drift=0,items_per_cluster=4", "--out", tmp_path / "shop")[0] == 0
    knobs = json.loads((tmp_path / "shop" / "manifest.json").read_text())["source"]["shop"]
    assert (knobs["n_items"], knobs["drift"], knobs["items_per_cluster"]) == (40, 0, 4)
    assert "expected field=value, found 'drft=0'" in refused(*shop, "--knobs", "drft=0", "--out", tmp_path / "other")
    assert "drift must be a number from 0 to 1" in refused(*shop, "--knobs", "drift=2", "--out", tmp_path / "other")


def test_info_of_a_foreign_folder_is_an_error(refused, tmp_path):
    assert "manifest.json: not readable as a manifest" in refused("info", tmp_path)
    assert "manifest.json: not readable as a manifest" in refused("info", tmp_path / "absent")
    (tmp_path / "manifest.json").write_text('{"format": "chess"}')
    assert "unknown format 'chess'; upgrade" in refused("info", tmp_path)


@pytest.mark.parametrize(
    ("clicks", "buys", "message"),
    [
        (CLICKS + "5,2014-04-11T00:00:00.000Z,5\n", BUYS, "clicks.dat:7: expected 4 fields"),
        (CLICKS, BUYS + "5,2014-04-1", "buys.dat:5: expected 5 fields"),
        (CLICKS.replace("00:00:01.000Z", "half past"), BUYS, "clicks.dat:6: time must be an ISO-8601"),
        (CLICKS.replace("Z,600,S", "Z,six,S"), BUYS, "clicks.dat:4: item must be a whole number, found 'six'; correct"),
        (CLICKS, "99,2014-04-10T00:02:00.000Z,500,5,1\n", "buys.dat: none of its 1 sessions is in the clicks"),
        ("", BUYS, "clicks.dat: the file is empty"),
    ],
)
def test_a_damaged_file_is_named_with_its_line_and_nothing_is_written(refused, files, clicks, buys, message):
    assert message in refused(*files(clicks, buys))


def test_bad_input_of_the_other_sources_is_named_and_nothing_is_written(refused, tmp_path):
    (tmp_path / "UserBehavior.csv").write_text("1,2,3,pv,1511544070\n1,2,3,pv\n")
    taobao = "prepare", "taobao", "--file", tmp_path / "UserBehavior.csv", "--out", tmp_path / "out"
    assert "UserBehavior.csv:2: expected 5 fields" in refused(*taobao)
    assert "--click: expected some of pv,fav,cart,buy, found 'view'" in refused(*taobao, "--click", "view")
    assert "--buyers-cut after" in refused(*taobao, "--buyers-cut", "after")
    lastfm = "prepare", "lastfm", "--file", tmp_path / "UserBehavior.csv", "--out", tmp_path / "out"
    assert "UserBehavior.csv:1: expected 6 fields separated by" in refused(*lastfm)
    assert "add --min-user-sessions 4" in refused(*lastfm, "--user-valid", 2)
    reddit = "prepare", "reddit", "--file", tmp_path / "UserBehavior.csv", "--out", tmp_path / "out"
    assert "no column 'username'" in refused(*reddit)
    rees46 = "prepare", "rees46", "--out", tmp_path / "out", "--files"
    assert "expected at least one file" in refused(*rees46)
    assert "2019-Oct.csv: no such file" in refused(*rees46, tmp_path / "2019-Oct.csv")


def test_a_missing_file_is_named(refused, files, tmp_path):
    arguments = files()
    (tmp_path / "buys.dat").unlink()
    assert "buys.dat: no such file, expected a data file; check the path" in refused(*arguments)


def test_an_empty_split_says_which_option_to_change(refused, files):
    assert "--valid-days" in refused(*files(), "--valid-days", 5)
    assert "--random-split" in refused(*files(), "--random-split", "0.9,0.05,0.05")


def test_shares_must_sum_to_one(refused, files):
    assert "--random-split" in refused(*files(), "--random-split", "0.8,0.1,0.2")


def test_an_out_folder_that_exists_is_kept_unless_told_otherwise(command, refused, files, shop, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    assert "out: already exists" in refused(*files())
    assert "out: already exists" in refused("shop", "--out", tmp_path / "out")
    assert "out: already exists" in refused("train", "most-recent", "--data", shop, "--out", tmp_path / "out")
    assert "out: exists and is not a comparison" in refused(
        "compare", "--data", shop, "--models", "most-recent", "--out", tmp_path / "out", "--overwrite"
    )


def test_a_place_that_cannot_be_written_is_one_line(refused, files, shop, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert f"{file}" in refused(*files(), "--out", file / "out")
    assert f"{file}" in refused("train", "most-recent", "--data", shop, "--out", file / "out")
    assert f"{file}" in refused("compare", "--data", shop, "--models", "most-recent", "--out", file / "out")


def test_a_prepared_folder_from_a_newer_schema_is_refused(refused, shop, tmp_path):
    newer = tmp_path / "newer"
    shutil.copytree(shop, newer)
    manifest = json.loads((newer / "manifest.json").read_text())
    (newer / "manifest.json").write_text(json.dumps({**manifest, "schema": manifest["schema"] + 1}))
    for arguments in (
        ("train", "most-recent", "--data", newer, "--out", tmp_path / "out"),
        ("compare", "--models", "most-recent", "--data", newer, "--out", tmp_path / "out"),
        ("info", newer),
    ):
        assert "newer/manifest.json: written with schema 2, this version reads up to 1; upgrade" in refused(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train a3c --out {out} --data {shop}", "unknown model 'a3c'; did you mean 'a3c-p'?"),
        ("compare --models irn-x --out {out}", "unknown model 'irn-x'; did you mean 'irn-"),
        ("compare --models a3c-p:hidden=3 --out {out}", "expected field=value, found 'hidden=3'; a3c-p has hidden_u"),
        ("train a3c-p:epochs=many --out {out} --data {shop}", "epochs: expected int, found 'many'"),
        ("train a3c-p@papper --out {out} --data {shop}", "unknown preset 'papper'; a3c-p has "),
        ("compare --device cuda:99 --out {out}", "--device cuda:99: this machine has"),
        ("train a3c-p --device cuda:99 --out {out} --data {shop}", "--device cuda:99: this machine has"),
        ("train a3c-p --device cuda: --out {out} --data {shop}", "expected cpu, cuda, cuda:N or auto, found 'cuda:'"),
        ("train a3c-p --device gpu --out {out} --data {shop}", "expected cpu, cuda, cuda:N or auto, found 'gpu'"),
        ("train a3c-p --seed -1 --out {out} --data {shop}", "--seed: expected 0 or more, found -1"),
        ("train a3c-p --data {absent} --out {out}", "absent: no such folder; make one with `sessiongym prepare`"),
        ("evaluate {absent} --data {shop}", "absent: no such folder"),
        ("evaluate {shop} --data {shop}", "expected format 'sessiongym.run', found 'sessiongym.prepared'"),
        ("compare --seeds 0 --out {out}", "--seeds: expected at least 1, found 0"),
        ("compare --jobs 0 --out {out}", "--jobs: expected at least 1, found 0"),
        ("compare --ks 0,5 --out {out}", "--ks: expected list lengths of at least 1, each once, found '0,5'"),
        ("evaluate {absent} --data {shop} --ks 5,5", "--ks: expected list lengths of at least 1, each once"),
        ("shop --sessions 0 --out {out}", "n_sessions must be a whole number, at least 1, found 0"),
    ],
)
def test_a_bad_option_is_one_line_before_anything_is_written(refused, shop, tmp_path, arguments, message):
    places = {"out": tmp_path / "out", "shop": shop, "absent": tmp_path / "absent"}
    assert message in refused(*arguments.format(**places).split())


def test_a_gpu_that_is_not_there_is_refused(refused, shop, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    error = refused("train", "a3c-p", "--device", "cuda", "--data", shop, "--out", tmp_path / "out")
    assert "--device cuda: this machine has 0 usable GPUs; use --device cpu" in error


@pytest.mark.parametrize("arguments", [["shop", "--bogus", "3"], ["dance"], ["shop", "--random-split", "0.5,0.5"], []])
def test_a_usage_error_exits_with_2(command, arguments, tmp_path):
    status, _, err = command(*arguments, *(["--out", tmp_path / "out"] if arguments else []))
    assert status == 2 and err and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_bad_input_of_a_real_process_is_one_line_and_status_2(shop, tmp_path):
    done = _process("train", "a3c-q", "--data", shop, "--out", tmp_path / "out")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: unknown model 'a3c-q'") and done.stderr.count("\n") == 1


def test_training_goes_to_stderr_and_leaves_a_whole_run(command, shop, tmp_path):
    status, out, err = command("train", TINY, "--data", shop, "--out", tmp_path / "run")
    assert (status, out) == (0, "")
    assert f"{TINY}: epoch 1/1" in err and "finished, in" in err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
