"""Scalars of a training run, as JSON lines and as TensorBoard events."""

from __future__ import annotations

import json
from pathlib import Path


class ScalarLog:
    """Appends to ``scalars.jsonl`` and ``tensorboard/`` in `folder`; with no folder it only remembers."""

    def __init__(self, folder: Path | None, history: list[dict[str, float]] | None = None) -> None:
        """`history`: the records of a run that is being resumed; whatever the file holds beyond them is dropped."""
        self.history = list(history or [])
        self._file = None if folder is None else folder / "scalars.jsonl"
        self._writer = None
        if folder is not None and self._file is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._file.write_text("".join(json.dumps(record) + "\n" for record in self.history), encoding="utf-8")
            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=self._step())

    def add(self, record: dict[str, float]) -> None:
        """One record, with its number of training ``events``."""
        self.history.append(record)
        if self._file is not None and self._writer is not None:
            with self._file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(record) + "\n")
            for name, value in record.items():
                self._writer.add_scalar(name, value, self._step())
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _step(self) -> int:
        return int(self.history[-1]["events"]) if self.history else 0
