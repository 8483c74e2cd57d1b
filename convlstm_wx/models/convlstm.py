"""The convolutional LSTM layer [Shi et al. 2015, arXiv:1506.04214, without peepholes].

Shapes: B batch, T input times, C input channels, K hidden channels, H lat, W lon.

    i, f, o = sigmoid(Wx * x_t + Wh * h_{t-1} + b)     input, forget and output gates (* is a convolution)
    g       = tanh(Wx * x_t + Wh * h_{t-1} + b)        candidate
    c_t     = f . c_{t-1} + i . g
    h_t     = o . tanh(c_t)
"""

import torch
from torch import Tensor, nn

State = tuple[Tensor, Tensor]
"""(h_BKHW, c_BKHW): hidden and cell state."""


class ConvLSTM(nn.Module):
    """One ConvLSTM layer over a whole sequence, or one step of it.

    The input's convolution does not depend on the recurrence, so it runs once for all T times (fewer, larger calls),
    and the convolution of a state that is all zeros is left out. Input and hidden weights are two parameters of their
    own: a slice of a shared one would not be contiguous, which gives wrong numbers on Apple's MPS.

    Args:
        input_channels: C.
        hidden_channels: K.
        kernel_size: odd width of both convolutions; the grid keeps its size.
        forget_bias: initial bias of the forget gate; 1 lets gradients pass from the start [Jozefowicz et al. 2015].

    Raises:
        ValueError: if the kernel size is even or a number of channels is below 1.
    """

    def __init__(self, input_channels: int, hidden_channels: int, kernel_size: int = 3, *, forget_bias: float = 1.0):
        super().__init__()
        if kernel_size % 2 == 0 or min(input_channels, hidden_channels, kernel_size) < 1:
            raise ValueError(
                f"ConvLSTM needs an odd kernel size and at least one channel, "
                f"got kernel {kernel_size}, {input_channels} input and {hidden_channels} hidden channels"
            )
        self.hidden_channels = hidden_channels
        padding = kernel_size // 2
        self.input_conv = nn.Conv2d(input_channels, 4 * hidden_channels, kernel_size, padding=padding)
        self.hidden_conv = nn.Conv2d(hidden_channels, 4 * hidden_channels, kernel_size, padding=padding, bias=False)
        self._initialise(forget_bias)

    def _initialise(self, forget_bias: float) -> None:
        nn.init.xavier_uniform_(self.input_conv.weight)
        for gate_weight in self.hidden_conv.weight.data.chunk(4):
            nn.init.orthogonal_(gate_weight)
        assert self.input_conv.bias is not None
        nn.init.zeros_(self.input_conv.bias)
        self.input_conv.bias.data.chunk(4)[1].fill_(forget_bias)  # gate order: i, f, g, o

    def forward(self, x_BTCHW: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """All T steps from a state (None: zeros).

        Returns:
            h_BTKHW, the hidden state after every step, and the last state (h_BKHW, c_BKHW).
        """
        batch, times = x_BTCHW.shape[:2]
        gates_BTGHW = self.input_conv(x_BTCHW.flatten(0, 1)).unflatten(0, (batch, times))
        h_steps = []
        for gates_BGHW in gates_BTGHW.unbind(1):
            state = self._advance(gates_BGHW, state)
            h_steps.append(state[0])
        assert state is not None
        return torch.stack(h_steps, dim=1), state

    def step(self, x_BCHW: Tensor, state: State | None = None) -> State:
        """One step from a state (None: zeros); returns the new (h_BKHW, c_BKHW)."""
        return self._advance(self.input_conv(x_BCHW), state)

    def _advance(self, gates_BGHW: Tensor, state: State | None) -> State:
        """The equations above. Under autocast the gates are half precision, the cell state stays float32."""
        if state is None:
            i, _, g, o = gates_BGHW.chunk(4, dim=1)
            c = torch.sigmoid(i) * torch.tanh(g)
            c = c.to(torch.promote_types(c.dtype, torch.float32))
        else:
            h_before, c_before = state
            i, f, g, o = (gates_BGHW + self.hidden_conv(h_before)).chunk(4, dim=1)
            c = torch.sigmoid(f) * c_before + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
