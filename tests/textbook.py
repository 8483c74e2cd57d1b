"""The ConvLSTM as it stands in textbooks: slow, plain, the reference that the fast layer must equal.

Shapes: B batch, T times, C input channels, K hidden channels, H lat, W lon.
"""

import torch
from torch import Tensor
from torch.nn import functional


def convlstm(
    x_BTCHW: Tensor, weight: Tensor, bias: Tensor, h_BKHW: Tensor, c_BKHW: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Concatenate input and hidden state, one convolution a step, gates in the order i, f, g, o.

    weight is [4 K, C + K, k, k], bias [4 K].
    """
    padding = weight.shape[-1] // 2
    outputs = []
    for time in range(x_BTCHW.shape[1]):
        stacked = torch.cat([x_BTCHW[:, time], h_BKHW], dim=1)
        i, f, g, o = functional.conv2d(stacked, weight, bias, padding=padding).chunk(4, dim=1)
        c_BKHW = torch.sigmoid(f) * c_BKHW + torch.sigmoid(i) * torch.tanh(g)
        h_BKHW = torch.sigmoid(o) * torch.tanh(c_BKHW)
        outputs.append(h_BKHW)
    return torch.stack(outputs, dim=1), (h_BKHW, c_BKHW)
