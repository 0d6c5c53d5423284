"""Tables of the simulated shop."""

from __future__ import annotations

from ..envs.shop.calibrate import Calibration
from .views import Column, Figure, Row, Table


def calibration_table(calibration: Calibration) -> Table:
    """Target and achieved side by side, a row a figure of `describe`; shares are of 1."""
    rows = []
    for name, target in calibration.target.items():
        achieved, knobs = calibration.achieved[name], calibration.knobs[name]
        figures = (Figure(target), Figure(achieved), Figure(achieved - target))
        rows.append(Row(f"{name} ({knobs})" if knobs else name, figures))
    sources = list(dict.fromkeys(calibration.source.values()))
    notes = [
        f"Achieved: {calibration.sessions:,} simulated sessions a log, by other seeds than those of the fit.",
        "A figure without a knob is a check: nothing was fitted to it.",
    ]
    for source in sources if len(sources) > 1 else ():
        notes.append(f"{source}: {', '.join(name for name, of in calibration.source.items() if of == source)}.")
    notes.append(f"Kept as they were, since no figure tells of them: {', '.join(calibration.left)}.")
    return Table(
        name="calibration",
        title=f"Calibration to {', '.join(sources)}",
        columns=tuple(Column(label, "", 4, "neither") for label in ("target", "achieved", "difference")),
        rows=tuple(rows),
        heading="figure",
        notes=tuple(notes),
    )
