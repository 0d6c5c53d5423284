"""The TorchRL recipe of the docs runs as printed, and the batch it collects is the log."""

import re
import runpy
from pathlib import Path

import pytest
from sessiongym.envs.log import PURCHASE
from sessiongym.envs.shop.config import ShopConfig
from sessiongym.envs.shop.prepare import prepare_shop
from sessiongym.envs.sources.options import SHOP_OPTIONS

RECIPE = Path(__file__).parents[1] / "docs" / "torchrl.md"


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """The names that the recipe leaves behind."""
    pytest.importorskip("torchrl", reason="torchrl is not installed; pip install torchrl runs the recipe")
    folder = tmp_path_factory.mktemp("torchrl")
    prepare_shop(300, ShopConfig(n_items=60), SHOP_OPTIONS, lambda line: None).save(folder / "shop")
    (block,) = re.findall(r"^```python\n(.*?)^```$", RECIPE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (folder / "recipe.py").write_text(block, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return runpy.run_path("recipe.py")


def test_every_step_of_the_batch_is_an_event_of_the_log(collected):
    batch, n_items = collected["batch"], collected["log"].n_items
    state, after = batch["observation"], batch["next", "observation"]
    assert batch.shape == (32, 64) and state.max() == n_items
    assert (after[..., :-1] == state[..., 1:]).all()
    assert (after[..., -1] == batch["next", "logged_action"]).all()
    assert batch["next", "done"].any()


def test_rewards_and_purchases_are_there_where_sessions_end(collected):
    batch = collected["batch"]
    after, done = batch["next"], batch["next", "done"].squeeze(-1)
    assert (after["logged_kind"][done] == PURCHASE).any()
    assert (after["logged_reward"] == 1 + 4 * (after["logged_kind"] == PURCHASE)).all()
    hit = batch["action"] == after["logged_action"]
    assert (after["reward"].squeeze(-1) == hit * after["logged_reward"]).all()
    assert hit.any() and collected["hits"] == hit.float().mean()
