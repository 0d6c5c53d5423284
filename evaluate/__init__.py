"""The one evaluator: what a recommender is, how it is ranked, and the tables made from the ranks.

Names are loaded when first used, so that importing the package stays cheap.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "PolicyRecommender": "policy",
    "Finding": "protocol",
    "Recommender": "protocol",
    "RecommenderError": "protocol",
    "check_recommender": "protocol",
    "rank_bounds": "ranks",
    "purchase_recall": "events",
    "rank_events": "events",
    "validation_recall": "events",
    "slice_masks": "events",
    "mrr": "metrics",
    "ndcg": "metrics",
    "recall": "metrics",
    "session_bootstrap": "statistics",
    "ActionValues": "off_policy",
    "Estimate": "off_policy",
    "LoggedDecisions": "off_policy",
    "UnreliableEstimate": "off_policy",
    "clipped_ips": "off_policy",
    "direct_method": "off_policy",
    "doubly_robust": "off_policy",
    "ips": "off_policy",
    "per_decision": "off_policy",
    "snips": "off_policy",
    "estimate_propensities": "off_policy_inputs",
    "fitted_values": "off_policy_inputs",
    "model_values": "off_policy_inputs",
    "policy_probabilities": "off_policy_inputs",
    "softmax_probabilities": "off_policy_inputs",
    "all_estimates": "off_policy_table",
    "coverage_table": "off_policy_table",
    "estimates_table": "off_policy_table",
    "recorded_estimates": "off_policy_table",
    "OnlineModel": "online",
    "online_curves": "online",
    "run_online": "online",
    "tune": "tuning",
    "tuned_specs": "tuned",
    "HonestyError": "honesty",
    "check_data": "honesty",
    "check_model": "honesty",
    "rank_stability": "seeds",
    "rank_view": "seeds",
    "seed_summary": "seeds",
    "seed_table": "seeds",
    "seed_view": "seeds",
    "top_k_items": "ranks",
    "detailed_slices": "events",
    "match_rewards": "metrics",
    "cold_start_ranks": "cold_start",
    "average_popularity": "coverage",
    "catalogue_coverage": "coverage",
    "item_popularity": "coverage",
    "first_n_chart": "inter_session",
    "read_views": "exports",
    "table_console": "exports",
    "table_markdown": "exports",
    "write_views": "exports",
    "write_report": "report",
    "paired_differences": "differences",
    "comparison_events": "inter_session",
    "first_n_plot": "inter_session",
    "first_n_rows": "inter_session",
    "ii_rnn_markdown": "inter_session",
    "ii_rnn_table": "inter_session",
    "long_table": "table",
    "slice_tables": "comparison_views",
    "print_table": "comparison_views",
    "read_table": "table",
    "write_table": "table",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
