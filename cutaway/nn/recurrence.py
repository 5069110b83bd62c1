"""Recurrent cells over whole sequences: vanilla (Elman 1990), GRU (Cho et al. 2014, arXiv 1406.1078; reset behind the
product, as cuDNN has it) and LSTM (Hochreiter & Schmidhuber 1997; forget gate of Gers et al. 2000).

Only the product with the state has to be done step by step. The inputs of all steps are multiplied before the loop, and
the gradients of both weights are one product each behind it. Time comes first: T tokens, B rows, H width of the state.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.nn.kernels import library_for, pointer
from cutaway.nn.linear import Linear

Cell = Literal["vanilla", "gru", "lstm"]
LOOP = 8  # steps from which on it pays to lay the weight out for a loop on tiles
NUMBERS: dict[Cell, int] = {"vanilla": 0, "gru": 1, "lstm": 2}


@dataclass(frozen=True, slots=True)
class Gates:
    """Where the gates of a cell lie, in units of H: of ``slots``, the input fills the first ``inputs`` and the state's
    product the last ``states``. LSTM: i f g o. GRU: n r z q, where q is the state's share of n and has its own bias."""

    slots: int
    inputs: int
    states: int


GATES: dict[Cell, Gates] = {"vanilla": Gates(1, 1, 1), "gru": Gates(4, 3, 3), "lstm": Gates(4, 4, 4)}


@dataclass(frozen=True, slots=True)
class Resets:
    """Which rows go on with their state at each step, ``keep (T, B)`` uint8, and the ``steps`` where some do not."""

    keep: Tensor
    steps: frozenset[int]

    @classmethod
    def of(cls, documents: Tensor | None, *, reverse: bool) -> Resets | None:
        """From ``documents (T, B)``: a state never crosses from one into another. None where it never would."""
        if documents is None:
            return None
        same = documents[1:] == documents[:-1]
        first = torch.ones_like(same[:1]) if len(same) else torch.ones_like(documents, dtype=torch.bool)
        keep = torch.cat((same, first) if reverse else (first, same)) if len(same) else first
        steps = (~keep).any(1).nonzero().squeeze(1).tolist()
        return cls(keep.byte(), frozenset(steps)) if steps else None


@dataclass(frozen=True, slots=True)
class Trace:
    """The states of a layer before the first step and behind each, ``(T + 1, B, H)``: ``hidden`` as the products read
    it, ``carry`` in float32. Reversed, slot t lies behind step t instead of before it."""

    hidden: Tensor
    carry: Tensor


class _Step(ctypes.Structure):
    """``Recurrence`` of recurrence.c."""

    _fields_ = (("rows", ctypes.c_int64), ("width", ctypes.c_int64), ("cell", ctypes.c_int), ("bf", ctypes.c_int),
                ("first", ctypes.c_int64), ("product_bf", ctypes.c_int),
                ("gates", ctypes.c_void_p), ("recur", ctypes.c_void_p), ("bias", ctypes.c_void_p),
                ("hidden", ctypes.c_void_p), ("carry", ctypes.c_void_p), ("keep", ctypes.c_void_p),
                ("grad", ctypes.c_void_p), ("back", ctypes.c_void_p), ("flow", ctypes.c_void_p))


def _order(steps: int, reverse: bool) -> list[tuple[int, int, int]]:
    """Each step in the order they are taken, with the slots of the state before and behind it."""
    return [(t, t + 1, t) for t in reversed(range(steps))] if reverse else [(t, t, t + 1) for t in range(steps)]


def _fused(lib: ctypes.CDLL, x: Tensor, weights: tuple[Tensor, Tensor, Tensor], start: tuple[Tensor, Tensor] | None,
           cell: Cell, resets: Resets | None, reverse: bool) -> tuple[Tensor, Trace]:
    """The values of the gates ``(T, B, slots H)`` and the states."""
    steps, rows, _ = x.shape
    of, width = GATES[cell], weights[1].shape[1]
    into, over = (w.to(x.dtype) for w in weights[:2])
    gates = x.new_empty((steps, rows, of.slots * width))
    torch.mm(x.flatten(0, 1), into.T, out=gates.view(steps * rows, -1)[:, : of.inputs * width])
    hidden = x.new_empty((steps + 1, rows, width))
    carry = hidden if cell == "vanilla" else torch.empty(hidden.shape, dtype=torch.float32)
    first = steps if reverse else 0
    hidden[first] = 0 if start is None else start[0]
    carry[first] = 0 if start is None else start[1]
    # the product reads the weight once a step: turned once, it is read in order
    turned = over.T.contiguous() if steps >= LOOP and x.dtype == torch.float32 else over.T
    product = x.new_empty((rows, of.states * width))
    bf = int(x.dtype == torch.bfloat16)
    shape = _Step(rows, width, NUMBERS[cell], bf, 0, bf, pointer(gates), pointer(product), pointer(weights[2]),
                  pointer(hidden), pointer(carry), pointer(resets.keep if resets else None))
    states, at = hidden.unbind(), ctypes.byref(shape)
    if steps >= LOOP and lib.recurrence_loop(at, pointer(over.contiguous()), ctypes.c_int64(steps), int(reverse)):
        return gates, Trace(hidden, carry)
    for t, before, behind in _order(steps, reverse):
        state = states[before]
        if resets is not None and t in resets.steps:
            state = state * resets.keep[t, :, None]
        torch.mm(state, turned, out=product)
        lib.recurrence_step(at, ctypes.c_int64(t), ctypes.c_int64(before), ctypes.c_int64(behind))
    return gates, Trace(hidden, carry)


class _Fused(torch.autograd.Function):
    """The layer's output ``(T, B, H)``; see ``recur``. The backward pass turns the gates into their gradients."""

    @staticmethod
    def forward(ctx: Any, lib: ctypes.CDLL, x: Tensor, into: Tensor, over: Tensor, bias: Tensor, cell: Cell,
                resets: Resets | None, reverse: bool) -> Tensor:
        gates, trace = _fused(lib, x, (into, over, bias), None, cell, resets, reverse)
        ctx.lib, ctx.cell, ctx.resets, ctx.reverse, ctx.spent = lib, cell, resets, reverse, False
        ctx.save_for_backward(x, into, over, gates, trace.hidden, trace.carry)
        return trace.hidden[:-1] if reverse else trace.hidden[1:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.spent:
            raise RuntimeError("the gradient of this recurrent layer was already taken; run it again")
        ctx.spent = True
        x, into, over, gates, hidden, carry = ctx.saved_tensors
        of, width = GATES[ctx.cell], over.shape[1]
        _fused_grad(ctx.lib, grad.contiguous(), over, gates, Trace(hidden, carry), ctx.cell, ctx.resets, ctx.reverse)
        flat, inputs = gates.flatten(0, 1), x.flatten(0, 1)
        by_input, by_state = flat[:, : of.inputs * width], flat[:, (of.slots - of.states) * width :]
        before = hidden[1:] if ctx.reverse else hidden[:-1]
        if ctx.resets is not None:
            before = before * ctx.resets.keep[..., None]
        grad_x = (by_input @ into.to(x.dtype)).view(x.shape) if ctx.needs_input_grad[1] else None
        grad_into = (by_input.T @ inputs).to(into.dtype)
        grad_over = (by_state.T @ before.flatten(0, 1)).to(over.dtype)
        return None, grad_x, grad_into, grad_over, flat.sum(0, dtype=torch.float32), None, None, None


def _fused_grad(lib: ctypes.CDLL, grad: Tensor, over: Tensor, gates: Tensor, trace: Trace, cell: Cell,
                resets: Resets | None, reverse: bool) -> None:
    """Back through the loop: ``gates`` become their gradients."""
    steps, rows, width = grad.shape
    back, flow = torch.zeros_like(grad[0]), torch.zeros((rows, width), dtype=torch.float32)
    weight = over.to(grad.dtype).contiguous()
    bf = int(grad.dtype == torch.bfloat16)
    shape = _Step(rows, width, NUMBERS[cell], bf, 0, bf, pointer(gates), None, None, pointer(trace.hidden),
                  pointer(trace.carry), pointer(resets.keep if resets else None), pointer(grad), pointer(back),
                  pointer(flow))
    slopes, at, last = gates[..., (GATES[cell].slots - GATES[cell].states) * width :].unbind(), ctypes.byref(shape), -1
    if steps >= LOOP and lib.recurrence_loop_grad(at, pointer(weight), ctypes.c_int64(steps), int(reverse)):
        return
    for t, before, behind in reversed(_order(steps, reverse)):
        if last >= 0:
            torch.mm(slopes[last], weight, out=back)
        lib.recurrence_step_grad(at, *(ctypes.c_int64(i) for i in (t, before, behind, last)))
        last = t


def plain(x: Tensor, into: Tensor, over: Tensor, bias: Tensor, *, cell: Cell, resets: Resets | None = None,
          reverse: bool = False, start: tuple[Tensor, Tensor] | None = None) -> Trace:
    """The same in plain PyTorch, step by step: what runs without a compiler, and what the kernels are compared with."""
    rows, width = x.shape[1], over.shape[1]
    of, over = GATES[cell], over.to(x.dtype)
    sums = F.linear(x, into.to(x.dtype)).float() + bias[: of.inputs * width]
    own = bias[of.inputs * width :]
    if start is None:
        start = x.new_zeros(rows, width), torch.zeros((rows, width), dtype=torch.float32, device=x.device)
    hidden, carry = start
    trace = [(hidden, carry)]
    for t, _, _ in _order(len(x), reverse):
        if resets is not None and t in resets.steps:
            keep = resets.keep[t, :, None]
            hidden, carry = hidden * keep, carry * keep
        product = F.linear(hidden, over).float()
        if cell == "vanilla":
            carry = torch.tanh(sums[t] + product)
            hidden = carry.to(x.dtype)
        elif cell == "lstm":
            i, f, g, o = (sums[t] + product).chunk(4, -1)
            carry = torch.sigmoid(f) * carry + torch.sigmoid(i) * torch.tanh(g)
            hidden = (torch.sigmoid(o) * torch.tanh(carry)).to(x.dtype)
        else:
            (n, r, z), (r_, z_, q) = sums[t].chunk(3, -1), product.chunk(3, -1)
            fresh = torch.tanh(n + torch.sigmoid(r + r_) * (q + own))
            carry = torch.lerp(fresh, carry, torch.sigmoid(z + z_))
            hidden = carry.to(x.dtype)
        trace.append((hidden, carry))
    states = [torch.stack(side[::-1] if reverse else side) for side in zip(*trace, strict=True)]
    return Trace(*states)


class Recurrence(nn.Module):
    """One layer in one direction: ``x (T, B, D) -> (T, B, H)`` in the dtype of ``x``."""

    def __init__(self, inputs: int, width: int, *, cell: Cell, reverse: bool = False) -> None:
        super().__init__()
        of = GATES[cell]
        self.cell, self.reverse = cell, reverse
        self.input = Linear(inputs, of.inputs * width, called=False)
        self.state = Linear(width, of.states * width, called=False)
        self.bias = nn.Parameter(torch.empty(of.slots * width))

    def forward(self, x: Tensor, resets: Resets | None = None) -> Tensor:
        """All steps from an empty state. ``resets`` in this layer's own direction."""
        into, over, bias = self.input.weight, self.state.weight, self.bias
        lib = library_for(x)
        if lib is not None:
            out: Tensor = _Fused.apply(lib, x.contiguous(), into, over, bias,  # type: ignore[no-untyped-call]
                                       self.cell, resets, self.reverse)
            return out
        hidden = plain(x, into, over, bias, cell=self.cell, resets=resets, reverse=self.reverse).hidden
        return hidden[:-1] if self.reverse else hidden[1:]

    def behind(self, x: Tensor, start: tuple[Tensor, Tensor]) -> Trace:
        """All steps behind a state ``hidden, carry (B, H)``, and the states after each."""
        weights = self.input.weight, self.state.weight, self.bias
        lib = None if torch.is_grad_enabled() else library_for(x)
        if lib is not None:
            return _fused(lib, x.contiguous(), weights, start, self.cell, None, self.reverse)[1]
        return plain(x, *weights, cell=self.cell, reverse=self.reverse, start=start)

    def adjust_initial(self) -> None:
        """The state's weights begin as rotations (Saxe 2014, arXiv 1312.6120), so that it neither fades nor explodes,
        and the gate that keeps it begins open (Jozefowicz 2015)."""
        width = self.state.weight.shape[1]
        with torch.no_grad():
            for gate in self.state.weight.split(width):
                gate.copy_(torch.linalg.qr(gate.cpu())[0])
            if self.cell != "vanilla":  # the LSTM's f; the GRU's z
                which = 1 if self.cell == "lstm" else 2
                self.bias[which * width : (which + 1) * width] = 1.0
