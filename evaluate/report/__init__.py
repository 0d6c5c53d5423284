"""A run as one page that needs nothing else: no network, no other file."""

from .page import write_report

__all__ = ["write_report"]
