"""Test files run side by side, one process a core: threads of their own would only wait for each other."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Read when torch is loaded, which is after this.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
