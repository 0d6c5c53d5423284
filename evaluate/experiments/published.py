"""What the IRN paper printed of its own data: to stand beside figures made here, never in their place.

"Purchase as Reward: Session-based Recommendation by Imagination Reconstruction" (under review, ICLR 2019), tables 1-3.
"""

from __future__ import annotations

_TABLE1_COLUMNS = (("recall", 3), ("recall", 5), ("recall", 10), ("mrr", 3), ("mrr", 5), ("mrr", 10))

_TABLE1 = {
    "purchase": {
        "BPR": (0.471, 0.679, 0.82, 0.372, 0.434, 0.458),
        "CKNN": (0.519, 0.685, 0.805, 0.42, 0.47, 0.49),
        "GRU4Rec": (0.5, 0.675, 0.788, 0.404, 0.457, 0.475),
        "A3C-F": (0.505, 0.684, 0.813, 0.405, 0.458, 0.479),
        "A3C-P": (0.512, 0.704, 0.828, 0.411, 0.469, 0.489),
        "IRN-F": (0.525, 0.734, 0.879, 0.419, 0.482, 0.506),
        "PRN-P": (0.515, 0.718, 0.867, 0.409, 0.471, 0.492),
        "IRN-P": (0.537, 0.752, 0.908, 0.427, 0.49, 0.514),
    },
    "click": {
        "BPR": (0.198, 0.249, 0.276, 0.168, 0.182, 0.187),
        "CKNN": (0.206, 0.292, 0.383, 0.167, 0.19, 0.207),
        "GRU4Rec": (0.201, 0.297, 0.413, 0.162, 0.192, 0.209),
        "A3C-F": (0.207, 0.313, 0.437, 0.168, 0.2, 0.218),
        "A3C-P": (0.197, 0.277, 0.367, 0.16, 0.184, 0.198),
        "IRN-F": (0.21, 0.31, 0.422, 0.171, 0.198, 0.216),
        "PRN-P": (0.185, 0.255, 0.328, 0.154, 0.172, 0.184),
        "IRN-P": (0.212, 0.306, 0.406, 0.173, 0.2, 0.215),
    },
}

_TABLE2_COLUMNS = ("0.1", "0.05", "0.0")

_TABLE2 = {
    "recall": {
        "A3C-F": (0.679, 0.676, 0.674),
        "A3C-P": (0.687, 0.578, None),
        "IRN-F": (0.73, 0.726, 0.72),
        "IRN-P": (0.735, 0.725, 0.653),
    },
    "mrr": {
        "A3C-F": (0.46, 0.459, 0.459),
        "A3C-P": (0.464, 0.398, None),
        "IRN-F": (0.48, 0.478, 0.473),
        "IRN-P": (0.482, 0.475, 0.432),
    },
}

_TABLE3_COLUMNS = ("first", "click", "purchase")

_TABLE3 = {
    "recall": {
        "1,1": (0.397, 0.307, 0.733),
        "2,1": (0.413, 0.316, 0.736),
        "1,2": (0.344, 0.294, 0.755),
        "2,2": (0.372, 0.306, 0.752),
    },
    "mrr": {
        "1,1": (0.299, 0.199, 0.477),
        "2,1": (0.308, 0.205, 0.479),
        "1,2": (0.28, 0.19, 0.488),
        "2,2": (0.29, 0.2, 0.49),
    },
}

TABLE1 = {
    (system, slice_name, metric, k): value
    for slice_name, systems in _TABLE1.items()
    for system, values in systems.items()
    for (metric, k), value in zip(_TABLE1_COLUMNS, values, strict=True)
}
"""By what the paper calls the system, slice, metric and K."""

TABLE2 = {
    (system, density, metric): value
    for metric, systems in _TABLE2.items()
    for system, values in systems.items()
    for density, value in zip(_TABLE2_COLUMNS, values, strict=True)
}
"""Purchases at K = 5, by system, density and metric; None where the paper has none. At a density of 1 they are those of
Table 1."""

TABLE3 = {
    (planner, slice_name, metric): value
    for metric, planners in _TABLE3.items()
    for planner, values in planners.items()
    for slice_name, value in zip(_TABLE3_COLUMNS, values, strict=True)
}
"""IRN-P at K = 5, by breadth and depth ("2,2"), slice and metric."""
