"""The command ``sessiongym``: parses, calls, prints. Everything slow is imported by the command that needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, subcommand
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

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
from .errors import InputError
from .evaluate.experiments.definitions import EXPERIMENTS, ExperimentName
from .evaluate.models import DEFAULT_MODELS, changed

_SHOP_SESSIONS, _SHOP_ITEMS = 4_000, 1_000


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
class MakeShop:
    """Simulate a shop and prepare its log."""

    out: Path
    """Folder to write."""
    sessions: int = _SHOP_SESSIONS
    """Sessions to simulate."""
    items: int = _SHOP_ITEMS
    """Items in the catalogue."""
    users: int = 0
    """Shoppers who return; 0: every session is a stranger's."""
    taste_persistence: float = 0.0
    """Chance that a returning shopper looks for the same as before."""
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
    | Annotated[Tune, subcommand("tune")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Prepare, subcommand("prepare")]
    | Annotated[MakeShop, subcommand("shop")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Info, subcommand("info")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 2 for bad input, 1 where a worker process dies, 130 after Ctrl-C."""
    registry = ConstructorRegistry()
    registry.primitive_rule(_comma_separated)
    try:
        command: Any = tyro.cli(
            OmitSubcommandPrefixes[OmitArgPrefixes[Command]],  # type: ignore[valid-type]
            prog="sessiongym",
            description="A testbed for reinforcement learning on recorded shopping sessions.",
            args=arguments,
            registry=registry,
        )
        _run(command)
    except InputError as error:
        _exit(2, str(error))
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        _exit(2, f"{error.filename}: {error.strerror}; choose a place where folders can be written")
    except BrokenExecutor as error:
        _exit(1, str(error))
    except BrokenPipeError:
        # Whoever read the output has had enough; without this the interpreter would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _exit(status: int, message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def _run(command: Any) -> None:
    match command:
        case Compare():
            _compare(command)
        case RunExperiment():
            _experiment(command)
        case Report():
            _report(command)
        case Tune():
            _tune(command)
        case Train():
            _train(command)
        case Evaluate():
            _evaluate(command)
        case Prepare():
            _prepare(command.source)
        case MakeShop():
            _make_shop(command)
            _info(command.out)
        case Export():
            _export(command.target)
        case Info():
            _info(command.folder)


def _compare(command: Compare) -> None:
    from .evaluate.compare import check_options, compare

    # Before anything slow starts.
    options = command.models, command.seeds, command.jobs, command.device, command.ks, command.ties
    check_options(*options, against=command.against, references=command.references)
    data = _open_data(command.data or _default_shop(command.out.parent))
    result = compare(
        data,
        command.models,
        command.seeds,
        command.out,
        references=command.references,
        cells=command.cells,
        jobs=command.jobs,
        device=command.device,
        ks=command.ks,
        ties=command.ties,
        against=command.against,
        tuned=_tuned(command.tuned, data),
        last=command.last,
        overwrite=command.overwrite,
    )
    from rich.console import Console

    from .evaluate.table import print_table

    files = ["table.csv", "table.md", "training.csv", "events.parquet", "views.json", "manifest.json"]
    print_table(result.long, notes=result.notes, ties=command.ties)
    if len(result.differences):
        from .evaluate.differences import differences_console_table

        Console().print(differences_console_table(result.differences, command.ties))
        files.insert(2, "differences.csv")
    if len(result.training):
        from .evaluate.training import training_console_table

        Console().print(training_console_table(result.training))
    print(f"written to {result.folder}: {', '.join(files)}")


def _tuned(folder: Path | None, data: Any) -> dict[str, str]:
    """What each tuned model is to be replaced by."""
    if folder is None:
        return {}
    from .evaluate.tuned import tuned_specs

    return tuned_specs(folder, data.fingerprint())


def _default_shop(parent: Path, users: bool = False) -> Path:
    """A small shop beside the results; with `users` one whose shoppers return with the taste they had."""
    if users:
        folder = parent / f"shop-{_SHOP_SESSIONS}x400-users800-seed0"
        options = replace(SHOP_OPTIONS, user_split="share", min_user_sessions=3)
        shop = MakeShop(out=folder, items=400, users=800, taste_persistence=0.8, options=options)
    else:
        folder = parent / f"shop-{_SHOP_SESSIONS}x{_SHOP_ITEMS}-seed0"
        shop = MakeShop(out=folder)
    if not folder.exists():
        _make_shop(shop)
    return folder


def _experiment(command: RunExperiment) -> None:
    from rich.console import Console

    from .evaluate.experiments.plan import print_plan
    from .evaluate.experiments.run import make_plan, run_experiment
    from .evaluate.exports import table_console
    from .evaluate.pool import default_jobs
    from .evaluate.report import write_report
    from .evaluate.runs import check_device, check_ks
    from .evaluate.views import Table as TableView

    experiment = EXPERIMENTS[command.name]
    out = command.out or Path("runs") / command.name
    # Before anything slow starts.
    device = check_device(command.device)
    check_ks(command.ks or experiment.ks)
    data = _open_data(command.data or _default_shop(out.parent, experiment.needs_users))
    plan = make_plan(
        experiment,
        data,
        command.cells or out.parent / "cells",
        n_seeds=command.seeds,
        preset=command.preset or experiment.preset,
        models=command.models,
        tuned=_tuned(command.tuned, data),
        device=device,
    )
    print_plan(plan.estimate(command.dry_run, _say), command.jobs or default_jobs(device), plan.folder)
    if command.dry_run:
        return
    views = run_experiment(plan, out, jobs=command.jobs, ks=command.ks, ties=command.ties, overwrite=command.overwrite)
    console = Console()
    for view in views:
        if isinstance(view, TableView):
            console.print(table_console(view))
    print(f"written to {out}: {write_report(out).name}, views.json, tables, plots, table.csv, training.csv")


def _report(command: Report) -> None:
    from .evaluate.exports import read_views, write_views
    from .evaluate.report import write_report

    write_views(command.run, read_views(command.run))
    print(f"written to {write_report(command.run, command.out)}; tables and plots in {command.run}")


def _tune(command: Tune) -> None:
    import torch

    from .evaluate.tuning import tune

    # As in `compare`, so that a configuration trains there as it did here.
    torch.set_num_threads(1)
    options: dict[str, Any] = {"trials": command.trials, "seed": command.seed, "space": command.space}
    result = tune(command.model, command.data, command.out, device=command.device, **options)
    preset, best = result.trials[0], result.best
    print(f"{preset.spec}: {preset.score:.4f} on validation, as it is")
    print(f"{best.spec}: {best.score:.4f}, the best of {len(result.trials)}")
    for note in result.notes:
        print(f"note: {note}")
    print(f"written to {result.folder}: best.json, trials.csv")


def _train(command: Train) -> None:
    import torch

    from .evaluate.models import parse_model
    from .evaluate.runs import check_device, train_run
    from .progress import ProgressDisplay

    spec, device = parse_model(command.model), check_device(command.device)
    data = _open_data(command.data)
    # As in `compare`, so that both give the same weights.
    torch.set_num_threads(1)
    with ProgressDisplay() as display:

        def progress(done: int, total: int, text: str) -> None:
            display.update(spec.label, done, total, text)

        try:
            train_run(command.out, spec, data, command.seed, device, progress)
        except KeyboardInterrupt:
            display.line("stopped; the same command goes on from the last finished epoch")
            raise
        display.finish(spec.label, f"finished, in {command.out}")


def _evaluate(command: Evaluate) -> None:
    import torch

    from .evaluate.honesty import check_data
    from .evaluate.runs import check_device, check_ks, open_run, rank_into
    from .evaluate.table import long_table, print_table, write_table

    check_ks(command.ks)
    # As in `compare`, so that both give the same ranks.
    torch.set_num_threads(1)
    device, data = check_device(command.device), _open_data(command.data)
    run, model = open_run(command.run, data, device)
    check_data(data)
    events = rank_into(command.run, model, data, run["model"])
    long = long_table({run["model"]: {run["seed"]: events}}, command.ks, command.ties)
    write_table(long, command.run / "table.csv")
    print_table(long, notes=data.notes, ties=command.ties)
    print(f"written to {command.run}: table.csv, events.parquet")


def _prepare(source: RecSys15 | Taobao | Rees46 | Table | ChoiceSets | LastFM | Reddit) -> None:
    from .envs.folders import check_new_folder
    from .envs.sources.choice_sets import prepare_choice_sets
    from .envs.sources.lastfm import prepare_lastfm
    from .envs.sources.recsys15 import prepare_recsys15
    from .envs.sources.reddit import prepare_reddit
    from .envs.sources.rees46 import prepare_rees46
    from .envs.sources.table import prepare_table
    from .envs.sources.taobao import prepare_taobao

    check_new_folder(source.out, source.overwrite)
    match source:
        case RecSys15():
            data = prepare_recsys15(source.clicks, source.buys, source.options, _say, memory=source.memory)
        case Taobao():
            data = prepare_taobao(source.format, source.options, _say)
        case Rees46():
            data = prepare_rees46(source.format, source.options, _say)
        case Table():
            data = prepare_table(source.format, source.options, _say)
        case ChoiceSets():
            data = prepare_choice_sets(source.file, source.options, _say)
        case LastFM():
            data = prepare_lastfm(source.format, source.options, _say)
        case Reddit():
            data = prepare_reddit(source.format, source.options, _say)
    data.save(source.out, source.overwrite)
    _info(source.out)


def _make_shop(command: MakeShop) -> None:
    from .envs.folders import check_new_folder
    from .envs.shop.config import ShopConfig
    from .envs.shop.prepare import prepare_shop

    check_new_folder(command.out, command.overwrite)
    named = ShopConfig(n_items=command.items, users=command.users, taste_persistence=command.taste_persistence)
    config = changed(named, command.knobs, f"--knobs {command.knobs}", "the shop")
    data = prepare_shop(command.sessions, config, command.options, _say)
    data.save(command.out, command.overwrite)


def _export(target: ExportParquet | ExportMinari) -> None:
    import warnings

    from .envs.export import export_minari, export_parquet, items_file
    from .progress import ProgressDisplay

    data = _open_data(target.data)
    log, options = getattr(data, target.split), asdict(target.options)
    with ProgressDisplay() as display, warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: display.line(f"warning: {message}")

        def progress(done: int, total: int, text: str) -> None:
            display.update(f"export {target.split}", done, total, text)

        match target:
            case ExportParquet():
                flags: dict[str, Any] = {"compact": target.compact, "overwrite": target.overwrite}
                made = export_parquet(log, target.out, progress=progress, **flags, **options)
                place = f"{target.out}, items: {items_file(target.out)}"
            case ExportMinari():
                sample: dict[str, Any] = {"n_sessions": target.sessions, "seed": target.seed}
                made = export_minari(log, target.dataset_id, progress=progress, **sample, **options)
                place = target.dataset_id
    print(f"written to {place}")
    print(f"{made.transitions:,} transitions of {made.sessions:,} sessions; the log has {log.n_sessions:,} sessions")
    for note in data.notes:
        print(f"note: {note}")


def _info(folder: Path) -> None:
    from .describe import describe_folder

    print(describe_folder(folder))


def _open_data(folder: Path) -> Any:
    from .envs.log import PreparedData

    return PreparedData.open(folder)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _comma_separated(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Tuples are one argument with commas, as in ``--click fav,cart`` and ``--random-split 0.8,0.1,0.1``."""
    from typing import get_args, get_origin

    if get_origin(info.type) is not tuple:
        return None
    element = get_args(info.type)[0]
    length = None if get_args(info.type)[-1] is Ellipsis else len(get_args(info.type))

    def parse(texts: list[str]) -> tuple:
        values = tuple(element(text) for text in texts[0].split(","))
        if length is not None and len(values) != length:
            raise ValueError(f"expected {length} values separated by commas, found {len(values)}")
        return values

    name = "V" if element is str else "X"
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=",".join([name] * (length or 2)) + ("" if length else ",..."),
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value))],
    )
