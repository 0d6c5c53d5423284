"""The commands of ``sessiongym`` and their options, as tyro reads them. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, subcommand

from .envs.sources.options import (
    CHOICE_SETS_OPTIONS,
    RECSYS15_OPTIONS,
    SHOP_OPTIONS,
    TABLE_OPTIONS,
    USER_HISTORY_OPTIONS,
    LastFMFormat,
    PrepareOptions,
    RedditFormat,
    Rees46Format,
    TableFormat,
    TaobaoFormat,
)
from .evaluate.experiments.definitions import ExperimentName
from .evaluate.models import DEFAULT_MODELS
from .evaluate.shop_experiments.definitions import ShopExperimentName

SHOP_SESSIONS = 4_000
"""Of the shop that a command makes where it is given no data."""


@dataclass(frozen=True)
class Compare:
    """Train models, rank the same events with each, print one table.

    Without --data a small simulated shop is made first, so nothing has to be downloaded. Finished cells are kept: after
    Ctrl-C the same command goes on from there.
    """

    data: Path | None = None
    """Folder that `prepare` or `shop` wrote."""
    models: list[str] = field(default_factory=lambda: list(DEFAULT_MODELS))
    """NAME, NAME@paper, or NAME:field=value,...; all: every model."""
    seeds: int = 1
    """Training seeds 0..K-1 of every trained model; a published table needs at least 5."""
    out: Path = Path("runs/compare")
    """Folder for table.csv, table.md, training.csv, events.parquet, views.json and manifest.json."""
    references: bool = True
    """Add the shortcuts and controls that every table should carry."""
    against: str | None = None
    """Model of the comparison: add every other one's paired Recall differences to it, in differences.csv too."""
    ks: tuple[int, ...] = (3, 5, 10)
    """List lengths K, separated by commas."""
    ties: Literal["expected", "optimistic", "pessimistic"] = "expected"
    """How equal scores count."""
    jobs: int | None = None
    """Cells computed side by side, one thread each (default: one a core; 1 on a GPU)."""
    device: str = "cpu"
    """cpu, cuda, cuda:N or auto."""
    tuned: Path | None = None
    """Folder that `tune` wrote: models found there are compared as tuned."""
    last: bool = False
    """Rank trained models with the weights of their last epoch too, beside the epoch that validation chose."""
    cells: Path | None = None
    """Folder of finished cells, shared by comparisons (default: `cells` beside --out)."""
    overwrite: bool = False
    """Replace another comparison in --out."""


@dataclass(frozen=True)
class RunExperiment:
    """Run an experiment of the IRN or the II-RNN paper: its cells, tables, plots and report.

    Without --data a small simulated shop is made first. Finished cells are kept and shared with `compare`: after Ctrl-C
    the same command goes on from there.
    """

    name: Positional[ExperimentName]
    """Which one. readings: every ambiguity of the IRN paper, one at a time."""
    data: Path | None = None
    """Folder that `prepare` or `shop` wrote; ii-rnn needs users, and on a folder prepared with --user-split last it is
    the hold-one-out comparison."""
    seeds: int = 5
    """Training seeds 0..K-1 of every trained model."""
    models: list[str] | None = None
    """NAME, NAME@paper, or NAME:field=value,... in place of the experiment's systems."""
    preset: Literal["practical", "paper"] | None = None
    """Of the experiment's systems (default: practical; readings: paper)."""
    tuned: Path | None = None
    """Folder that `tune` wrote: models found there are compared as tuned."""
    out: Path | None = None
    """Folder to write (default: runs/NAME)."""
    dry_run: bool = False
    """Print the cells and about how long they take, and stop."""
    ks: tuple[int, ...] | None = None
    """List lengths K, separated by commas (default: the paper's)."""
    ties: Literal["expected", "optimistic", "pessimistic"] = "expected"
    """How equal scores count."""
    jobs: int | None = None
    """Cells computed side by side, one thread each (default: one a core; 1 on a GPU)."""
    device: str = "cpu"
    """cpu, cuda, cuda:N or auto."""
    cells: Path | None = None
    """Folder of finished cells, shared by experiments and comparisons (default: `cells` beside --out)."""
    overwrite: bool = False
    """Replace another experiment in --out."""


@dataclass(frozen=True)
class RunShopExperiment:
    """Set what models earn in the simulated shop beside what replay says of them.

    Each shop serves its own log, so no data is needed. Logs, cells and true values are kept: after Ctrl-C the same
    command goes on from there.
    """

    name: Positional[ShopExperimentName]
    """replay-vs-truth: rank correlations as the knobs change. cold-start: new shoppers, new items, short sessions."""
    seeds: int = 1
    """Training seeds 0..K-1 of every trained model; a published table needs at least 5."""
    models: list[str] | None = None
    """NAME, NAME@paper, or NAME:field=value,... in place of the experiment's models."""
    sessions: int | None = None
    """Of each log (default: 8,000)."""
    served: int | None = None
    """Sessions behind each true value (default: 10,000)."""
    items: int | None = None
    """Of each shop (default: 500)."""
    seed: int | None = None
    """Of logs and shoppers (default: 0)."""
    out: Path | None = None
    """Folder to write (default: runs/NAME); cells/, shop-logs/ and shop-values/ are beside it."""
    dry_run: bool = False
    """Make the logs, print what is still to be computed, and stop."""
    ties: Literal["expected", "optimistic", "pessimistic"] = "expected"
    """How equal scores count in replay."""
    jobs: int | None = None
    """Cells and values computed side by side, one thread each (default: one a core; 1 on a GPU)."""
    device: str = "cpu"
    """cpu, cuda, cuda:N or auto."""
    overwrite: bool = False
    """Replace another experiment in --out."""


@dataclass(frozen=True)
class Tune:
    """Search for the configuration of a model that scores best on the validation split; test is never opened.

    Finished trials are kept: after Ctrl-C the same command goes on from there.
    """

    model: Positional[str]
    """NAME, NAME@paper, or NAME:field=value,...; fields set here are not tuned."""
    data: Path
    """Folder that `prepare` or `shop` wrote."""
    trials: int = 20
    """Configurations to try, the model as it is included; the same for all models that are compared."""
    seed: int = 0
    """Seed of every training, and of what is tried."""
    out: Path = Path("runs/tune")
    """Folder for MODEL/best.json and MODEL/trials.csv."""
    space: list[str] = field(default_factory=list)
    """field=low..high, field=low..high:log or field=a|b|c, in place of or beside what is tuned otherwise."""
    device: str = "cpu"
    """cpu, cuda, cuda:N or auto."""


@dataclass(frozen=True)
class Report:
    """Make one HTML page of a comparison or an experiment, and every table and plot as files.

    The page needs nothing else, no network either.
    """

    run: Positional[Path]
    """Folder that `compare` or `experiment` wrote."""
    out: Path | None = None
    """The page to write (default: report.html in the folder)."""


@dataclass(frozen=True)
class OffPolicy:
    """Estimate what other policies would have earned a session, or refuse to.

    Without --data: how far such estimates hold, in a shop small enough for the truth to be computed.
    """

    data: Path | None = None
    """Folder that `prepare` or `shop` wrote."""
    models: list[str] = field(default_factory=lambda: ["session-knn"])
    """Fitted on train; each serves by drawing from the softmax of its scores."""
    estimate_propensities: bool = False
    """Guess the propensities, which recorded logs do not have; the figures are marked."""
    temperature: float = 1.0
    """Of the softmax."""
    min_effective_sample_size: float = 100.0
    """Sessions below which an estimate is refused; 0: never for that."""
    out: Path = Path("runs/off-policy")
    """Folder for views.json and tables."""
    overwrite: bool = False
    """Replace the folder if it exists."""


@dataclass(frozen=True)
class Train:
    """Train one model into a folder of its own."""

    model: Positional[str]
    """NAME, NAME@paper, or NAME:field=value,..."""
    data: Path
    """Folder that `prepare` or `shop` wrote."""
    out: Path
    """Folder of the run; an interrupted training goes on with the same command."""
    seed: int = 0
    """Seed of every random draw."""
    device: str = "cpu"
    """cpu, cuda, cuda:N or auto."""


@dataclass(frozen=True)
class Evaluate:
    """Rank the test split with a trained run; print its table and keep it in the run."""

    run: Positional[Path]
    """Folder that `train` wrote."""
    data: Path
    """Folder that the run was trained on."""
    ks: tuple[int, ...] = (3, 5, 10)
    """List lengths K, separated by commas."""
    ties: Literal["expected", "optimistic", "pessimistic"] = "expected"
    """How equal scores count."""
    device: str = "cpu"
    """cpu, cuda, cuda:N or auto."""


@dataclass(frozen=True)
class RecSys15:
    """The files of the RecSys Challenge 2015, prepared as the IRN paper did."""

    clicks: Path
    """yoochoose-clicks.dat: session,ISO-8601 time,item,category; no header."""
    buys: Path
    """yoochoose-buys.dat: session,ISO-8601 time,item,price,quantity; no header."""
    out: Path
    """Folder to write."""
    options: PrepareOptions = RECSYS15_OPTIONS
    memory: float | None = None
    """The most memory to take, in GB (1 is enough for the full files): they are then read twice, in parts."""
    overwrite: bool = False
    """Replace the folder if it exists."""


@dataclass(frozen=True)
class Table:
    """Any CSV or Parquet file of events with named columns."""

    format: TableFormat
    out: Path
    """Folder to write."""
    options: PrepareOptions = TABLE_OPTIONS
    overwrite: bool = False
    """Replace the folder if it exists."""


@dataclass(frozen=True)
class ChoiceSets:
    """RecSys15 buyer sessions as sets, a line each: `click click ...;bought bought ...`. An order is imposed."""

    file: Path
    """The file."""
    out: Path
    """Folder to write."""
    options: PrepareOptions = CHOICE_SETS_OPTIONS
    overwrite: bool = False
    """Replace the folder if it exists."""


@dataclass(frozen=True)
class Taobao:
    """The original UserBehavior file of Taobao (Tianchi), users cut into sessions where they pause."""

    format: TaobaoFormat
    out: Path
    """Folder to write."""
    options: PrepareOptions = TABLE_OPTIONS
    overwrite: bool = False
    """Replace the folder if it exists."""


@dataclass(frozen=True)
class Rees46:
    """The monthly files of REES46's multi category store, or of its sibling shops, as one log."""

    format: Rees46Format
    out: Path
    """Folder to write."""
    options: PrepareOptions = TABLE_OPTIONS
    overwrite: bool = False
    """Replace the folder if it exists."""


@dataclass(frozen=True)
class LastFM:
    """The listening histories of Last.fm-1K, users cut into sessions where they pause, prepared for II-RNN."""

    format: LastFMFormat
    out: Path
    """Folder to write."""
    options: PrepareOptions = USER_HISTORY_OPTIONS
    overwrite: bool = False
    """Replace the folder if it exists."""


@dataclass(frozen=True)
class Reddit:
    """The Reddit subreddit interactions, users cut into sessions where they pause, prepared for II-RNN."""

    format: RedditFormat
    out: Path
    """Folder to write."""
    options: PrepareOptions = USER_HISTORY_OPTIONS
    overwrite: bool = False
    """Replace the folder if it exists."""


@dataclass(frozen=True)
class Prepare:
    """Turn raw logs into a folder with train/, valid/, test/ and manifest.json."""

    source: (
        Annotated[RecSys15, subcommand("recsys15")]
        | Annotated[Taobao, subcommand("taobao")]
        | Annotated[Rees46, subcommand("rees46")]
        | Annotated[Table, subcommand("table")]
        | Annotated[ChoiceSets, subcommand("choice-sets")]
        | Annotated[LastFM, subcommand("lastfm")]
        | Annotated[Reddit, subcommand("reddit")]
    )


@dataclass(frozen=True)
class Calibrate:
    """Fit the knobs of the simulated shop to the training split of a log; print target and achieved side by side."""

    data: Path
    """Folder that `prepare` or `shop` wrote."""
    out: Path = Path("shop.json")
    """File of knobs to write, for `shop --config`."""
    knobs: str = ""
    """FIELD=VALUE,...: where the search begins, and the value of knobs that no figure tells of."""
    seed: int = 0
    """Seed of the simulated logs."""
    overwrite: bool = False
    """Replace the file if it exists."""


@dataclass(frozen=True)
class MakeShop:
    """Simulate a shop and prepare its log."""

    out: Path
    """Folder to write."""
    sessions: int = SHOP_SESSIONS
    """Sessions to simulate."""
    config: Path | None = None
    """Knobs that `calibrate` wrote; those below change them."""
    items: int | None = None
    """Items in the catalogue (default: 1,000)."""
    users: int | None = None
    """Shoppers who return; 0, the default: every session is a stranger's."""
    taste_persistence: float | None = None
    """Chance that a returning shopper looks for the same as before (default: 0)."""
    knobs: str = ""
    """FIELD=VALUE,...: any other field of `ShopConfig`, for example drift=0,wander=0.5."""
    options: PrepareOptions = SHOP_OPTIONS
    overwrite: bool = False
    """Replace the folder if it exists."""


@dataclass(frozen=True)
class TransitionOptions:
    """How sessions become transitions."""

    window: int = 20
    """Items in an observation: the last ones of the session, padded on the left."""
    rewards: tuple[float, float] = (1.0, 5.0)
    """Reward of a click and of a purchase."""
    density: float = 1.0
    """Share of the purchases that stay."""
    drop: Literal["event", "reward", "click"] = "event"
    """What happens to the others: the event is deleted, its reward is 0, or it becomes a click."""
    density_seed: int = 0
    """Which purchases stay."""
    cold_start: int | None = None
    """The state stops growing after so many events."""
    kinds: bool = False
    """Add the kinds of the items in an observation."""


@dataclass(frozen=True)
class ExportParquet:
    """Logged transitions as one Parquet file, the items beside it in FILE.items.parquet."""

    data: Path
    """Folder that `prepare` or `shop` wrote."""
    out: Path
    """Parquet file to write."""
    split: Literal["train", "valid", "test"] = "train"
    """The part of the data to export."""
    options: TransitionOptions = TransitionOptions()
    compact: bool = False
    """The newest item in place of windows, which are rebuilt from the rows."""
    overwrite: bool = False
    """Replace the files if they exist."""


@dataclass(frozen=True)
class ExportMinari:
    """A sample of sessions as a Minari dataset, where MINARI_DATASETS_PATH says."""

    data: Path
    """Folder that `prepare` or `shop` wrote."""
    dataset_id: str
    """Name of the dataset, such as shop/replay-v0."""
    split: Literal["train", "valid", "test"] = "train"
    """The part of the data to export."""
    sessions: int = 1000
    """Sessions to draw; all, where there are fewer."""
    seed: int = 0
    """Which sessions are drawn."""
    options: TransitionOptions = TransitionOptions()


@dataclass(frozen=True)
class Export:
    """Write logged transitions for other tools."""

    target: Annotated[ExportParquet, subcommand("parquet")] | Annotated[ExportMinari, subcommand("minari")]


@dataclass(frozen=True)
class Info:
    """Say what a folder is and what is in it."""

    folder: Positional[Path]
    """Folder that sessiongym wrote."""


Command = (
    Annotated[Compare, subcommand("compare")]
    | Annotated[RunExperiment, subcommand("experiment")]
    | Annotated[Report, subcommand("report")]
    | Annotated[RunShopExperiment, subcommand("shop-experiment")]
    | Annotated[Tune, subcommand("tune")]
    | Annotated[OffPolicy, subcommand("off-policy")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Prepare, subcommand("prepare")]
    | Annotated[MakeShop, subcommand("shop")]
    | Annotated[Calibrate, subcommand("calibrate")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Info, subcommand("info")]
)
