"""Progress of several jobs at once: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

_SECONDS_BETWEEN_LINES = 10.0


class ProgressDisplay:
    """Shows (job, done, total, text); a context manager. Everything goes to standard error."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = Console(stderr=True)
        columns = (TextColumn("{task.fields[job]:<28}"), BarColumn(24), TextColumn("{task.description:<28}"))
        self._bars = None
        if self._console.is_terminal:
            self._bars = Progress(*columns, TimeElapsedColumn(), console=self._console)
        self._tasks: dict[str, object] = {}
        self._last: dict[str, tuple[str, float]] = {}
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()

    def update(self, job: str, done: int, total: int, text: str) -> None:
        """`job` has done `done` of `total`; on plain output a line where the text is new, and not too often."""
        if self._bars is not None:
            if job not in self._tasks:
                self._tasks[job] = self._bars.add_task(text, total=total, job=job)
            self._bars.update(self._tasks[job], completed=done, total=total, description=text)  # type: ignore[arg-type]
            return
        last_text, last_time = self._last.get(job, ("", -_SECONDS_BETWEEN_LINES))
        now = time.monotonic()
        if text != last_text and now - last_time >= _SECONDS_BETWEEN_LINES:
            self._last[job] = text, now
            self.line(f"{job}: {text}")

    def finish(self, job: str, text: str) -> None:
        """`job` is done; its bar, if it had one, makes room."""
        if self._bars is not None and job in self._tasks:
            self._bars.remove_task(self._tasks.pop(job))  # type: ignore[arg-type]
        self.line(f"{job}: {text}")

    def line(self, text: str) -> None:
        """One line of its own."""
        elapsed = time.monotonic() - self._started
        if self._bars is not None:
            from rich.markup import escape

            self._bars.console.print(f"[dim]{elapsed:6.0f} s[/] {escape(text)}", highlight=False)
        else:
            print(f"{elapsed:6.0f} s {text}", file=sys.stderr, flush=True)
