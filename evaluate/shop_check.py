"""Do models rank the same on a calibrated shop as on the log that it was calibrated to?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import pandas as pd

from ..envs.log import PreparedData
from ..envs.shop.config import ShopConfig
from ..envs.shop.prepare import prepare_shop
from ..envs.sources.options import PrepareOptions
from ..envs.sources.pipeline import Progress, silent
from ..errors import InputError
from .compare import compare
from .views import Column, Figure, Row, Table

CHECK_MODELS = ("most-popular", "most-recent", "item-knn", "session-knn", "gru4rec")
"""From no use of the session to all of it."""

_SLICES = {"click": "Click", "purchase": "Purchase"}


def rank_check(
    source: PreparedData,
    config: ShopConfig,
    out: Path,
    *,
    models: Sequence[str] = CHECK_MODELS,
    k: int = 5,
    n_seeds: int = 1,
    seed: int = 0,
    jobs: int | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> Table:
    """Recall@K of each model, and its rank, on the test splits of the source and of the shop.

    `config` is what `calibrate(source.train)` found. The shop is open in proportion longer, until all sessions of the
    source have come, and its log goes through the filters and the split of the source. `out` gets ``shop/``, the
    prepared log, ``on-source/`` and ``on-shop/``, the two comparisons, and ``cells/``; the same call goes on from
    there. A note gives the rank correlation (Spearman) of the models. Raises `InputError` for fewer than two models, a
    source without a folder, one prepared with another version's options, and where `out` holds something else.
    """
    if len(models) < 2:
        raise InputError(f"rank_check: expected at least two models to rank, found {len(models)}; name more")
    shop = _shop_like(source, config, out / "shop", seed, progress)
    long = {}
    for name, data in (("source", source), ("shop", shop)):
        result = compare(
            data,
            list(models),
            n_seeds,
            out / f"on-{name}",
            references=False,
            cells=out / "cells",
            jobs=jobs,
            device=device,
            ks=(k,),
        )
        long[name] = result.long
    return check_table(long["source"], long["shop"], k, shop.notes)


def check_table(source: pd.DataFrame, shop: pd.DataFrame, k: int, notes: Sequence[str] = ()) -> Table:
    """The long tables of two comparisons of the same models as one `Table`, clicks and purchases apart."""
    models = list(dict.fromkeys(source["model"]))
    columns: list[Column] = []
    figures: dict[str, list[Figure]] = {model: [] for model in models}
    said = []
    for name, label in _SLICES.items():
        found = [_recalls(long, name, k, models) for long in (source, shop)]
        if any((frame["events"] == 0).any() for frame in found):
            continue
        ranks = [cast(pd.Series, frame["value"].rank(ascending=False)) for frame in found]
        for where, frame, rank in zip(("source", "shop"), found, ranks, strict=True):
            columns.append(Column(f"Recall@{k}, {where}", group=label))
            columns.append(Column(f"rank, {where}", "", 0, "neither", group=label))
            for model in models:
                one = frame.loc[model]
                figures[model] += [
                    Figure(one["value"], one["low"], one["high"]),
                    Figure(float(cast(float, rank[model]))),
                ]
        correlation = ranks[0].corr(ranks[1])
        said.append(f"{label}: rank correlation {correlation:.2f} over {len(models)} models.")
    return Table(
        name="shop-check",
        title="Models on the source and on the shop calibrated to it",
        columns=tuple(columns),
        rows=tuple(Row(model, tuple(figures[model])) for model in models),
        notes=(*said, *(f"Shop: {note}." for note in notes)),
    )


def _recalls(long: pd.DataFrame, name: str, k: int, models: Sequence[str]) -> pd.DataFrame:
    """The rows of one slice, by model."""
    chosen = (long["slice"] == name) & (long["metric"] == "recall") & (long["k"] == k) & (long["seed"] == "mean")
    return long[chosen].set_index("model").loc[list(models)]


def _shop_like(source: PreparedData, config: ShopConfig, folder: Path, seed: int, progress: Progress) -> PreparedData:
    """The shop's log, as many sessions as the source has and prepared as it was; simulated where there is none yet."""
    n_sessions = sum(split.n_sessions for split in (source.train, source.valid, source.test))
    longer = replace(config, days=min(config.days * n_sessions / source.train.n_sessions, 3_650.0))
    options = _options_of(source, seed)
    made_of = {"name": "shop", "sessions": n_sessions, "items": config.n_items, "seed": seed}
    if folder.exists():
        found = PreparedData.open(folder)
        told = found.manifest.get("source", {})
        if any(told.get(key) != value for key, value in made_of.items()) or told.get("shop") != asdict(longer):
            raise InputError(f"{folder}: holds the log of another shop; choose another --out or remove it")
        return found
    return prepare_shop(n_sessions, longer, options, progress).save(folder)


def _options_of(source: PreparedData, seed: int) -> PrepareOptions:
    found: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in source.manifest.get("options", {}).items()
    }
    try:
        return replace(PrepareOptions(**found), seed=seed)
    except TypeError as error:
        raise InputError(
            f"{source.path}: its manifest does not tell how it was prepared ({error}); prepare the data again"
        ) from None
