"""The simulated shop: a shopper model with known truth, and the logs that it leaves."""

from .config import ShopConfig
from .describe import describe
from .shop import Shop

__all__ = ["Shop", "ShopConfig", "describe"]
