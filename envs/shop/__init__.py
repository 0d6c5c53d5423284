"""The simulated shop: a shopper model with known truth, and the logs that it leaves."""

from .config import ShopConfig
from .describe import describe
from .shop import Shop
from .tabular import TabularShop, TabularShopConfig, exact_value, optimal_policy, simulate

__all__ = [
    "Shop",
    "ShopConfig",
    "TabularShop",
    "TabularShopConfig",
    "describe",
    "exact_value",
    "optimal_policy",
    "simulate",
]
