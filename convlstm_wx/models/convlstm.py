"""The convolutional LSTM layer [Shi et al. 2015, arXiv:1506.04214].

Shapes: B batch, T input times, C input channels, K hidden channels, G gate channels (4 K), H lat, W lon.

    i, f = sigmoid(Wx * x_t + Wh * h_{t-1} + b + P . c_{t-1})     input and forget gates (* is a convolution)
    g    = tanh(Wx * x_t + Wh * h_{t-1} + b)                      candidate
    c_t  = f . c_{t-1} + i . g
    o    = sigmoid(Wx * x_t + Wh * h_{t-1} + b + P . c_t)         output gate
    h_t  = o . tanh(c_t)

The terms with P are peepholes; without them (the default) all four gates are one convolution each of x and h.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convlstm_wx.models import fast

State = tuple[Tensor, Tensor]
"""(h_BKHW, c_BKHW): hidden and cell state."""
Memory = Literal["save", "recompute"]
KERNEL_SIZES = (1, 3, 5, 7)


class ConvLSTM(nn.Module):
    """One ConvLSTM layer over a whole sequence, or one step of it.

    The convolution of a state that is all zeros is left out. Input and hidden weights are two parameters of their
    own: a slice of a shared one would not be contiguous, which gives wrong numbers on Apple's MPS.

    On a CPU the layer runs as one autograd function (:mod:`convlstm_wx.models.fast`), which is faster, uses less memory
    and gives the same numbers, but cannot be differentiated twice. Peepholes, zoneout, dropout while training, other
    devices, `torch.compile` and `torch.export` take the plain path below.

    Args:
        input_channels: C.
        hidden_channels: K.
        kernel_size: odd width of the input's convolution, 1 to 7; the grid keeps its size.
        hidden_kernel_size: of the hidden state's convolution; None: the same.
        bias: whether the gates have one.
        forget_bias: initial bias of the forget gate; 1 lets gradients pass from the start [Jozefowicz et al. 2015].
        peepholes: whether the gates see the cell state. One weight a channel and gate, the same at every grid point
            (Shi et al. have one for each point, which would tie the layer to one grid).
        gate_norm_groups: groups of a GroupNorm of the gates before their activation [Wu and He 2018]; None: none.
        zoneout: probability that a value of h or c keeps the one before, while training; afterwards the mean of both,
            so weighted [Krueger et al. 2017].
        hidden_dropout: share of hidden channels that the hidden state's convolution does not see while training, the
            same ones at all times of a sequence [Gal and Ghahramani 2016]; :meth:`step` draws them anew.
        memory: "recompute" keeps only h and c of each step for the backward pass, and computes the gates twice.

    Raises:
        ValueError: if a size or a share is impossible.
    """

    def __init__(
        self,
        input_channels: int,
        hidden_channels: int,
        kernel_size: int = 3,
        *,
        hidden_kernel_size: int | None = None,
        bias: bool = True,
        forget_bias: float = 1.0,
        peepholes: bool = False,
        gate_norm_groups: int | None = None,
        zoneout: float = 0.0,
        hidden_dropout: float = 0.0,
        memory: Memory = "save",
    ):
        super().__init__()
        hidden_kernel_size = kernel_size if hidden_kernel_size is None else hidden_kernel_size
        _check_sizes(input_channels, hidden_channels, kernel_size, hidden_kernel_size)
        _check_options(4 * hidden_channels, gate_norm_groups, zoneout, hidden_dropout, memory)
        self.hidden_channels = hidden_channels
        self.zoneout = zoneout
        self.hidden_dropout = hidden_dropout
        self.memory = memory
        gates = 4 * hidden_channels
        self.input_conv = nn.Conv2d(input_channels, gates, kernel_size, padding=kernel_size // 2, bias=bias)
        self.hidden_conv = nn.Conv2d(
            hidden_channels, gates, hidden_kernel_size, padding=hidden_kernel_size // 2, bias=False
        )
        self.gate_norm = nn.GroupNorm(gate_norm_groups, gates) if gate_norm_groups else None
        # For i, f and o; zeros: the layer starts as one without.
        self.peepholes_3K11 = nn.Parameter(torch.zeros(3, hidden_channels, 1, 1)) if peepholes else None
        self._initialise(forget_bias)

    def _initialise(self, forget_bias: float) -> None:
        nn.init.xavier_uniform_(self.input_conv.weight)
        for gate_weight in self.hidden_conv.weight.data.chunk(4):
            nn.init.orthogonal_(gate_weight)
        # The normalisation would take a bias before it away again (all of it where its groups lie within one gate).
        last_bias = self.gate_norm.bias if self.gate_norm is not None else self.input_conv.bias
        if self.input_conv.bias is not None:
            nn.init.zeros_(self.input_conv.bias)
        if last_bias is not None:
            last_bias.data.chunk(4)[1].fill_(forget_bias)  # gate order: i, f, g, o

    def forward(self, x_BTCHW: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """All T steps from a state (None: zeros).

        Returns:
            h_BTKHW, the hidden state after every step, and the last state (h_BKHW, c_BKHW).
        """
        if self._is_fast(x_BTCHW):
            return fast.layer(x_BTCHW, state, self._weights(), self._settings(x_BTCHW))
        return self.plain(x_BTCHW, state)

    def step(self, x_BCHW: Tensor, state: State | None = None) -> State:
        """One step from a state (None: zeros); returns the new (h_BKHW, c_BKHW)."""
        if self._is_fast(x_BCHW):
            return self.forward(x_BCHW.unsqueeze(1), state)[1]
        return self._one_step(x_BCHW, state, self._draw_kept(x_BCHW))

    def input_gates(self, x_BTCHW: Tensor) -> Tensor:
        """The input's share of the gates, gates_BTGHW, for :meth:`unroll`: windows that overlap can share it."""
        batch = x_BTCHW.shape[0]
        x = x_BTCHW.transpose(0, 1).flatten(0, 1)
        if self._is_fast(x):
            x = x.contiguous(memory_format=torch.channels_last)
        return self.input_conv(x).unflatten(0, (-1, batch)).transpose(0, 1)

    def unroll(self, gates_BTGHW: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """What :meth:`forward` gives, from the input's share of the gates."""
        if not torch.is_grad_enabled() and self._is_fast(gates_BTGHW):
            return fast.unroll(gates_BTGHW, state, self._weights(), self._settings(gates_BTGHW))
        kept_BK11 = self._draw_kept(gates_BTGHW)
        h_steps = []
        for gates_BGHW in gates_BTGHW.unbind(1):
            state = self._advance(gates_BGHW, state, kept_BK11)
            h_steps.append(state[0])
        assert state is not None
        return torch.stack(h_steps).transpose(0, 1), state

    def plain(self, x_BTCHW: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """:meth:`forward` in plain PyTorch, on every device, under torch.compile and torch.export."""
        if self.memory == "save" or not torch.is_grad_enabled():
            return self.unroll(self.input_gates(x_BTCHW), state)
        kept_BK11 = self._draw_kept(x_BTCHW)
        h_steps = []
        for x_BCHW in x_BTCHW.unbind(1):
            state = self._one_step(x_BCHW, state, kept_BK11)
            h_steps.append(state[0])
        assert state is not None
        return torch.stack(h_steps).transpose(0, 1), state

    def _one_step(self, x_BCHW: Tensor, state: State | None, kept_BK11: Tensor | None) -> State:
        """In plain PyTorch, keeping the gates or not."""
        if self.memory == "save" or not torch.is_grad_enabled():
            return self._convolve_and_advance(x_BCHW, state, kept_BK11)
        return checkpoint(self._convolve_and_advance, x_BCHW, state, kept_BK11, use_reentrant=False)

    def _convolve_and_advance(self, x_BCHW: Tensor, state: State | None, kept_BK11: Tensor | None) -> State:
        return self._advance(self.input_conv(x_BCHW), state, kept_BK11)

    def _advance(self, gates_BGHW: Tensor, state: State | None, kept_BK11: Tensor | None) -> State:
        """The equations above. Under autocast the gates are half precision, the cell state stays float32."""
        if state is not None:
            h_seen = state[0] if kept_BK11 is None else state[0] * kept_BK11
            gates_BGHW = gates_BGHW + self.hidden_conv(h_seen)
        if self.gate_norm is not None:
            gates_BGHW = self.gate_norm(gates_BGHW)
        i, f, g, o = gates_BGHW.chunk(4, dim=1)
        if state is None:
            c = torch.sigmoid(i) * torch.tanh(g)
            c = c.to(torch.promote_types(c.dtype, torch.float32))
        else:
            c_before = state[1]
            if self.peepholes_3K11 is not None:
                i, f = i + self.peepholes_3K11[0] * c_before, f + self.peepholes_3K11[1] * c_before
            c = torch.sigmoid(f) * c_before + torch.sigmoid(i) * torch.tanh(g)
        if self.peepholes_3K11 is not None:
            o = o + self.peepholes_3K11[2] * c
        h = torch.sigmoid(o) * torch.tanh(c)
        return (h, c) if self.zoneout == 0 else self._zone_out((h, c), state)

    def _zone_out(self, new: State, before: State | None) -> State:
        """Keep some of what was: at random while training, on average afterwards."""
        h, c = new
        h_before, c_before = before or (torch.zeros_like(h), torch.zeros_like(c))
        if not self.training:
            return torch.lerp(h, h_before.to(h.dtype), self.zoneout), torch.lerp(c, c_before, self.zoneout)
        keep_h, keep_c = (torch.rand_like(c) < self.zoneout for _ in range(2))
        return torch.where(keep_h, h_before, h), torch.where(keep_c, c_before, c)

    def _draw_kept(self, like: Tensor) -> Tensor | None:
        """Which hidden channels the convolution sees in a sequence, scaled to keep the mean; None: all."""
        if not (self.training and self.hidden_dropout > 0):
            return None
        ones_BK11 = torch.ones(like.shape[0], self.hidden_channels, 1, 1, device=like.device)
        return nn.functional.dropout(ones_BK11, self.hidden_dropout)

    def _is_fast(self, like: Tensor) -> bool:
        """Whether the autograd function applies: measured faster on CPUs only, written for the usual options."""
        if torch.compiler.is_compiling() or like.device.type != "cpu" or like.numel() == 0:
            return False
        if self.peepholes_3K11 is not None or self.zoneout > 0 or (self.training and self.hidden_dropout > 0):
            return False
        return self._dtype(like) in (torch.float32, torch.float64, torch.bfloat16)

    def _dtype(self, like: Tensor) -> torch.dtype:
        """Of the convolutions; autocast leaves float64 alone."""
        kind, own = like.device.type, self.input_conv.weight.dtype
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) and own != torch.float64 else own

    def _weights(self) -> fast.Weights:
        norm = (None, None) if self.gate_norm is None else (self.gate_norm.weight, self.gate_norm.bias)
        return fast.Weights(self.input_conv.weight, self.input_conv.bias, self.hidden_conv.weight, *norm)

    def _settings(self, like: Tensor) -> fast.Settings:
        groups, eps = (0, 0.0) if self.gate_norm is None else (self.gate_norm.num_groups, self.gate_norm.eps)
        return fast.Settings(self._dtype(like), groups, eps, self.memory == "recompute")


def _check_sizes(input_channels: int, hidden_channels: int, kernel_size: int, hidden_kernel_size: int) -> None:
    sizes_fit = kernel_size in KERNEL_SIZES and hidden_kernel_size in KERNEL_SIZES
    if not sizes_fit or min(input_channels, hidden_channels) < 1:
        raise ValueError(
            f"ConvLSTM needs an odd kernel size and at least one channel, got kernels {kernel_size} and "
            f"{hidden_kernel_size} (of {KERNEL_SIZES}), {input_channels} input and {hidden_channels} hidden channels"
        )


def _check_options(
    gates: int, gate_norm_groups: int | None, zoneout: float, hidden_dropout: float, memory: str
) -> None:
    if gate_norm_groups is not None and (gate_norm_groups < 1 or gates % gate_norm_groups):
        raise ValueError(f"gate_norm_groups has to divide the {gates} gate channels, got {gate_norm_groups}")
    if not (0 <= zoneout < 1 and 0 <= hidden_dropout < 1):
        raise ValueError(f"zoneout and hidden_dropout are shares of 0 to below 1, got {zoneout} and {hidden_dropout}")
    if memory not in ("save", "recompute"):
        raise ValueError(f"memory is 'save' or 'recompute', got '{memory}'")
