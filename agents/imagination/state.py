"""What imagination asks of a recommender: a state that takes one more item, and logits over the items."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from ...errors import InputError

State = Any
"""Of M sessions: a tensor [M, ...], None, or a tuple (named or not) of states."""


class SequencePolicy(Protocol):
    """Any module with these methods.

    Two more are used where there are any: ``logit_of(state, items [M]) -> [M]``, the logit of one item each without
    computing the others, and ``initial_state(n) -> state`` of n sessions without an event, which only the reading
    ``alone`` needs.
    """

    def step(self, items: Tensor, state: State, /) -> State:
        """The states after one more item [M] int64 each."""
        ...

    def logits(self, state: State, /) -> Tensor:
        """[M, N]"""
        ...


def map_state(function: Callable[..., Tensor], state: State, *others: State) -> State:
    """`function` of every tensor of the state, and of the tensors in its place in `others`, if there are any."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        return function(state, *others)
    if not isinstance(state, tuple):
        raise InputError(f"state: expected a tensor, None or a tuple of such, found {type(state).__name__}")
    parts = [map_state(function, *part) for part in zip(state, *others, strict=True)]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def repeat_state(state: State, times: int) -> State:
    """The states of M sessions, one after the other, `times` over."""
    return state if times == 1 else map_state(lambda part: part.repeat(times, *[1] * (part.ndim - 1)), state)
