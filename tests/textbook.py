"""The ConvLSTM as it stands in textbooks: slow, plain, the reference that the fast layer must equal.

Shapes: B batch, T times, C input channels, K hidden channels, H lat, W lon.
"""

import torch
from torch import Tensor
from torch.nn import functional


def convlstm(
    x_BTCHW: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    h_BKHW: Tensor,
    c_BKHW: Tensor,
    *,
    norm: tuple[int, Tensor, Tensor] | None = None,
    peepholes: Tensor | None = None,
    seen: Tensor | float = 1.0,
    zoneout: float = 0.0,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Concatenate input and hidden state, one convolution a step, gates in the order i, f, g, o.

    weight is [4 K, C + K, k, k], bias [4 K]; norm is (groups, scale, shift) of the gates; peepholes [3, K, 1, 1] are
    those of i, f and o; seen is what the convolution's hidden state is multiplied by; zoneout is the share of the state
    before in the state after, as in evaluation.
    """
    padding = weight.shape[-1] // 2
    outputs = []
    for time in range(x_BTCHW.shape[1]):
        stacked = torch.cat([x_BTCHW[:, time], h_BKHW * seen], dim=1)
        gates = functional.conv2d(stacked, weight, bias, padding=padding)
        if norm is not None:
            gates = functional.group_norm(gates, *norm)
        i, f, g, o = gates.chunk(4, dim=1)
        if peepholes is not None:
            i, f = i + peepholes[0] * c_BKHW, f + peepholes[1] * c_BKHW
        c_new = torch.sigmoid(f) * c_BKHW + torch.sigmoid(i) * torch.tanh(g)
        if peepholes is not None:
            o = o + peepholes[2] * c_new
        h_new = torch.sigmoid(o) * torch.tanh(c_new)
        h_BKHW = zoneout * h_BKHW + (1 - zoneout) * h_new
        c_BKHW = zoneout * c_BKHW + (1 - zoneout) * c_new
        outputs.append(h_BKHW)
    return torch.stack(outputs, dim=1), (h_BKHW, c_BKHW)


def side_by_side(input_weight: Tensor, hidden_weight: Tensor) -> Tensor:
    """One weight for the concatenated input and hidden state; the smaller kernel is padded with zeros."""
    size = max(input_weight.shape[-1], hidden_weight.shape[-1])
    padded = [functional.pad(w, [(size - w.shape[-1]) // 2] * 4) for w in (input_weight, hidden_weight)]
    return torch.cat(padded, dim=1)
