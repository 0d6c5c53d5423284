"""What the checker found, as data and as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from gymnasium.vector import AutoresetMode

Status = Literal["pass", "fail", "not supported", "not judged"]


@dataclass(frozen=True)
class VectorEnvFinding:
    """What `check_vector_env` found about one property."""

    property: str
    """One of those that `check_vector_env` lists."""
    mode: AutoresetMode | None
    """The autoreset mode it was found in; None: about all of them together."""
    status: Status
    """"not supported": the environment refuses; "not judged": the run, or an earlier failure, left nothing to judge."""
    detail: str = ""
    """Expected and found, with the step and the lane; why, where it is not a verdict."""

    def __str__(self) -> str:
        status = "FAIL" if self.status == "fail" else self.status
        return f"  {status:13}  {self.mode.name if self.mode else 'all':9}  {self.property:25}  {self.detail}".rstrip()


@dataclass(frozen=True)
class VectorEnvReport:
    """The findings of `check_vector_env`; `print` shows them one a line."""

    name: str
    findings: tuple[VectorEnvFinding, ...]

    @property
    def failed(self) -> list[VectorEnvFinding]:
        return [finding for finding in self.findings if finding.status == "fail"]

    def __str__(self) -> str:
        statuses = [finding.status for finding in self.findings]
        summary = ", ".join(f"{statuses.count(status)} {status}" for status in get_args(Status))
        return "\n".join([f"{self.name}: {summary}", *map(str, self.findings)])


class VectorEnvError(AssertionError):
    """A vector environment breaks the contract; the message is the report, `report` the same as data."""

    def __init__(self, report: VectorEnvReport) -> None:
        self.report = report
        super().__init__(str(report))


class NoVerdict(Exception):
    """Raised by a judge that can say neither "pass" nor "fail"."""

    def __init__(self, status: Status, reason: str) -> None:
        self.status: Status = status
        self.reason = reason


def form(value: Any) -> str:
    """Dtype and shape of an array, type and value of anything else."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return f"{type(value).__name__} {short(value)}"


def short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {short(error)}"
