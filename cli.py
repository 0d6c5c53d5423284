"""The command ``sessiongym``: parses, calls, prints. Everything slow is imported by the command that needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from .commands import (
    SHOP_SESSIONS,
    Calibrate,
    ChoiceSets,
    Command,
    Compare,
    Evaluate,
    Export,
    ExportMinari,
    ExportParquet,
    Info,
    LastFM,
    MakeShop,
    OffPolicy,
    Prepare,
    RecSys15,
    Reddit,
    Rees46,
    Report,
    RunExperiment,
    RunShopExperiment,
    Table,
    Taobao,
    Train,
    Tune,
)
from .envs.sources.options import SHOP_OPTIONS
from .errors import InputError
from .evaluate.experiments.definitions import EXPERIMENTS
from .evaluate.models import changed


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
        case RunShopExperiment():
            _shop_experiment(command)
        case Report():
            _report(command)
        case Tune():
            _tune(command)
        case OffPolicy():
            _off_policy(command)
        case Train():
            _train(command)
        case Evaluate():
            _evaluate(command)
        case Prepare():
            _prepare(command.source)
        case MakeShop():
            _make_shop(command)
            _info(command.out)
        case Calibrate():
            _calibrate(command)
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

    from .evaluate.exports import table_console

    Console().print(table_console(*result.views, notes=result.notes))
    files = ["table.csv", "table.md", "training.csv", "events.parquet", "views.json", "manifest.json"]
    if len(result.differences):
        files.insert(2, "differences.csv")
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
        folder = parent / f"shop-{SHOP_SESSIONS}x400-users800-seed0"
        options = replace(SHOP_OPTIONS, user_split="share", min_user_sessions=3)
        shop = MakeShop(out=folder, items=400, users=800, taste_persistence=0.8, options=options)
    else:
        folder = parent / f"shop-{SHOP_SESSIONS}x1000-seed0"
        shop = MakeShop(out=folder)
    if not folder.exists():
        _make_shop(shop)
    return folder


def _experiment(command: RunExperiment) -> None:
    from rich.console import Console

    from .evaluate.experiments.plan import print_plan
    from .evaluate.experiments.run import make_plan, notes_of, run_experiment
    from .evaluate.exports import table_console
    from .evaluate.pool import default_jobs
    from .evaluate.report import write_report
    from .evaluate.runs import check_device, check_ks

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
    Console().print(table_console(*views, notes=notes_of(plan)))
    print(f"written to {out}: {write_report(out).name}, views.json, tables, plots, table.csv, training.csv")


def _shop_experiment(command: RunShopExperiment) -> None:
    from rich.console import Console

    from .evaluate.exports import table_console
    from .evaluate.report import write_report
    from .evaluate.shop_experiments.definitions import SHOP_EXPERIMENTS, changed_experiment
    from .evaluate.shop_experiments.run import make_shop_plan, run_shop_experiment

    out = command.out or Path("runs") / command.name
    experiment = changed_experiment(
        SHOP_EXPERIMENTS[command.name],
        models=command.models,
        n_sessions=command.sessions,
        n_served=command.served,
        n_items=command.items,
        seed=command.seed,
    )
    plan = make_shop_plan(experiment, out.parent, n_seeds=command.seeds, device=command.device, progress=_say)
    n_cells, cells_missing, n_values, values_missing = plan.missing()
    print(f"{n_cells} cells, {cells_missing} to compute; {n_values} true values, {values_missing} to compute")
    if command.dry_run:
        return
    views = run_shop_experiment(plan, out, jobs=command.jobs, ties=command.ties, overwrite=command.overwrite)
    Console().print(table_console(*(view for view in views if view.name in ("kendall-unseen", "regret-unseen"))))
    print(f"written to {out}: {write_report(out).name}, views.json, tables, plots")


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


def _off_policy(command: OffPolicy) -> None:
    from rich.console import Console

    from .envs.folders import SCHEMA, check_new_folder, new_folder, write_json
    from .evaluate.exports import table_console, write_views
    from .evaluate.models import parse_models
    from .evaluate.off_policy_table import coverage_table, estimates_table, recorded_estimates

    check_new_folder(command.out, command.overwrite)
    head: dict[str, Any] = {"format": "sessiongym.off-policy", "schema": SCHEMA, "notes": []}
    if command.data is None:
        views = [coverage_table()]
    elif not command.estimate_propensities:
        raise InputError(
            f"{command.data}: a recorded log does not say how probable its recommendations were, and no estimate holds "
            "without; pass --estimate-propensities to have them guessed and the figures marked"
        )
    else:
        data, views = _open_data(command.data), []
        for number, spec in enumerate(parse_models(command.models), start=1):
            model = spec.create(0, "cpu").fit(data.train, data.valid)
            outcomes = recorded_estimates(
                model,
                data.test,
                guess_propensities=True,
                temperature=command.temperature,
                min_effective_sample_size=command.min_effective_sample_size,
            )
            table = estimates_table(outcomes, name=f"off-policy-{number}")
            views.append(replace(table, title=f"{table.title}: {spec.label}"))
        head |= {"models": [spec.label for spec in parse_models(command.models)], "data": data.fingerprint()}
        head |= {"data_path": str(data.path), "notes": list(data.notes)}
    with new_folder(command.out, overwrite=command.overwrite) as work:
        write_views(work, views)
        write_json(work / "manifest.json", head)
    Console().print(table_console(*views))
    print(f"written to {command.out}: views.json, tables")


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

    from .evaluate.comparison_views import print_table
    from .evaluate.honesty import check_data
    from .evaluate.runs import check_device, check_ks, open_run, rank_into
    from .evaluate.table import long_table, write_table

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
    from .envs.shop.config import ShopConfig, load_config
    from .envs.shop.prepare import prepare_shop

    check_new_folder(command.out, command.overwrite)
    config = ShopConfig() if command.config is None else load_config(command.config)
    named = {"n_items": command.items, "users": command.users, "taste_persistence": command.taste_persistence}
    config = replace(config, **{name: value for name, value in named.items() if value is not None})
    config = changed(config, command.knobs, f"--knobs {command.knobs}", "the shop")
    data = prepare_shop(command.sessions, config, command.options, _say)
    data.save(command.out, command.overwrite)


def _calibrate(command: Calibrate) -> None:
    from functools import partial

    from rich.console import Console

    from .envs.shop.calibrate import calibrate
    from .envs.shop.config import ShopConfig, check_config_file, save_config
    from .envs.shop.target import target_of
    from .evaluate.exports import table_console
    from .evaluate.shop_views import calibration_table
    from .progress import ProgressDisplay

    check_config_file(command.out, command.overwrite)
    config = changed(ShopConfig(), command.knobs, f"--knobs {command.knobs}", "the shop")
    data = _open_data(command.data)
    with ProgressDisplay() as display:
        target = target_of(data.train, str(command.data), seed=max(command.seed, 0))
        found = calibrate(target, config=config, seed=command.seed, progress=partial(display.update, "calibrate"))
        display.finish("calibrate", "finished")
    save_config(found.config, command.out, command.overwrite)
    Console().print(table_console(calibration_table(found)))
    next_command = f"sessiongym shop --config {command.out} --sessions {data.train.n_sessions} --out shop"
    print(f"written to {command.out}; next: {next_command}")


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
