"""From an experiment to its cells: every system in every variant, as models with configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from ...agents.config import AgentConfig
from ...errors import InputError
from ..models import REFERENCES, ModelSpec, parse_model
from .definitions import Experiment, Preset, System, Variant

_IMAGINATION = {
    "breadth",
    "depth",
    "branching",
    "reconstruct",
    "imagination_policy",
    "distilled_units",
    "reconstruction",
    "imagination_weight",
    "imagination_start",
    "imagination_warmup",
    "imagination_gate",
}
"""Fields that change nothing in an agent without imagination."""


@dataclass(frozen=True)
class Entry:
    """One system in one variant."""

    system: System
    variant: Variant
    model: str
    """The system's model in the preset, as tables name it."""
    spec: ModelSpec
    """The model with its variant's changes; the preset's own where they do not concern it."""
    changed: bool
    """Whether they do. A variant without changes concerns every model."""

    @property
    def label(self) -> str:
        """Unique among the entries of a design."""
        return f"{self.model} · {self.variant.label}" if self.variant.label else self.model


@dataclass(frozen=True)
class Design:
    """All entries of an experiment, and what must be said of them."""

    experiment: Experiment
    preset: Preset
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def models(self) -> list[str]:
        """The models, as tables name them."""
        return list(dict.fromkeys(entry.model for entry in self.entries))

    @property
    def variants(self) -> list[Variant]:
        """The variants that were not left out."""
        return list(dict.fromkeys(entry.variant for entry in self.entries))

    def find(self, model: str, variant: Variant) -> Entry | None:
        """The entry of a model in a variant."""
        return next((e for e in self.entries if e.model == model and e.variant == variant), None)


def design(
    experiment: Experiment,
    preset: Preset = "practical",
    models: Sequence[str] | None = None,
    tuned: Mapping[str, str] | None = None,
) -> Design:
    """The entries of an experiment, references last.

    `models` take the place of its systems, as `parse_model` reads them and whatever the preset. `tuned` gives models to
    be taken instead of others, such as `tuned_specs` returns. A variant that the preset of a system cannot be combined
    with is left out, and a note says so. Raises `InputError` for an unknown model.
    """
    systems = list(experiment.systems)
    names = [system.model(preset) for system in systems]
    if models:
        systems = [_known(name, experiment) for name in models]
        names = list(models)
    if experiment.references:
        extra = [name for name in REFERENCES if name not in names]
        systems += [System(name) for name in extra]
        names += [_literal(name) if preset == "paper" else name for name in extra]
    entries, notes = [], []
    for system, name in zip(systems, names, strict=True):
        text = (tuned or {}).get(name, name)
        model = name if text == name else f"{name} (tuned)"
        n_before = len(entries)
        for variant in experiment.variants:
            try:
                spec, changed = _changed(text, variant)
            except InputError as error:
                notes.append(f"Left out: {model}, {variant.label}: {error}")
                continue
            if changed or experiment.name == "readings":
                entries.append(Entry(system, variant, model, spec, changed))
        if len(entries) == n_before:
            # No variant concerns it: it stands beside them as it is.
            entries.append(Entry(system, Variant(), model, parse_model(text), False))
    return Design(experiment, preset, tuple(dict.fromkeys(entries)), tuple(notes))


def _known(name: str, experiment: Experiment) -> System:
    """The system of the experiment that a name means, whatever fields it changes, or one without a label."""
    known = {text: system for system in experiment.systems for text in (system.paper, system.name) if text}
    return known.get(name) or known.get(name.partition(":")[0]) or System(name)


def _literal(name: str) -> str:
    """The literal preset of an agent that serves as a control; shortcuts stay as they are."""
    return f"{name}@paper" if isinstance(parse_model(name).config, AgentConfig) else name


def _changed(text: str, variant: Variant) -> tuple[ModelSpec, bool]:
    spec = parse_model(text)
    if not variant.changes:
        return spec, True
    names = {change.partition("=")[0] for change in variant.changes.split(",")}
    known = {f.name for f in fields(spec.config)}
    inert = isinstance(spec.config, AgentConfig) and not spec.config.imagination_weight
    if not names <= known or (inert and names <= _IMAGINATION):
        return spec, False
    return parse_model(f"{text}{',' if ':' in text else ':'}{variant.changes}"), True
