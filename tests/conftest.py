"""One thread, so that results don't depend on the machine's cores and two test processes can share them."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")       # read when torch is imported
