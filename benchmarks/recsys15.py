"""`sessiongym prepare recsys15` on files of the shape and size of the RecSys Challenge 2015, which this makes.

``python benchmarks/recsys15.py`` prints the table. ``--sessions N`` makes smaller files, ``--out DIR`` leaves them in
DIR, ``--only-files`` stops there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import markdown, processor
from numba import njit

SESSIONS, CLICKS, BUYS, BUYERS = 9_249_729, 33_003_944, 1_150_753, 509_696
CLICKED_ITEMS, ITEMS = 52_739, 54_287
"""Sizes of the challenge's files; the items beyond the clicked ones are only bought."""

DAY = 86_400_000
"""Milliseconds, as all times here."""
FIRST = int(np.datetime64("2014-04-01T03:00", "ms").astype(np.int64))
SPAN = 182 * DAY
CLICKS_FILE, BUYS_FILE = "yoochoose-clicks.dat", "yoochoose-buys.dat"
CATEGORIES = [b"0", b"S", *(str(number).encode() for number in range(1, 13)), b"2089051464"]
PRICES = [f"{price},{quantity}".encode() for price in (0, 523, 1046, 12462) for quantity in (0, 1, 2)]
_CHUNK = 1 << 20
_LONGEST_LINE = 80


@dataclass(frozen=True)
class Events:
    """Lines of one file. E lines."""

    session: np.ndarray
    time: np.ndarray
    item: np.ndarray
    rest: np.ndarray
    """[E] number of the text in `texts` that ends the line."""
    texts: list[bytes]

    def take(self, order: np.ndarray) -> Events:
        return Events(self.session[order], self.time[order], self.item[order], self.rest[order], self.texts)


def generate(n_sessions: int, seed: int = 0) -> tuple[Events, Events]:
    """Clicks and buys of `n_sessions` sessions, in the proportions of the challenge.

    Session ids rise with gaps, starts rise only roughly, some sessions are not in one piece, items follow Zipf's law,
    and a tenth of the buys is of items that the session need not have clicked.
    """
    rng = np.random.default_rng(seed)
    n_clicks, n_buys, n_buyers = (max(round(n * n_sessions / SESSIONS), 1) for n in (CLICKS, BUYS, BUYERS))
    item_id = 214_507_000 + np.sort(rng.choice(350_000, ITEMS, replace=False))
    popular = rng.permutation(ITEMS)
    weight = 1 / np.arange(20, 20 + CLICKED_ITEMS) ** 0.9

    session_id = 1 + np.sort(rng.choice(n_sessions * 5 // 4, n_sessions, replace=False))
    start = FIRST + np.arange(n_sessions) * (SPAN // n_sessions) + rng.integers(0, 4 * DAY, n_sessions)
    length = _counts(rng, n_sessions, n_clicks)
    first = np.cumsum(length) - length
    session = np.repeat(np.arange(n_sessions), length)
    pause = rng.exponential(120_000, n_clicks).astype(np.int64) + 1
    elapsed = np.cumsum(pause)
    click_time = start[session] + elapsed - elapsed[first][session]
    popularity = np.searchsorted(np.cumsum(weight) / weight.sum(), rng.random(n_clicks), side="right")
    item = item_id[popular[np.minimum(popularity, CLICKED_ITEMS - 1)]]
    category = np.minimum(rng.geometric(0.4, n_clicks), len(CATEGORIES)) - 1
    clicks = Events(session_id[session], click_time, item, category, CATEGORIES).take(_torn(rng, n_clicks))

    buyers = rng.choice(n_sessions, n_buyers, replace=False)
    buyer = np.repeat(buyers, _counts(rng, n_buyers, n_buys))
    bought = item[first[buyer] + rng.integers(0, length[buyer])]
    elsewhere = rng.random(n_buys) < 0.1
    bought[elsewhere] = item_id[popular[rng.integers(0, ITEMS, np.count_nonzero(elsewhere))]]
    buy_time = click_time[first[buyer] + length[buyer] - 1] + rng.integers(0, 600_000, n_buys)
    buys = Events(session_id[buyer], buy_time, bought, rng.integers(0, len(PRICES), n_buys), PRICES)
    return clicks, buys


def _counts(rng: np.random.Generator, n: int, total: int) -> np.ndarray:
    """[n] numbers of at least 1 that sum to the total: Poisson, with rates by a gamma distribution, beside the 1."""
    rate = np.cumsum(rng.standard_gamma(4, n))
    return 1 + np.bincount(np.searchsorted(rate, rng.random(total - n) * rate[-1], side="right"), minlength=n)


def _torn(rng: np.random.Generator, n: int) -> np.ndarray:
    """[n] an order of lines in which a few are exchanged with one fifty lines on."""
    order = np.arange(n)
    some = 100 * rng.choice(n // 100, n // 1000, replace=False) + rng.integers(0, 50, n // 1000)
    order[some], order[some + 50] = some + 50, some
    return order


def write(file: Path, events: Events) -> None:
    """Lines ``session,2014-04-07T10:51:09.277Z,item,rest``."""
    texts = np.frombuffer(b"".join(events.texts), dtype=np.uint8)
    ends = np.cumsum([0, *map(len, events.texts)])
    minutes, milliseconds = np.divmod(events.time, 60_000)
    first_minute = int(minutes.min())
    stamps = np.datetime_as_string(np.arange(first_minute, minutes.max() + 1).astype("datetime64[m]"))
    stamps = np.frombuffer(np.char.encode(stamps, "ascii").tobytes(), dtype=np.uint8).reshape(len(stamps), -1)
    buffer = np.empty(_CHUNK * _LONGEST_LINE, dtype=np.uint8)
    with file.open("wb") as stream:
        for start in range(0, len(events.session), _CHUNK):
            some = slice(start, start + _CHUNK)
            size = _format(
                buffer,
                events.session[some],
                stamps,
                minutes[some] - first_minute,
                milliseconds[some],
                events.item[some],
                events.rest[some],
                texts,
                ends,
            )
            stream.write(buffer[:size].data)


@njit(cache=True)
def _format(buffer, session, stamps, minute, millisecond, item, rest, texts, ends):
    at = 0
    for row in range(len(session)):
        at = _put(buffer, at, session[row], 1)
        buffer[at] = ord(",")
        at += 1
        for place in range(stamps.shape[1]):
            buffer[at + place] = stamps[minute[row], place]
        at += stamps.shape[1]
        buffer[at] = ord(":")
        at = _put(buffer, at + 1, millisecond[row] // 1000, 2)
        buffer[at] = ord(".")
        at = _put(buffer, at + 1, millisecond[row] % 1000, 3)
        buffer[at], buffer[at + 1] = ord("Z"), ord(",")
        at = _put(buffer, at + 2, item[row], 1)
        buffer[at] = ord(",")
        at += 1
        for place in range(ends[rest[row]], ends[rest[row] + 1]):
            buffer[at] = texts[place]
            at += 1
        buffer[at] = ord("\n")
        at += 1
    return at


@njit(cache=True)
def _put(buffer, at, number, least_digits):
    digits, power = least_digits, 10**least_digits
    while number >= power:
        power *= 10
        digits += 1
    for place in range(at + digits - 1, at - 1, -1):
        buffer[place] = ord("0") + number % 10
        number //= 10
    return at + digits


def write_files(folder: Path, n_sessions: int) -> None:
    """yoochoose-clicks.dat and yoochoose-buys.dat."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, events in zip((CLICKS_FILE, BUYS_FILE), generate(n_sessions), strict=True):
        write(folder / name, events)


def contenders(clicks: Path, buys: Path, folder: Path) -> dict[str, list[str]]:
    """The commands to compare; the peers only read the clicks into memory."""
    files = ["--clicks", str(clicks), "--buys", str(buys), "--out", str(folder), "--overwrite"]
    prepare = [sys.executable, "-m", "sessiongym", "prepare", "recsys15", *files]
    columns = "['session', 'time', 'item', 'category']"
    arrow = f"""
import pyarrow, pyarrow.csv as csv
types = {{"session": pyarrow.int64(), "time": pyarrow.timestamp("ns", "UTC"), "item": pyarrow.int64()}}
convert = csv.ConvertOptions(column_types=types, include_columns=list(types))
csv.read_csv({str(clicks)!r}, csv.ReadOptions(column_names={columns}), convert_options=convert)
"""
    pandas = f"""
import pandas
pandas.read_csv({str(clicks)!r}, engine="c", names={columns}, usecols=[0, 1, 2], parse_dates=["time"])
"""
    general = f"""
from pathlib import Path
from sessiongym.envs.sources.recsys15 import prepare_recsys15
data = prepare_recsys15(Path({str(clicks)!r}), Path({str(buys)!r}), fast=False)
data.save({str(folder)!r}, overwrite=True)
"""
    return {
        "prepare recsys15": prepare,
        "… `--memory 1`": [*prepare, "--memory", "1"],
        "… every session kept": [*prepare, "--no-buyers-only", "--latest-days", "None"],
        "… with Arrow's parser": [sys.executable, "-c", general],
        "pyarrow's CSV reader, clicks alone": [sys.executable, "-c", arrow],
        "pandas' C engine, clicks alone": [sys.executable, "-c", pandas],
    }


def measured(command: list[str]) -> tuple[float, float, float]:
    """Seconds by the clock, seconds of processor, GB of resident memory at the peak."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    # Kilobytes everywhere but on macOS.
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, peak / 1e9


def table(folder: Path, n_sessions: int) -> str:
    """One row a command: seconds, processor seconds, peak memory."""
    # In a process of its own, because a child's peak memory starts at its parent's.
    subprocess.run(
        [sys.executable, __file__, "--only-files", "--sessions", str(n_sessions), "--out", str(folder)], check=True
    )
    clicks, buys = folder / CLICKS_FILE, folder / BUYS_FILE
    rows = []
    with tempfile.TemporaryDirectory(dir=folder) as prepared:
        for name, command in contenders(clicks, buys, Path(prepared) / "out").items():
            print(name, file=sys.stderr, flush=True)
            seconds, processor_seconds, peak = measured(command)
            load = f"{os.getloadavg()[0]:.1f}"
            rows.append([name, f"{seconds:.1f}", f"{processor_seconds:.1f}", f"{peak:.2f}", load, processor()])
    columns = [
        f"{n_sessions:,} sessions, {clicks.stat().st_size / 1e9:.2f} GB of clicks",
        "seconds",
        "CPU seconds",
        "peak GB",
        "load average after it",
        "device",
    ]
    return markdown(columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=SESSIONS, help="at least 1000")
    parser.add_argument("--out", type=Path, help="folder for the files (default: a temporary one)")
    parser.add_argument("--only-files", action="store_true", help="write the files and stop; needs --out")
    options = parser.parse_args()
    if options.sessions < 1000 or (options.only_files and options.out is None):
        parser.error("--sessions must be at least 1000, and --only-files needs --out")
    if options.only_files:
        write_files(options.out, options.sessions)
    elif options.out:
        print(table(options.out, options.sessions))
    else:
        with tempfile.TemporaryDirectory() as folder:
            print(table(Path(folder), options.sessions))


if __name__ == "__main__":
    main()
