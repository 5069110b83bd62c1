"""What every test stands on: a cache of its own, one thread, fixed seeds.

The cache is the checkout's, not the home's: rates measured while tests compete for the cores must not be stored
where later runs would believe them. It outlives a test run, so that kernels are compiled once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

CACHE = Path(__file__).resolve().parents[1] / "build" / "test-cache"
CACHE.mkdir(parents=True, exist_ok=True)
os.environ["XDG_CACHE_HOME"] = str(CACHE)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis  # noqa: E402  (the environment comes first: torch reads it when it is imported)
import pytest  # noqa: E402

# The machine's speed is no property of the code: no deadlines, and the same examples every time.
hypothesis.settings.register_profile("cutaway", deadline=None, derandomize=True, max_examples=50,
                                     suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("cutaway")


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Every test starts from the same seeds and leaves torch's defaults as it found them."""
    import torch

    from cutaway.device import seed_everything

    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    seed_everything(0)
    yield
    torch.set_default_dtype(dtype)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
