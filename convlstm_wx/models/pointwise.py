"""The pointwise part of a ConvLSTM step and its gradient: in PyTorch, or in one pass over memory where C can be built.

Shapes: B batch, G gate channels, K hidden channels, H lat, W lon, R groups of gate channels. G is 4 K, in the order
i, f, g, o; where the cell state before is zero, which makes the forget gate idle, it is 3 K: i, g, o.
Everything is dense channels_last.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from convlstm_wx.models.compiled import MOST_CHANNELS, Library, library


class Norm(NamedTuple):
    """Group normalisation of the gates [Wu and He 2018]."""

    gamma_G: Tensor
    beta_G: Tensor
    groups: int
    eps: float


class Moments(NamedTuple):
    """What group normalisation subtracted and multiplied by, for each sample and group."""

    mean_BR: Tensor
    inverse_deviation_BR: Tensor


class GateGradients(NamedTuple):
    """All gradients of one step's pointwise part."""

    gates_BGHW: Tensor
    bias_G: Tensor
    c_before_BKHW: Tensor | None
    gamma_G: Tensor | None
    beta_G: Tensor | None


class Pointwise(Protocol):
    """Both implementations.

    `advance` adds the gates of the input and of the hidden state (None: no state), writes the new hidden state into
    `h_BKHW` and returns (raw gates, new cell state, moments). The raw gates are meaningless unless `keep`; the
    input's gates are only written over if `keep`, those of the hidden state always.

    `retreat` takes those raw gates, writes their gradient over them, and leaves out the gradient of the cell state
    before unless `wants_c`.
    """

    def advance(
        self,
        gates_BGHW: Tensor,
        hidden_BGHW: Tensor | None,
        c_before_BKHW: Tensor | None,
        norm: Norm | None,
        h_BKHW: Tensor,
        *,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Moments | None]:
        """One step forward."""
        ...

    def retreat(
        self,
        gates_BGHW: Tensor,
        c_before_BKHW: Tensor | None,
        norm: Norm | None,
        moments: Moments | None,
        grads_h_BKHW: list[Tensor],
        grad_c_BKHW: Tensor | None,
        *,
        wants_c: bool,
    ) -> GateGradients:
        """The same step back."""
        ...

    def lay_out(self, x_BCHW: Tensor, dtype: torch.dtype) -> Tensor:
        """In that type, dense and channels_last; no copy if it is so already."""
        ...


def choose(dtype: torch.dtype, hidden_channels: int, device: torch.device) -> Pointwise:
    """The fastest implementation that there is."""
    if device.type == "cpu" and hidden_channels <= MOST_CHANNELS and (found := library(dtype)):
        return Compiled(found, dtype)
    return Eager()


class Eager:
    """In PyTorch's own operators, in place where that spares an array."""

    def advance(
        self,
        gates_BGHW: Tensor,
        hidden_BGHW: Tensor | None,
        c_before_BKHW: Tensor | None,
        norm: Norm | None,
        h_BKHW: Tensor,
        *,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Moments | None]:
        """One step forward; see :class:`Pointwise`."""
        raw = gates_BGHW if hidden_BGHW is None else hidden_BGHW.add_(gates_BGHW)
        normed, moments = _normalise(raw, norm)
        i, f, g, o = _gates(normed, has_forget=c_before_BKHW is not None)
        c = i.mul_(g)
        if c_before_BKHW is not None:
            assert f is not None
            c = c.addcmul_(f, c_before_BKHW)
        torch.mul(o, _tanh(c), out=o)
        h_BKHW.copy_(o)
        return raw, c, moments

    def retreat(
        self,
        gates_BGHW: Tensor,
        c_before_BKHW: Tensor | None,
        norm: Norm | None,
        moments: Moments | None,
        grads_h_BKHW: list[Tensor],
        grad_c_BKHW: Tensor | None,
        *,
        wants_c: bool,
    ) -> GateGradients:
        """The same step back; see :class:`Pointwise`."""
        has_forget = c_before_BKHW is not None
        normed = _renormalise(gates_BGHW, norm, moments)
        i, f, g, o = _gates(normed, has_forget=has_forget)
        c = i * g
        if c_before_BKHW is not None:
            assert f is not None
            c = c.addcmul_(f, c_before_BKHW)
        tanh_c = _tanh(c)
        grad_h = _sum(grads_h_BKHW, like=i)
        grad = normed if norm is not None else gates_BGHW
        blocks = grad.chunk(4 if has_forget else 3, dim=1)
        blocks[-1].copy_(tanh_c * grad_h * o * (1 - o))
        grad_c = grad_h.mul_(o).mul_(tanh_c.square_().neg_().add_(1))
        if grad_c_BKHW is not None:
            grad_c = grad_c.add_(grad_c_BKHW)
        blocks[0].copy_(grad_c * g * i * (1 - i))
        blocks[-2].copy_(grad_c * i * (1 - g.square()))
        if c_before_BKHW is not None:
            assert f is not None
            blocks[1].copy_(grad_c * c_before_BKHW * f * (1 - f))
            grad_c = grad_c.mul_(f)
        grad_gamma = grad_beta = None
        if norm is not None:
            assert moments is not None
            batch, channels, height, width = gates_BGHW.shape
            grad, grad_gamma, grad_beta = torch.ops.aten.native_group_norm_backward(
                *(grad, gates_BGHW.to(grad.dtype), moments.mean_BR, moments.inverse_deviation_BR, norm.gamma_G),
                *(batch, channels, height * width, norm.groups, [True, True, True]),
            )
        bias = grad.sum(dim=(0, 2, 3), dtype=grad_c.dtype)
        grad = grad.to(gates_BGHW.dtype).contiguous(memory_format=torch.channels_last)
        return GateGradients(grad, bias, grad_c if wants_c and has_forget else None, grad_gamma, grad_beta)

    def lay_out(self, x_BCHW: Tensor, dtype: torch.dtype) -> Tensor:
        """See :class:`Pointwise`."""
        return x_BCHW.to(dtype).contiguous(memory_format=torch.channels_last)


class Compiled:
    """In C, each in one pass over memory; with group normalisation in two."""

    def __init__(self, compiled: Library, dtype: torch.dtype):
        self.library = compiled
        self.dtype = dtype
        self._scratch = torch.empty(0)

    def advance(
        self,
        gates_BGHW: Tensor,
        hidden_BGHW: Tensor | None,
        c_before_BKHW: Tensor | None,
        norm: Norm | None,
        h_BKHW: Tensor,
        *,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Moments | None]:
        """One step forward; see :class:`Pointwise`."""
        run = self._runner(gates_BGHW, h_BKHW.shape[1])
        raw, arrays, moments = gates_BGHW, {}, None
        if norm is not None:
            if hidden_BGHW is not None and not keep:  # the sum is written: into what is ours
                raw, hidden_BGHW = hidden_BGHW, gates_BGHW
            moments = self._moments(run, raw, hidden_BGHW, c_before_BKHW, norm)
            arrays, hidden_BGHW = _affine(norm, moments), None
        c = torch.empty_like(h_BKHW, dtype=torch.float32)
        run(
            "advance",
            keep=keep,
            gates=raw,
            hidden_gates=hidden_BGHW,
            c_before=c_before_BKHW,
            c=c,
            h=h_BKHW,
            **arrays,
        )
        return raw, c, moments

    def retreat(
        self,
        gates_BGHW: Tensor,
        c_before_BKHW: Tensor | None,
        norm: Norm | None,
        moments: Moments | None,
        grads_h_BKHW: list[Tensor],
        grad_c_BKHW: Tensor | None,
        *,
        wants_c: bool,
    ) -> GateGradients:
        """The same step back; see :class:`Pointwise`."""
        hidden_channels = gates_BGHW.shape[1] // (3 if c_before_BKHW is None else 4)
        run = self._runner(gates_BGHW, hidden_channels)
        sums = self._sums(gates_BGHW)
        grad = gates_BGHW if norm is None else self._scratch_like(gates_BGHW)
        grad_c_before = None
        if wants_c and c_before_BKHW is not None:
            grad_c_before = torch.empty_like(c_before_BKHW)
        first, second = [*grads_h_BKHW, None, None][:2]
        run(
            "retreat",
            gates=gates_BGHW,
            c_before=c_before_BKHW,
            grad_h=first,
            grad_h_recurrent=second,
            grad_c=grad_c_BKHW,
            grad_c_before=grad_c_before,
            grad_gates=grad,
            sums=sums,
            **(_affine(norm, moments) if norm is not None and moments is not None else {}),
        )
        if norm is None:
            return GateGradients(grad, sums[:, :, 0].sum(dim=(0, 1)), grad_c_before, None, None)
        assert moments is not None
        grad_BG, grad_normed_BG = sums.sum(dim=1).unbind(1)
        pass_on = _through_norm(norm, moments, grad_BG, grad_normed_BG, gates_BGHW.shape[2] * gates_BGHW.shape[3])
        bias_sums = self._sums(gates_BGHW)
        run("normalise_back", gates=gates_BGHW, c_before=c_before_BKHW, grad_gates=grad, sums=bias_sums, **pass_on)
        bias_G = bias_sums[:, :, 0].sum(dim=(0, 1))
        return GateGradients(gates_BGHW, bias_G, grad_c_before, grad_normed_BG.sum(0), grad_BG.sum(0))

    def lay_out(self, x_BCHW: Tensor, dtype: torch.dtype) -> Tensor:
        """See :class:`Pointwise`."""
        height, width = x_BCHW.shape[2:]
        has_planes = x_BCHW.stride(3) == 1 and x_BCHW.stride(2) == width and height * width > 1
        is_laid_out = x_BCHW.is_contiguous(memory_format=torch.channels_last)
        if is_laid_out or not has_planes or x_BCHW.dtype != torch.float32 or dtype != self.dtype:
            return x_BCHW.to(dtype).contiguous(memory_format=torch.channels_last)
        out_BCHW = torch.empty(x_BCHW.shape, dtype=dtype, memory_format=torch.channels_last)
        self.library.lay_out(x_BCHW, out_BCHW)
        return out_BCHW

    def _runner(self, gates_BGHW: Tensor, hidden_channels: int) -> Callable[..., None]:
        chunks = self._chunks(gates_BGHW)

        def run(name: str, **arguments: Tensor | None) -> None:
            self.library.run(name, hidden_channels, chunks, **arguments)  # type: ignore[arg-type]

        return run

    def _scratch_like(self, gates_BGHW: Tensor) -> Tensor:
        """One array for all steps: large ones come from the system page by page, which costs more than the pass."""
        if self._scratch.shape != gates_BGHW.shape:
            self._scratch = torch.empty_like(gates_BGHW)
        return self._scratch

    def _chunks(self, gates_BGHW: Tensor) -> int:
        return self.library.pieces(gates_BGHW.shape[0], gates_BGHW.shape[2] * gates_BGHW.shape[3])

    def _sums(self, gates_BGHW: Tensor) -> Tensor:
        """Two sums of every gate channel, for each sample and piece."""
        batch, channels = gates_BGHW.shape[:2]
        return torch.zeros(batch, self._chunks(gates_BGHW), 2, channels, dtype=torch.float64)

    def _moments(
        self,
        run: Callable[..., None],
        gates_BGHW: Tensor,
        hidden_BGHW: Tensor | None,
        c_before_BKHW: Tensor | None,
        norm: Norm,
    ) -> Moments:
        """Add the hidden state's gates to the input's, in place, and take mean and deviation of the sum."""
        origin_BG = gates_BGHW[:, :, 0, 0].to(torch.float32, copy=True)
        if hidden_BGHW is not None:
            origin_BG += hidden_BGHW[:, :, 0, 0]
        sums = self._sums(gates_BGHW)
        run("moments", gates=gates_BGHW, hidden_gates=hidden_BGHW, c_before=c_before_BKHW, origin=origin_BG, sums=sums)
        first_BG, second_BG = (sums.sum(dim=1) / (gates_BGHW.shape[2] * gates_BGHW.shape[3])).unbind(1)
        mean_BRG = (origin_BG + first_BG).unflatten(1, (norm.groups, -1))
        within_BRG = (second_BG - first_BG.square()).unflatten(1, (norm.groups, -1))
        mean_BR = mean_BRG.mean(dim=2)
        variance_BR = (within_BRG + (mean_BRG - mean_BR.unsqueeze(2)).square()).mean(dim=2)
        return Moments(mean_BR, (variance_BR + norm.eps).rsqrt())


def _spread(values_BR: Tensor, norm: Norm) -> Tensor:
    """From one value a group to one a channel."""
    return values_BR.repeat_interleave(norm.gamma_G.shape[0] // norm.groups, dim=1)


def _affine(norm: Norm, moments: Moments) -> dict[str, Tensor]:
    """The normalisation as pointwise.c wants it."""
    inverse_BG = _spread(moments.inverse_deviation_BR, norm)
    return {
        "inverse_deviation": inverse_BG.float(),
        "minus_mean_over_deviation": (-_spread(moments.mean_BR, norm) * inverse_BG).float(),
        "gamma": norm.gamma_G.float().contiguous(),
        "beta": norm.beta_G.float().contiguous(),
    }


def _through_norm(
    norm: Norm, moments: Moments, grad_BG: Tensor, grad_normed_BG: Tensor, points: int
) -> dict[str, Tensor]:
    """The gradient d of the normalised gates n = (v - mean) / deviation, passed on to v.

    It is (gamma d - mean(gamma d) - n mean(gamma d n)) / deviation with means over the group: linear in d and v.
    """
    inverse_BG = _spread(moments.inverse_deviation_BR, norm)

    def group_mean(sums_BG: Tensor) -> Tensor:
        weighted_BRG = (sums_BG * norm.gamma_G / points).unflatten(1, (norm.groups, -1))
        return _spread(weighted_BRG.mean(dim=2), norm)

    mean_BG, slope_BG = group_mean(grad_BG) * inverse_BG, group_mean(grad_normed_BG) * inverse_BG.square()
    return {
        "on_grad": (inverse_BG * norm.gamma_G).float(),
        "on_gates": (-slope_BG).float(),
        "constant": (slope_BG * _spread(moments.mean_BR, norm) - mean_BG).float(),
    }


def _gates(raw_BGHW: Tensor, *, has_forget: bool) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Activated i, f, g, o, at least float32."""
    blocks = raw_BGHW.chunk(4 if has_forget else 3, dim=1)
    wide = [block.to(torch.promote_types(block.dtype, torch.float32)) for block in blocks]
    f = torch.sigmoid(wide[1]) if has_forget else None
    return torch.sigmoid(wide[0]), f, _tanh(wide[-2]), torch.sigmoid(wide[-1])


def _tanh(x: Tensor) -> Tensor:
    """As 2 sigmoid(2x) - 1: PyTorch's tanh takes six times as long on a CPU, and this errs by 1e-7 at most."""
    return torch.sigmoid(2 * x).mul_(2).sub_(1)


def _sum(terms: list[Tensor], like: Tensor) -> Tensor:
    if not terms:
        return torch.zeros_like(like)
    first = terms[0].to(like.dtype, copy=True)
    return first.add_(terms[1]) if len(terms) > 1 else first


def _normalise(raw_BGHW: Tensor, norm: Norm | None) -> tuple[Tensor, Moments | None]:
    if norm is None:
        return raw_BGHW, None
    batch, channels, height, width = raw_BGHW.shape
    wide = raw_BGHW.to(norm.gamma_G.dtype)
    normed, mean_BR, inverse_BR = torch.native_group_norm(
        wide, norm.gamma_G, norm.beta_G, batch, channels, height * width, norm.groups, norm.eps
    )
    return normed, Moments(mean_BR, inverse_BR)


def _renormalise(raw_BGHW: Tensor, norm: Norm | None, moments: Moments | None) -> Tensor:
    """The normalised gates once more, from the moments that were kept."""
    if norm is None or moments is None:
        return raw_BGHW
    scale_BG = _spread(moments.inverse_deviation_BR, norm)
    shift_BG = norm.beta_G - _spread(moments.mean_BR, norm) * scale_BG * norm.gamma_G
    return torch.addcmul(shift_BG[:, :, None, None], raw_BGHW, (scale_BG * norm.gamma_G)[:, :, None, None])
