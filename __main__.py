"""``python -m sessiongym``."""

from .cli import main

main()
