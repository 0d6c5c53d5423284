"""What a policy does, beside how it scores: does it copy, does what it imagines come true, is its logit all bias."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ..envs.log import SessionLog
from .imagination.core import ImaginationCore
from .imagination.executor import logit_bias_share
from .imagination.planner import TrajectoryManager

if TYPE_CHECKING:
    from .recurrent import RecurrentAgent


@torch.no_grad()
def probe(agent: RecurrentAgent, log: SessionLog, max_rows: int = 1000, k: int = 5) -> dict[str, float]:
    """Shares over the first `max_rows` states of `log`.

    ``copy_last``: the newest item is among the top k. ``copy_earlier``: some earlier item of the session is.
    ``entropy``: of the policy, in nats. ``imagined_true``: an imagined item occurs later in its session.
    ``imagined_new``: an imagined item has not occurred in its session yet. ``imagined_bias``: share of the bias in the
    logits of imagined items, in the states imagined from; near 1 the reconstruction is met by the bias alone.
    """
    assert agent.policy is not None
    batch = next(log.batches(max_rows))
    state = agent.encode(batch)
    windows = agent.windows(batch)
    logits = agent.policy.logits(state[0], windows)
    log_probability = torch.log_softmax(logits, dim=1)
    top = logits.topk(min(k, logits.shape[1]), dim=1).indices.cpu().numpy()

    generator = torch.Generator(agent.device).manual_seed(0)
    core = ImaginationCore(agent.policy, 1, generator)
    imagined = TrajectoryManager(agent.config.breadth, agent.config.depth).imagine(core, state, windows)
    repeated = state[0].repeat(imagined.shape[0] * imagined.shape[1], 1)
    bias_share = logit_bias_share(agent.policy, repeated, imagined.flatten())
    imagined_items = imagined.flatten(0, 1).t().cpu().numpy()

    events = batch.state_events()
    session = np.searchsorted(batch.offset, events, side="right") - 1
    copies_last = copies_earlier = came_true = new = 0
    for row, (event, s) in enumerate(zip(events.tolist(), session.tolist(), strict=True)):
        past, future = batch.item[batch.offset[s] : event + 1], batch.item[event + 1 : batch.offset[s + 1]]
        last = past[-1]
        copies_last += bool(last in top[row])
        copies_earlier += bool(np.isin(top[row], past[past != last]).any())
        came_true += int(np.isin(imagined_items[row], future).sum())
        new += int((~np.isin(imagined_items[row], past)).sum())
    n_rows = max(len(events), 1)
    return {
        "copy_last": copies_last / n_rows,
        "copy_earlier": copies_earlier / n_rows,
        "entropy": float(-(log_probability.exp() * log_probability).sum(1).mean()),
        "imagined_true": came_true / max(imagined_items.size, 1),
        "imagined_new": new / max(imagined_items.size, 1),
        "imagined_bias": float(bias_share),
    }
