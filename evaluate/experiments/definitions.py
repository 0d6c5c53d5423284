"""What each experiment compares. Imports nothing heavy.

The IRN paper: "Purchase as Reward: Session-based Recommendation by Imagination Reconstruction" (under review, ICLR
2019). The II-RNN paper: Ruocco, Skrede and Langseth, "Inter-session modeling for session-based recommendation" (2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Preset = Literal["practical", "paper"]

ExperimentName = Literal[
    "table1",
    "table2",
    "table3",
    "figure3",
    "figure4-cold-start",
    "figure4-online",
    "ii-rnn",
    "readings",
]
"""`EXPERIMENTS` has one of each."""


@dataclass(frozen=True)
class System:
    """A model of a paper, by its name here in either preset."""

    name: str
    paper: str | None = None
    """Its literal form; None where there is but one."""
    label: str | None = None
    """What the paper calls it."""

    def model(self, preset: Preset) -> str:
        """The model's name as `parse_model` reads it."""
        return self.paper or self.name if preset == "paper" else self.name


@dataclass(frozen=True)
class Variant:
    """A change to the models of an experiment."""

    label: str = ""
    changes: str = ""
    """``field=value,...``, as after a model's name; models without such a field are compared as they are."""
    paper: str | None = None
    """What the paper calls it."""


@dataclass(frozen=True)
class Experiment:
    """Models, variants of them, and how they are shown."""

    name: str
    title: str
    source: str
    systems: tuple[System, ...]
    variants: tuple[Variant, ...] = (Variant(),)
    task: Literal["fit", "cold-start", "online"] = "fit"
    """Trained and ranked; with the ranks of states that stop growing; or learned online."""
    references: bool = True
    """Whether the shortcuts and controls that every table carries are added."""
    needs_users: bool = False
    against: str | None = None
    """The system whose paired differences to all others are shown."""
    ks: tuple[int, ...] = (3, 5, 10)
    preset: Preset = "practical"
    """Of its systems, where nothing else is asked for."""


_IRN = "IRN paper, "

A3C_F, A3C_P, IRN_F, IRN_P, PRN_P = (
    System(name, f"{name}@paper", name.upper()) for name in ("a3c-f", "a3c-p", "irn-f", "irn-p", "prn-p")
)


def _with(system: System, changes: str) -> System:
    return System(f"{system.name}:{changes}", f"{system.paper}:{changes}", f"{system.label} ({changes})")


IRN_11, IRN_21, IRN_12 = (_with(IRN_P, f"breadth={n},depth={m}") for n, m in ((1, 1), (2, 1), (1, 2)))
A3C_SPARSE, IRN_SPARSE = (_with(system, "density=0.1") for system in (A3C_P, IRN_P))

_EIGHT = (
    System("bpr", None, "BPR"),
    System("session-knn", "session-knn@paper", "CKNN"),
    System("gru4rec", "gru4rec@irn", "GRU4Rec"),
    A3C_F,
    A3C_P,
    IRN_F,
    PRN_P,
    IRN_P,
)

_DENSITIES = (
    Variant("d = 1"),
    Variant("d = 0.1", "density=0.1", "0.1"),
    Variant("d = 0.05", "density=0.05", "0.05"),
    Variant("d = 0", "density=0.0", "0.0"),
)

_PLANNERS = tuple(
    Variant(f"breadth {n}, depth {m}", f"breadth={n},depth={m}", f"{n},{m}")
    for n, m in ((1, 1), (2, 1), (1, 2), (2, 2))
)

READINGS = (
    Variant("as the preset"),
    Variant("reconstruct before the item", "reconstruction=before"),
    Variant("reconstruct the item alone", "reconstruction=alone"),
    Variant("branch: independent draws", "branching=iid"),
    Variant("branch: most probable", "branching=top-n"),
    Variant("branch: full tree", "branching=tree"),
    Variant("distilled imagination policy", "imagination_policy=distilled"),
    Variant("imagination weight 0.1", "imagination_weight=0.1"),
    Variant("imagination weight 1", "imagination_weight=1.0"),
    Variant("imagination after 64,000 events", "imagination_start=64000"),
    Variant("value loss stopped at the trunk", "value_gradient=stopped"),
    Variant("value loss into the trunk", "value_gradient=flows"),
    Variant("V at purchases only", "value_at=reward"),
    Variant("V bootstrapped, one step", "bootstrap=true"),
    Variant("bootstrap from online V", "value_target=online"),
    Variant("advantage", "policy_weight=advantage"),
    Variant("positive advantage", "policy_weight=positive_advantage"),
    Variant("return, no baseline", "policy_weight=return"),
    Variant("tied bottleneck embedding", "embedding_dim=128,tied=true"),
    Variant("one-hot into the gates", "embedding_dim=none,tied=false"),
    Variant("last 20 items encoded anew", "history=20"),
    Variant("no unrolling", "unroll=1,lanes=128"),
    Variant("larger updates of 1,024 events", "unroll=8,lanes=128"),
    Variant("purchases marked in the state", "kinds=true"),
    Variant("purchases not marked", "kinds=false"),
    Variant("entropy bonus 0.01", "entropy_weight=0.01"),
)
"""What the IRN paper leaves open, one change at a time. Where a change leaves a model as it is, its cell is the one of
the preset and costs nothing."""

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment("table1", "All systems on purchases and clicks", _IRN + "Table 1", _EIGHT, against="irn-p"),
        Experiment(
            "table2", "Fewer purchase rewards", _IRN + "Table 2", (A3C_F, A3C_P, IRN_F, IRN_P), _DENSITIES, ks=(5,)
        ),
        Experiment("table3", "Planning: breadth and depth", _IRN + "Table 3", (IRN_P,), _PLANNERS, ks=(5,)),
        Experiment(
            "figure3",
            "Learning curves with fewer purchase rewards",
            _IRN + "Figure 3",
            (A3C_F, A3C_P, IRN_F, IRN_P),
            _DENSITIES,
            references=False,
            ks=(5,),
        ),
        Experiment(
            "figure4-cold-start",
            "States that stop growing after c events",
            _IRN + "Figure 4, a and b",
            (A3C_F, A3C_P, IRN_P),
            task="cold-start",
            ks=(5,),
        ),
        Experiment(
            "figure4-online",
            "Learning online, every event once",
            _IRN + "Figure 4, c and d",
            (A3C_F, A3C_P, IRN_P, *map(System, ("lstm", "most-popular", "most-recent"))),
            task="online",
            references=False,
            ks=(5,),
        ),
        Experiment(
            "ii-rnn",
            "What earlier sessions are worth",
            "II-RNN paper, Tables 3 and 4 and Figure 3",
            (
                System("most-recent", None, "Most Recent"),
                System("item-knn", "item-knn@paper", "Item-kNN"),
                System("bpr"),
                System("rnn", "rnn@paper", "RNN"),
                System("ii-rnn-ap", "ii-rnn-ap@paper", "II-RNN-AP"),
                System("ii-rnn-lhs", "ii-rnn-lhs@paper", "II-RNN-LHS"),
            ),
            references=False,
            needs_users=True,
            against="rnn",
            ks=(5, 10, 20),
        ),
        Experiment(
            "readings",
            "Every ambiguity of the IRN paper, one at a time",
            "IRN paper, where it is silent",
            (A3C_F, A3C_P, PRN_P, IRN_P, IRN_11, IRN_21, IRN_12, A3C_SPARSE, IRN_SPARSE),
            READINGS,
            references=False,
            ks=(5,),
            preset="paper",
        ),
    )
}
