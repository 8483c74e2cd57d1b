"""A whole ConvLSTM sequence as one autograd function with hand-written backpropagation through time.

Autograd would keep some ten arrays of gates a step, and lay out each convolution's input anew. Here everything is
time-major and channels_last from end to end, one array of raw gates a step is kept (or none), and the gradient is
written over it. Convolutions of zeros, the forget gate of a zero cell state and gradients that nobody wants are left
out. The convolutions are PyTorch's own.

Shapes: T times, B batch, C input channels, K hidden channels, G gate channels (4 K; 3 K without forget gate), H lat,
W lon, k kernel. With x the input and d the gradient of the loss by the gates' sums,

    d_h(t-1) = d(t) *' Wh      dWh = sum_t d(t) (x) h(t-1)      *' is the transposed convolution,
    d_x(t)   = d(t) *' Wx      dWx = sum_t d(t) (x) x(t)        (x) the correlation.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from convlstm_wx.models.pointwise import Moments, Norm, Pointwise, choose

State = tuple[Tensor, Tensor]
# glibc maps every array of more than 32 MiB anew, and the page faults cost more than the arithmetic on it. Samples are
# independent, so a batch whose gates would be larger goes through in parts.
MOST_BYTES_OF_GATES = 30 * 2**20


class Weights(NamedTuple):
    """The parameters of a layer; gates in the order i, f, g, o, or i, g, o once the forget gate is left out."""

    input_GCkk: Tensor
    bias_G: Tensor | None
    hidden_GKkk: Tensor
    gamma_G: Tensor | None
    beta_G: Tensor | None


class Settings(NamedTuple):
    """What is not a tensor."""

    dtype: torch.dtype
    """Of features and gates; the cell state is at least float32."""
    groups: int
    """Of the gates' normalisation; 0 without."""
    eps: float
    recompute: bool
    """Keep only hidden and cell states, and compute the gates again on the way back."""


def layer(x_BTCHW: Tensor, state: State | None, weights: Weights, settings: Settings) -> tuple[Tensor, State]:
    """All steps; the same as the equations in convlstm.py.

    Returns:
        h_BTKHW, a view of a time-major array, and the last state (h_BKHW, c_BKHW).
    """
    h_BKHW, c_BKHW = state or (None, None)
    arguments = (x_BTCHW, h_BKHW, c_BKHW, *weights)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in arguments):
        h_BTKHW, h_last, c_last = _Unrolled.apply(settings, *arguments)
        return h_BTKHW, (h_last, c_last)
    with torch.autocast(x_BTCHW.device.type, enabled=False):
        run = _Run(weights, settings, x_BTCHW)
        h_TBKHW = run.forward(x_BTCHW, state)
    return _outputs(h_TBKHW, run)


def unroll(gates_BTGHW: Tensor, state: State | None, weights: Weights, settings: Settings) -> tuple[Tensor, State]:
    """The recurrence alone, for inference, from gates that the input's convolution gave (and that stay as they are)."""
    with torch.no_grad(), torch.autocast(gates_BTGHW.device.type, enabled=False):
        run = _Run(weights, settings, gates_BTGHW)
        h_TBKHW = run.forward(gates_BTGHW, state, are_gates=True)
    return _outputs(h_TBKHW, run)


def _outputs(h_TBKHW: Tensor, run: "_Run") -> tuple[Tensor, State]:
    h_last = h_TBKHW[-1].clone() if len(h_TBKHW) > 1 else h_TBKHW[-1]  # a view would keep all times in memory
    return h_TBKHW.transpose(0, 1), (h_last, run.c_last)


class _Kept:
    """For the way back: for each step raw gates, the moments that normalised them and the cell before."""

    def __init__(self) -> None:
        self.gates: list[Tensor | None] = []
        self.moments: list[Moments | None] = []
        self.cells_before: list[Tensor] = []


class _Run:
    """The steps of one call, with weights in the type that it computes in."""

    c_last: Tensor

    def __init__(self, weights: Weights, settings: Settings, like: Tensor):
        self.settings = settings
        self.hidden_channels = weights.hidden_GKkk.shape[1]
        self.cell_dtype = torch.promote_types(settings.dtype, torch.float32)
        self.full = _cast(weights, settings.dtype)
        self.pointwise: Pointwise = choose(settings.dtype, self.hidden_channels, like.device)
        # A group that spans gates takes its moments from the forget gate too, so that one has to be there.
        self.forget_gate_can_go = settings.groups % 4 == 0
        self.without_forget = _without_forget(self.full) if self.forget_gate_can_go else self.full

    def forward(
        self, x_BTCHW: Tensor, state: State | None, kept: list[_Kept] | None = None, *, are_gates: bool = False
    ) -> Tensor:
        """h_TBKHW; what the way back needs goes into `kept`, part by part of the batch."""
        h_TBKHW = self._time_major(x_BTCHW, self.hidden_channels)
        cells = []
        for part in self.parts(x_BTCHW):
            kept_here = None if kept is None else _Kept()
            if kept is not None and kept_here is not None:
                kept.append(kept_here)
            state_here = None if state is None else (state[0][part], state[1][part])
            cells.append(
                self._forward_part(x_BTCHW[part], state_here, h_TBKHW[:, part], kept_here, are_gates=are_gates)
            )
        self.c_last = cells[0] if len(cells) == 1 else torch.cat(cells)
        return h_TBKHW

    def parts(self, x_BTCHW: Tensor) -> list[slice]:
        """The batch in parts whose gates stay below the size from which memory is slow to come by."""
        batch, _, _, height, width = x_BTCHW.shape
        bytes_of_one = 4 * self.hidden_channels * height * width * self.settings.dtype.itemsize
        size = max(1, MOST_BYTES_OF_GATES // bytes_of_one)
        size = -(-batch // -(-batch // size))  # as even as they can be
        return [slice(start, min(start + size, batch)) for start in range(0, batch, size)]

    def _forward_part(
        self, x_BTCHW: Tensor, state: State | None, h_TBKHW: Tensor, kept: _Kept | None, *, are_gates: bool
    ) -> Tensor:
        h, c = self.enter(state, x_BTCHW, needs_cell=are_gates)
        for time, h_now in enumerate(h_TBKHW.unbind(0)):
            x = self.pointwise.lay_out(x_BTCHW[:, time], self.settings.dtype)
            gates = x if are_gates else self._input_gates(x, c)
            hidden = None if h is None else self._hidden_gates(h)
            raw, c_now, moments = self.pointwise.advance(gates, hidden, c, self._norm(c), h_now, keep=kept is not None)
            if kept is not None:
                kept.gates.append(None if self.settings.recompute else raw)
                kept.moments.append(moments)
                if time > 0:
                    assert c is not None
                    kept.cells_before.append(c)
            h, c = h_now, c_now
        assert c is not None
        return c

    def enter(
        self, state: State | None, like_BTCHW: Tensor, *, needs_cell: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The given state in the types of the run; a zero state is None, its cell an array only where it must be."""
        if state is not None:
            return self.pointwise.lay_out(state[0], self.settings.dtype), self.pointwise.lay_out(
                state[1], self.cell_dtype
            )
        if self.forget_gate_can_go and not needs_cell:
            return None, None
        c_BKHW = self._time_major(like_BTCHW[:, :1], self.hidden_channels, self.cell_dtype)[0]
        return None, c_BKHW.zero_()

    def backward(
        self,
        x_BTCHW: Tensor,
        state: State | None,
        h_TBKHW: Tensor,
        kept: list[_Kept],
        grads: "_Incoming",
        wanted: "_Wanted",
    ) -> "_Gradients":
        """Gradients by backpropagation through time."""
        total = _Gradients()
        if wanted.x:
            total.x_TBCHW = self._time_major(x_BTCHW, x_BTCHW.shape[2])
        states = []
        for part, kept_here in zip(self.parts(x_BTCHW), kept):
            state_here = None if state is None else (state[0][part], state[1][part])
            grads_here = _Incoming(*(None if grad is None else grad[part] for grad in grads))
            grad_x_TBCHW = None if total.x_TBCHW is None else total.x_TBCHW[:, part]
            states.append(
                self._backward_part(
                    *(x_BTCHW[part], state_here, h_TBKHW[:, part], kept_here, grads_here, wanted, total, grad_x_TBCHW)
                )
            )
        if wanted.state:
            total.h_BKHW, total.c_BKHW = (torch.cat(grads) for grads in zip(*states))
        return total

    def _backward_part(
        self,
        x_BTCHW: Tensor,
        state: State | None,
        h_TBKHW: Tensor,
        kept: _Kept,
        grads: "_Incoming",
        wanted: "_Wanted",
        total: "_Gradients",
        grad_x_TBCHW: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Adds to the total, writes the input's gradient, returns those of the state before."""
        h_first, c_first = self.enter(state, x_BTCHW, needs_cell=False)
        grad_h = None if grads.h_last is None else self.pointwise.lay_out(grads.h_last, self.settings.dtype)
        grad_c = None if grads.c_last is None else self.pointwise.lay_out(grads.c_last, self.cell_dtype)
        for time in reversed(range(len(h_TBKHW))):
            h, c = (h_TBKHW[time - 1], kept.cells_before[time - 1]) if time else (h_first, c_first)
            x = self.pointwise.lay_out(x_BTCHW[:, time], self.settings.dtype)
            raw = kept.gates[time]
            if raw is None:
                raw = self._input_gates(x, c)
                raw = raw if h is None else raw.add_(self._hidden_gates(h))
            outer = (
                [] if grads.h_BTKHW is None else [self.pointwise.lay_out(grads.h_BTKHW[:, time], self.settings.dtype)]
            )
            inner = [] if grad_h is None else [grad_h]
            step = self.pointwise.retreat(
                *(raw, c, self._norm(c), kept.moments[time], outer + inner, grad_c),
                wants_c=time > 0 or wanted.state,
            )
            kept.gates[time] = None  # written over: a second way back through the same graph computes it again
            grad_c = step.c_before_BKHW
            has_forget = c is not None
            total.add_bias(step, has_forget)
            grad_h = None
            if h is not None:
                asked = (time > 0 or wanted.state, wanted.hidden)
                grad_h, grad_hidden = _convolution_backward(step.gates_BGHW, h, self._weights(c).hidden_GKkk, asked)
                total.hidden_GKkk = _add(total.hidden_GKkk, grad_hidden, has_forget)
            weight = self._weights(c).input_GCkk
            grad_x, grad_input = _convolution_backward(step.gates_BGHW, x, weight, (wanted.x, wanted.input))
            total.input_GCkk = _add(total.input_GCkk, grad_input, has_forget)
            if grad_x_TBCHW is not None and grad_x is not None:
                grad_x_TBCHW[time] = grad_x
        return grad_h, grad_c

    def _weights(self, c_before: Tensor | None) -> Weights:
        return self.without_forget if c_before is None else self.full

    def _norm(self, c_before: Tensor | None) -> Norm | None:
        weights = self._weights(c_before)
        if weights.gamma_G is None or weights.beta_G is None:
            return None
        groups = self.settings.groups
        return Norm(weights.gamma_G, weights.beta_G, groups * 3 // 4 if c_before is None else groups, self.settings.eps)

    def _input_gates(self, x_BCHW: Tensor, c_before: Tensor | None) -> Tensor:
        weights = self._weights(c_before)
        return _convolve(x_BCHW, weights.input_GCkk, weights.bias_G)

    def _hidden_gates(self, h_BKHW: Tensor) -> Tensor:
        return _convolve(h_BKHW, self.full.hidden_GKkk, None)

    def _time_major(self, like_BTCHW: Tensor, channels: int, dtype: torch.dtype | None = None) -> Tensor:
        """An array [T, B, channels, H, W] whose every step is channels_last."""
        batch, times, _, height, width = like_BTCHW.shape
        shape = (times, batch, height, width, channels)
        return torch.empty(shape, dtype=dtype or self.settings.dtype, device=like_BTCHW.device).movedim(-1, 2)


class _Incoming(NamedTuple):
    """The gradients of the three outputs; None: zero."""

    h_BTKHW: Tensor | None
    h_last: Tensor | None
    c_last: Tensor | None


class _Wanted(NamedTuple):
    """Which gradients somebody asked for."""

    x: bool
    state: bool
    input: bool
    hidden: bool


class _Gradients:
    """Sums over time, at least float32."""

    def __init__(self) -> None:
        self.x_TBCHW: Tensor | None = None
        self.h_BKHW: Tensor | None = None
        self.c_BKHW: Tensor | None = None
        self.input_GCkk: Tensor | None = None
        self.hidden_GKkk: Tensor | None = None
        self.bias_G: Tensor | None = None
        self.gamma_G: Tensor | None = None
        self.beta_G: Tensor | None = None

    def add_bias(self, step: Any, has_forget: bool) -> None:
        """The gradients that are sums over the grid."""
        self.bias_G = _add(self.bias_G, step.bias_G, has_forget)
        self.gamma_G = _add(self.gamma_G, step.gamma_G, has_forget)
        self.beta_G = _add(self.beta_G, step.beta_G, has_forget)


class _Unrolled(torch.autograd.Function):
    """All steps of :func:`layer`."""

    @staticmethod
    def forward(
        ctx: Any, settings: Settings, x_BTCHW: Tensor, h_BKHW: Tensor | None, c_BKHW: Tensor | None, *weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.settings, ctx.kept = settings, []
        with torch.autocast(x_BTCHW.device.type, enabled=False):
            run = _Run(Weights(*weights), settings, x_BTCHW)
            state = None if h_BKHW is None or c_BKHW is None else (h_BKHW, c_BKHW)
            h_TBKHW = run.forward(x_BTCHW, state, ctx.kept)
        h_BTKHW, h_last, c_last = h_TBKHW.transpose(0, 1), h_TBKHW[-1].clone(), run.c_last
        ctx.save_for_backward(x_BTCHW, h_BKHW, c_BKHW, h_BTKHW, *weights)
        return h_BTKHW, h_last, c_last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x_BTCHW, h_BKHW, c_BKHW, h_BTKHW, *weights = ctx.saved_tensors
        _, wants_x, wants_h, wants_c, wants_input, _, wants_hidden, *_ = ctx.needs_input_grad
        with torch.autocast(x_BTCHW.device.type, enabled=False):
            run = _Run(Weights(*weights), ctx.settings, x_BTCHW)
            state = None if h_BKHW is None else (h_BKHW, c_BKHW)
            wanted = _Wanted(wants_x, wants_h or wants_c, wants_input, wants_hidden)
            total = run.backward(x_BTCHW, state, h_BTKHW.transpose(0, 1), ctx.kept, _Incoming(*grads), wanted)
        grad_x = None if total.x_TBCHW is None else total.x_TBCHW.transpose(0, 1)
        found = (grad_x, total.h_BKHW, total.c_BKHW, total.input_GCkk, total.bias_G, total.hidden_GKkk)
        inputs = (x_BTCHW, h_BKHW, c_BKHW, *weights)
        given = []
        for tensor, grad, needed in zip(inputs, (*found, total.gamma_G, total.beta_G), ctx.needs_input_grad[1:]):
            if needed and grad is None:  # the hidden kernel of a single step from zeros
                grad = torch.zeros_like(tensor)
            given.append(grad.to(tensor.dtype) if needed and grad is not None else None)
        return None, *given


def _convolve(x_BCHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = functional.conv2d(x_BCHW, weight, bias, padding=weight.shape[-1] // 2)
    return y.contiguous(memory_format=torch.channels_last)


def _convolution_backward(
    grad_BGHW: Tensor, x_BCHW: Tensor, weight: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the convolution's input, dense channels_last, and of its weight."""
    if not any(wanted):
        return None, None
    padding = [weight.shape[-1] // 2] * 2
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad_BGHW, x_BCHW, weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1, [*wanted, False]
    )
    return None if grad_x is None else grad_x.contiguous(memory_format=torch.channels_last), grad_weight


def _add(total: Tensor | None, part: Tensor | None, has_forget: bool) -> Tensor | None:
    """Sum over time; a part without forget gate has nothing to say about the second of the four blocks."""
    if part is None:
        return total
    wide = part.to(torch.promote_types(part.dtype, torch.float32))
    if not has_forget:
        i, g, o = wide.chunk(3)
        wide = torch.cat([i, torch.zeros_like(i), g, o])
    return wide if total is None else total.add_(wide)


def _cast(weights: Weights, dtype: torch.dtype) -> Weights:
    """Kernels and bias in the type of the convolutions; the normalisation stays as exact as the cell state."""
    kernels = (None if w is None else w.to(dtype) for w in weights[:3])
    wide = torch.promote_types(dtype, torch.float32)
    return Weights(*kernels, *(None if w is None else w.to(wide) for w in weights[3:]))  # type: ignore[arg-type]


def _without_forget(weights: Weights) -> Weights:
    def three(weight: Tensor | None) -> Tensor | None:
        if weight is None:
            return None
        i, _, g, o = weight.chunk(4)
        return torch.cat([i, g, o])

    return Weights(three(weights.input_GCkk), three(weights.bias_G), weights.hidden_GKkk, *map(three, weights[3:]))  # type: ignore[arg-type]
