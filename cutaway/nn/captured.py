"""A pass that is run again and again on inputs of a few shapes: on a GPU recorded once a shape as a CUDA graph, whose
kernels are then launched by one call (as vLLM and nano-vllm have it), elsewhere called.

Either way its inputs are one tensor that stays where it is and is filled from the host by one copy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pass = Callable[[Tensor], Tensor]
Again = Callable[[], Tensor]
_one = threading.Lock()  # torch: "only one capture may be underway at a time in the process"
WARM_UP = 3  # passes before the recorded one: libraries set themselves up in them; as torch's own helper has it


class Capture(Protocol):
    """How a pass is made ready to run again."""

    def __call__(self, run: Pass, inputs: Tensor) -> Again:
        """What runs ``run`` on what ``inputs`` then hold; its result holds until anything else of this capture runs.
        ``run`` waits for nothing on the device, gives the same when run twice, and changes nothing but by copying
        onto what stays where it is."""


def called(run: Pass, inputs: Tensor) -> Again:
    """Where there are no graphs: a call."""
    return lambda: run(inputs)


class Recorded:
    """CUDA graphs (torch.cuda.graph), one behind another on one stream; what they keep between kernels is in one pool,
    for no two of them run at once."""

    def __init__(self, device: torch.device) -> None:
        self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def __call__(self, run: Pass, inputs: Tensor) -> Again:
        """See ``Capture``. Nothing is computed while a graph is recorded, only in ``WARM_UP`` and afterwards."""
        with _one, torch.cuda.device(inputs.device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UP):
                    run(inputs)
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # thread_local: another thread may well copy to the device meanwhile
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                out = run(inputs)

        def again() -> Tensor:
            graph.replay()
            return out

        return again


def capture_for(device: torch.device) -> Capture:
    """How passes run again on a device."""
    return Recorded(device) if device.type == "cuda" else called


class Replays:
    """A pass on inputs that come as arrays of a few shapes and with a few ``steps``; each pair of these is made ready
    when it comes first. Where it is recorded the pass itself is not kept: whose it is may go, with all that it has."""

    def __init__(self, device: torch.device, capture: Capture | None = None) -> None:
        self._device = device
        self._capture = capture_for(device) if capture is None else capture
        self._ready: dict[tuple[int, ...], tuple[Tensor, Again]] = {}

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Those that have come, behind their ``steps``, the first one first."""
        return list(self._ready)

    def __call__(self, run: Callable[[Tensor, int], Tensor], inputs: NDArray[np.int64], steps: int) -> Tensor:
        """``run``, always the same, on ``inputs``; the result holds until the next call."""
        key = (steps, *inputs.shape)
        if key not in self._ready:
            room = torch.from_numpy(inputs).to(self._device, copy=True)  # the pass is run on it to make it ready
            self._ready[key] = room, self._capture(lambda given: run(given, steps), room)
        room, again = self._ready[key]
        # the driver has taken what is not pinned when this comes back; above 64 KiB it may wait for the device to
        room.copy_(torch.from_numpy(inputs), non_blocking=True)
        return again()


def bucket(count: int, most: int | None = None) -> int:
    """The next power of two, and no more than ``most``: a few shapes for all counts."""
    up = 1 << (count - 1).bit_length()
    return up if most is None else min(up, most)
