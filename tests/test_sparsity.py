"""Thinning keeps a nested, exactly counted share of the purchases and leaves everything else alone."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
from sessiongym.envs.log import CLICK, PURCHASE, SessionLog
from sessiongym.envs.sparsity import keep_purchases, thin_purchases
from sessiongym.errors import InputError

DENSITIES = (0.0, 0.01, 0.1, 0.25, 0.5, 0.51, 0.9, 0.99, 1.0)


@pytest.fixture(scope="module")
def log() -> SessionLog:
    """80 sessions, some of them of purchases only, so that deleting can empty them."""
    rng = np.random.default_rng(0)
    n_events = 400
    session = rng.integers(0, 80, n_events)
    return SessionLog.from_pandas(
        pd.DataFrame(
            {
                "session": session,
                "item": rng.integers(0, 30, n_events),
                "time": rng.permutation(n_events),
                "kind": (rng.random(n_events) < np.where(session < 20, 1.0, 0.25)).astype(int),
                "user": session % 9,
            }
        ),
        notes=["a note"],
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_kept_sets_are_nested_as_the_density_grows_and_of_exact_size(log, seed):
    kept = [keep_purchases(log, density, seed) for density in DENSITIES]
    assert [k.sum() for k in kept] == [round(density * log.n_purchases) for density in DENSITIES]
    assert not kept[0].any() and np.array_equal(kept[-1], log.kind == PURCHASE)
    for fewer, more in itertools.pairwise(kept):
        assert not (fewer & ~more).any()


def test_the_seed_chooses_the_purchases(log):
    chosen = [keep_purchases(log, 0.5, seed) for seed in (0, 0, 1)]
    assert np.array_equal(chosen[0], chosen[1]) and not np.array_equal(chosen[0], chosen[2])


@pytest.mark.parametrize("density", DENSITIES[:-1])
def test_dropping_events_deletes_exactly_the_other_purchases(log, density):
    thinned, silenced = thin_purchases(log, density, "event", seed=3)
    frame = log.to_pandas()
    left = frame[(log.kind == CLICK) | keep_purchases(log, density, 3)]
    assert silenced is None
    pd.testing.assert_frame_equal(thinned.to_pandas(), left.reset_index(drop=True))
    assert thinned.session_id.tolist() == left["session"].drop_duplicates().tolist()
    assert (thinned.n_items, thinned.notes, thinned.n_train_items) == (log.n_items, log.notes, log.n_train_items)


@pytest.mark.parametrize("density", DENSITIES[:-1])
def test_dropping_rewards_changes_no_event(log, density):
    thinned, silenced = thin_purchases(log, density, "reward", seed=3)
    assert thinned is log and silenced is not None
    assert np.array_equal(silenced, (log.kind == PURCHASE) & ~keep_purchases(log, density, 3))


@pytest.mark.parametrize("density", DENSITIES[:-1])
def test_dropping_to_clicks_changes_nothing_but_kinds(log, density):
    thinned, silenced = thin_purchases(log, density, "click", seed=3)
    assert silenced is None
    assert np.array_equal(thinned.kind == PURCHASE, keep_purchases(log, density, 3))
    for name in ("item", "time", "offset", "session_id", "user"):
        assert np.array_equal(getattr(thinned, name), getattr(log, name)), name


@pytest.mark.parametrize("drop", ["event", "reward", "click"])
def test_full_density_is_the_log_itself(log, drop):
    assert thin_purchases(log, 1.0, drop) == (log, None)


@pytest.mark.parametrize("drop", ["event", "click"])
def test_a_thinned_log_is_new_content_and_not_the_folder_it_came_from(log, drop, tmp_path):
    saved = log.save(tmp_path / "log")
    thinned, _ = thin_purchases(saved, 0.5, drop)
    assert thinned.path is None and thinned.fingerprint() != saved.fingerprint()


def test_a_log_of_purchases_only_can_be_emptied(log):
    bought = dataclasses.replace(log, kind=np.ones_like(log.kind), recorded_fingerprint=None)
    thinned, _ = thin_purchases(bought, 0.0, "event")
    assert (thinned.n_sessions, thinned.n_events) == (0, 0)
    assert thin_purchases(thinned, 0.0, "event")[0].n_events == 0


@pytest.mark.parametrize("density", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("drop", ["event", "reward", "click"])
def test_a_density_that_is_no_share_is_refused(log, density, drop):
    with pytest.raises(InputError, match=r"density: expected a share of purchases in \[0, 1\]"):
        thin_purchases(log, density, drop)


def test_an_unknown_way_to_drop_is_refused(log):
    with pytest.raises(InputError, match="drop: expected 'event', 'reward' or 'click', found 'item'"):
        thin_purchases(log, 1.0, "item")  # type: ignore[arg-type]
