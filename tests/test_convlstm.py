"""The ConvLSTM layer, every path and option of it, against the textbook cell in float64."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from convlstm_wx.models import compiled, fast
from convlstm_wx.models.convlstm import ConvLSTM, State
from tests import textbook

STEPS = 4
OPTIONS = {
    "default": {},
    "1x1": {"kernel_size": 1},
    "5x5": {"kernel_size": 5},
    "7x7": {"kernel_size": 7},
    "5x5 and 3x3": {"kernel_size": 5, "hidden_kernel_size": 3},
    "1x1 and 7x7": {"kernel_size": 1, "hidden_kernel_size": 7},
    "no bias": {"bias": False},
    "normed within gates": {"gate_norm_groups": 4},
    "normed across gates": {"gate_norm_groups": 2},
    "normed without bias": {"gate_norm_groups": 4, "bias": False},
    "peepholes": {"peepholes": True},
}


@dataclass
class Path:
    """One way through the layer."""

    name: str
    compiled: bool = True
    plain: bool = False
    memory: str = "save"

    def choose(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(compiled.NO_COMPILER, "0" if self.compiled else "1")
        if self.plain:
            monkeypatch.setattr(ConvLSTM, "_is_fast", lambda *_: False)


PATHS = [
    Path("plain", plain=True),
    Path("plain recompute", plain=True, memory="recompute"),
    Path("function", compiled=False),
    Path("function recompute", compiled=False, memory="recompute"),
    Path("compiled"),
    Path("compiled recompute", memory="recompute"),
]
SAVING = [path for path in PATHS if path.memory == "save"]
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
each_saving_path = pytest.mark.parametrize("path", SAVING, ids=lambda path: path.name)
each_option = pytest.mark.parametrize("option", OPTIONS)


@dataclass
class Case:
    """A layer with random weights, an input on an odd grid, a state or None."""

    layer: ConvLSTM
    x: Tensor
    state: State | None

    @property
    def inputs(self) -> list[Tensor]:
        return [*self.layer.parameters(), self.x, *(self.state or ())]

    def to(self, dtype: torch.dtype) -> "Case":
        def moved(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype).requires_grad_()

        state = None if self.state is None else (moved(self.state[0]), moved(self.state[1]))
        return Case(copy.deepcopy(self.layer).to(dtype), moved(self.x), state)


def case(option: str = "default", *, given_state=False, batch=2, channels=3, grid=(7, 5), hidden=6, **changes) -> Case:
    torch.manual_seed(3)
    layer = ConvLSTM(channels, hidden, **(OPTIONS[option] | changes)).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(batch, STEPS, channels, *grid, dtype=torch.float64, requires_grad=True)
    state = tuple(torch.randn(batch, hidden, *grid, dtype=torch.float64, requires_grad=True) for _ in range(2))
    return Case(layer, x, state if given_state else None)


def by_the_book(layer: ConvLSTM, x: Tensor, state: State | None, **options) -> tuple[Tensor, State]:
    weight = textbook.side_by_side(layer.input_conv.weight, layer.hidden_conv.weight)
    zeros = torch.zeros(x.shape[0], layer.hidden_channels, *x.shape[3:], dtype=x.dtype)
    norm = layer.gate_norm
    if norm is not None:
        options["norm"] = (norm.num_groups, norm.weight, norm.bias)
    if layer.peepholes_3K11 is not None:
        options["peepholes"] = layer.peepholes_3K11
    return textbook.convlstm(x, weight, layer.input_conv.bias, *(state or (zeros, zeros)), **options)


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a.double() - b).norm() / b.norm()).detach())


def results_and_gradients(run: Callable[..., tuple[Tensor, State]], case: Case) -> list[Tensor]:
    """h, last h, last c and the gradients of all inputs from all three outputs."""
    h, (h_last, c_last) = run(case.x, case.state)
    weights = torch.randn(h.shape, generator=torch.Generator().manual_seed(5)).to(h.dtype)
    loss = (h * weights).sum() + c_last.square().sum() + h_last.sin().sum()
    return [h, h_last, c_last, *torch.autograd.grad(loss, case.inputs)]


@each_option
@each_path
@pytest.mark.parametrize("given_state", [False, True], ids=["zeros", "state"])
def test_layer_equals_the_textbook_cell_forward_and_backward(path, option, given_state, monkeypatch):
    path.choose(monkeypatch)
    exact_case = case(option, given_state=given_state, memory=path.memory)
    expected = results_and_gradients(lambda x, state: by_the_book(exact_case.layer, x, state), exact_case)
    single = exact_case.to(torch.float32)
    names = ["h", "h_last", "c_last", *(n for n, _ in single.layer.named_parameters()), "x", "h_0", "c_0"]
    for name, a, b in zip(names, results_and_gradients(single.layer, single), expected):
        assert relative(a, b) < 2e-6, name
    for name, a, b in zip(names, results_and_gradients(exact_case.layer, exact_case), expected):
        assert relative(a, b) < 1e-12, name


@each_option
@each_path
def test_bfloat16_autocast_stays_within_two_hundredths(path, option, monkeypatch):
    path.choose(monkeypatch)
    exact_case = case(option, given_state=True, memory=path.memory)
    expected = results_and_gradients(lambda x, state: by_the_book(exact_case.layer, x, state), exact_case)
    single = exact_case.to(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = results_and_gradients(single.layer, single)
    assert got[2].dtype is torch.float32, "the cell state"
    for a, b in zip(got, expected, strict=True):
        assert relative(a, b) < 2e-2
    assert all(a.dtype == b.dtype for a, b in zip(got[3:], single.inputs, strict=True))


@each_path
@pytest.mark.parametrize(
    ("batch", "grid", "hidden"), [(1, (1, 1), 2), (1, (61, 3), 5), (3, (2, 9), 16), (1, (33, 17), 33)]
)
def test_every_size_equals_the_textbook_cell(path, batch, grid, hidden, monkeypatch):
    path.choose(monkeypatch)
    exact_case = case(batch=batch, grid=grid, hidden=hidden, memory=path.memory)
    expected = results_and_gradients(lambda x, state: by_the_book(exact_case.layer, x, state), exact_case)
    single = exact_case.to(torch.float32)
    for a, b in zip(results_and_gradients(single.layer, single), expected, strict=True):
        assert relative(a, b) < 2e-6


@each_path
@pytest.mark.parametrize("groups", [4, 6])
def test_a_large_mean_does_not_spoil_the_normalisation(path, groups, monkeypatch):
    path.choose(monkeypatch)
    exact_case = case(hidden=6, grid=(21, 33), gate_norm_groups=groups, memory=path.memory)
    exact_case.layer.input_conv.bias.data += 30
    expected = results_and_gradients(lambda x, state: by_the_book(exact_case.layer, x, state), exact_case)
    single = exact_case.to(torch.float32)
    for a, b in zip(results_and_gradients(single.layer, single)[:3], expected[:3], strict=True):
        assert relative(a, b) < 1e-4  # E[x^2] - E[x]^2, as PyTorch's kernel takes the variance, carries no more


@each_path
@pytest.mark.parametrize("given_state", [False, True])
@pytest.mark.parametrize("batch", [3, 4])
def test_a_batch_in_parts_gives_the_same(path, batch, given_state, monkeypatch):
    path.choose(monkeypatch)
    one = case(batch=batch, given_state=given_state, gate_norm_groups=4, memory=path.memory)
    whole = results_and_gradients(one.layer, one)
    monkeypatch.setattr(fast, "MOST_BYTES_OF_GATES", 2 * 4 * 6 * 7 * 5 * 8)
    for a, b in zip(results_and_gradients(one.layer, one), whole, strict=True):
        assert relative(a, b) < 1e-12


@each_path
def test_more_threads_give_the_same(path, monkeypatch):
    path.choose(monkeypatch)
    single = case(grid=(40, 33), hidden=8, memory=path.memory).to(torch.float32)
    alone = results_and_gradients(single.layer, single)
    torch.set_num_threads(3)
    try:
        together = results_and_gradients(single.layer, single)
    finally:
        torch.set_num_threads(1)
    for a, b in zip(together, alone, strict=True):
        assert relative(a, b.double()) < 2e-6


@each_path
def test_no_gradient_is_computed_for_what_needs_none(path, monkeypatch):
    path.choose(monkeypatch)
    whole = case(given_state=True, memory=path.memory)
    h, _ = whole.layer(whole.x, whole.state)
    expected = torch.autograd.grad(h.sum(), list(whole.layer.parameters()))
    data, state = whole.x.detach(), (whole.state[0].detach(), whole.state[1].detach())
    h, _ = whole.layer(data, state)
    for a, b in zip(torch.autograd.grad(h.sum(), list(whole.layer.parameters())), expected, strict=True):
        torch.testing.assert_close(a, b)
    whole.layer.requires_grad_(False)
    h, _ = whole.layer(data, whole.state)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(h.sum(), whole.state))


@each_path
@pytest.mark.parametrize("used", ["h", "h_last", "c_last"])
def test_gradients_are_right_from_each_output_alone(path, used, monkeypatch):
    path.choose(monkeypatch)
    one = case(memory=path.memory)

    def gradients(run):
        h, (h_last, c_last) = run(one.x, one.state)
        return torch.autograd.grad({"h": h, "h_last": h_last, "c_last": c_last}[used].sin().sum(), one.inputs)

    for a, b in zip(gradients(one.layer), gradients(lambda *given: by_the_book(one.layer, *given)), strict=True):
        assert relative(a, b) < 1e-12


@each_path
def test_a_second_way_back_through_the_same_graph_gives_the_same(path, monkeypatch):
    path.choose(monkeypatch)
    single = case(memory=path.memory).to(torch.float32)
    h, _ = single.layer(single.x)
    first = torch.autograd.grad(h.sum(), single.inputs, retain_graph=True)
    for a, b in zip(torch.autograd.grad(h.sum(), single.inputs), first, strict=True):
        assert relative(a, b.double()) < 1e-6


@pytest.mark.parametrize("path", [path for path in PATHS if not path.plain], ids=lambda path: path.name)
def test_differentiating_twice_is_refused(path, monkeypatch):
    path.choose(monkeypatch)
    one = case(memory=path.memory)
    (grad,) = torch.autograd.grad(one.layer(one.x)[0].square().sum(), one.x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        grad.sum().backward()


@each_path
def test_every_parameter_gets_a_gradient(path, monkeypatch):
    path.choose(monkeypatch)
    for option in OPTIONS:
        layer = ConvLSTM(3, 6, **OPTIONS[option], memory=path.memory)
        layer(torch.randn(2, 3, 3, 5, 4))[0].square().sum().backward()
        assert [n for n, p in layer.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@each_saving_path
@each_option
def test_inference_equals_training(path, option, monkeypatch):
    path.choose(monkeypatch)
    for given_state in (False, True):
        single = case(option, given_state=given_state).to(torch.float32)
        h, (h_last, c_last) = single.layer(single.x, single.state)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                h_too, state = single.layer(single.x, single.state)
                torch.testing.assert_close((h_too, *state), (h, h_last, c_last))


@each_saving_path
@each_option
@pytest.mark.parametrize("given_state", [False, True])
def test_gates_from_the_input_can_be_shared_by_windows(path, option, given_state, monkeypatch):
    path.choose(monkeypatch)
    single = case(option, given_state=given_state).to(torch.float32)
    with torch.no_grad():
        gates = single.layer.input_gates(single.x)
        before = gates.clone()
        for start in range(2):
            h, state = single.layer.unroll(gates[:, start : start + 3], single.state)
            expected, expected_state = single.layer(single.x[:, start : start + 3], single.state)
            torch.testing.assert_close((h, *state), (expected, *expected_state))
        assert torch.equal(gates, before)


@each_saving_path
def test_two_halves_of_a_sequence_equal_the_whole(path, monkeypatch):
    path.choose(monkeypatch)
    one = case()
    whole, (_, c_whole) = one.layer(one.x)
    first, state = one.layer(one.x[:, :2])
    second, (_, c) = one.layer(one.x[:, 2:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(c, c_whole)


@each_path
def test_a_step_is_a_sequence_of_one(path, monkeypatch):
    path.choose(monkeypatch)
    one = case(given_state=True, memory=path.memory)
    h, c = one.layer.step(one.x[:, 0], one.state)
    sequence, (_, c_sequence) = one.layer(one.x[:, :1], one.state)
    torch.testing.assert_close(h, sequence[:, 0])
    torch.testing.assert_close(c, c_sequence)


@each_saving_path
@pytest.mark.parametrize("value", [1e4, -1e4, 1e30, -1e30, float("inf"), float("-inf")])
@pytest.mark.parametrize("autocast", [False, True])
def test_extreme_inputs_stay_finite_where_the_textbook_cell_does(path, value, autocast, monkeypatch):
    path.choose(monkeypatch)
    single = case(hidden=16, channels=4).to(torch.float32)
    with torch.no_grad():
        single.x[0, 1, 0, 3, 2] = value
    expected = results_and_gradients(lambda *a: by_the_book(single.layer, *a), single)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = results_and_gradients(single.layer, single)
    for a, b in zip(got[:3], expected[:3], strict=True):
        assert torch.equal(torch.isfinite(a), torch.isfinite(b))
    assert torch.isfinite(expected[-1]).all() <= torch.isfinite(got[-1]).all()
    if not autocast:
        finite = torch.isfinite(expected[0])
        assert relative(got[0][finite], expected[0][finite].double()) < 2e-6


@each_saving_path
@pytest.mark.parametrize("autocast", [False, True])
def test_nan_propagates(path, autocast, monkeypatch):
    path.choose(monkeypatch)
    single = case(hidden=16, channels=4).to(torch.float32)
    with torch.no_grad():
        single.x[0, 0, 0, 3, 2] = float("nan")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = results_and_gradients(single.layer, single)
    expected = results_and_gradients(lambda *a: by_the_book(single.layer, *a), single)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(torch.isnan(a), torch.isnan(b))
    assert torch.isnan(got[0][0, 0, :, 3, 2]).all()
    assert torch.isfinite(got[0][1]).all()


@each_path
def test_the_layout_of_the_input_does_not_matter(path, monkeypatch):
    path.choose(monkeypatch)
    one = case(memory=path.memory)
    expected = results_and_gradients(one.layer, one)
    x = one.x.detach()
    padded = torch.nn.functional.pad(x, [1, 2, 3, 1])[..., 3:-1, 1:-2]
    layouts = [
        x.transpose(3, 4).contiguous().transpose(3, 4),
        x.movedim(2, -1).contiguous().movedim(-1, 2),
        x.transpose(0, 1).contiguous().transpose(0, 1),
        padded,
    ]
    for layout in layouts:
        assert not layout.is_contiguous()
        other = Case(one.layer, layout.requires_grad_(), None)
        for a, b in zip(results_and_gradients(one.layer, other), expected, strict=True):
            torch.testing.assert_close(a, b)
    one.layer.to(memory_format=torch.channels_last)
    for a, b in zip(results_and_gradients(one.layer, one), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_paths_are_chosen_by_device_and_option():
    single = case().to(torch.float32)
    assert single.layer._is_fast(single.x)
    assert not single.layer._is_fast(single.x.to("meta"))
    assert not case("peepholes").layer._is_fast(single.x)
    assert not case(zoneout=0.1).layer._is_fast(single.x)
    dropping = case(hidden_dropout=0.1).layer
    assert not dropping._is_fast(single.x)
    assert dropping.eval()._is_fast(single.x)


def test_the_output_is_time_major_so_that_the_next_layer_gets_it_without_a_copy():
    single = case().to(torch.float32)
    h, _ = single.layer(single.x)
    folded = h.transpose(0, 1).flatten(0, 1)
    assert folded.data_ptr() == h.data_ptr()
    assert folded.is_contiguous(memory_format=torch.channels_last)


def test_zoneout_mixes_on_average_once_trained():
    one = case(given_state=True, zoneout=0.25)
    one.layer.eval()
    expected = results_and_gradients(lambda *a: by_the_book(one.layer, *a, zoneout=0.25), one)
    for a, b in zip(results_and_gradients(one.layer, one), expected, strict=True):
        assert relative(a, b) < 1e-12


def test_zoneout_keeps_its_share_of_the_state_while_training():
    one = case(given_state=True, zoneout=0.25, grid=(40, 50))
    h, c = one.layer.step(one.x[:, 0], one.state)
    h_new, c_new = by_the_book(one.layer, one.x[:, :1], one.state)[1]
    for after, before, new in ((h, one.state[0], h_new), (c, one.state[1], c_new)):
        kept = after == before
        assert kept.double().mean() == pytest.approx(0.25, abs=0.01)
        torch.testing.assert_close(after[~kept], new[~kept])
    assert not torch.equal(h == one.state[0], c == one.state[1])


@pytest.mark.parametrize("memory", ["save", "recompute"])
def test_hidden_dropout_hides_the_same_channels_at_all_times(memory, monkeypatch):
    one = case(given_state=True, hidden_dropout=0.5, memory=memory)
    seen = torch.tensor([0.0, 2, 2, 0, 2, 0, 2, 0, 0, 2, 0, 0]).double().reshape(2, 6, 1, 1)
    monkeypatch.setattr(one.layer, "_draw_kept", lambda _: seen)
    expected = results_and_gradients(lambda *a: by_the_book(one.layer, *a, seen=seen), one)
    for a, b in zip(results_and_gradients(one.layer, one), expected, strict=True):
        assert relative(a, b) < 1e-12


def test_hidden_dropout_hides_its_share_and_keeps_the_mean():
    torch.manual_seed(0)
    layer = ConvLSTM(1, 40, 1, hidden_dropout=0.2)
    seen = layer._draw_kept(torch.zeros(200, 1, 1, 1))
    assert seen.shape == (200, 40, 1, 1)
    assert set(seen.unique().tolist()) == {0, 1.25}
    assert seen.mean() == pytest.approx(1, abs=0.05)
    assert layer.eval()._draw_kept(torch.zeros(2, 1, 1, 1)) is None


@pytest.mark.parametrize("option", ["default", "5x5 and 3x3", "normed within gates", "peepholes"])
def test_the_layer_can_be_exported(option):
    single = case(option, given_state=True).to(torch.float32)
    layer = single.layer.requires_grad_(False)
    x, state = single.x.detach(), tuple(s.detach() for s in single.state)
    exported = torch.export.export(layer, (x, state)).module()
    torch.testing.assert_close(exported(x, state), layer(x, state))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("option", ["default", "normed within gates"])
def test_the_layer_compiles_as_one_graph(option, backend):
    single = case(option).to(torch.float32)
    torch._dynamo.reset()
    whole = torch.compile(single.layer, fullgraph=True, backend=backend)
    expected = results_and_gradients(single.layer, single)
    for a, b in zip(results_and_gradients(whole, single), expected, strict=True):
        assert relative(a, b.double()) < 2e-6


def test_memory_is_recomputed_not_kept():
    """What the graph keeps of the gates: nothing."""
    counts = {}
    for memory in ("save", "recompute"):
        kept = []
        single = case(memory=memory).to(torch.float32)
        run = fast._Run(single.layer._weights(), single.layer._settings(single.x), single.x)
        with torch.no_grad():
            run.forward(single.x, None, kept)
        counts[memory] = [g is not None for g in kept[0].gates]
    assert counts == {"save": [True] * STEPS, "recompute": [False] * STEPS}


def test_parameters_have_the_names_and_first_values_that_checkpoints_expect():
    torch.manual_seed(0)
    layer = ConvLSTM(2, 3)
    assert list(layer.state_dict()) == ["input_conv.weight", "input_conv.bias", "hidden_conv.weight"]
    torch.manual_seed(0)
    input_conv, hidden_conv = torch.nn.Conv2d(2, 12, 3), torch.nn.Conv2d(3, 12, 3, bias=False)
    torch.nn.init.xavier_uniform_(input_conv.weight)
    for gate in hidden_conv.weight.data.chunk(4):
        torch.nn.init.orthogonal_(gate)
    assert torch.equal(layer.input_conv.weight, input_conv.weight)
    assert torch.equal(layer.hidden_conv.weight, hidden_conv.weight)


def test_hidden_kernels_start_orthogonal_gate_by_gate():
    for gate in ConvLSTM(2, 3).hidden_conv.weight.chunk(4):
        rows = gate.flatten(1)
        torch.testing.assert_close(rows @ rows.T, torch.eye(3))


def test_the_forget_gate_starts_open():
    bias = ConvLSTM(2, 3).input_conv.bias
    assert bias[3:6].tolist() == [1, 1, 1]
    assert bias[:3].tolist() == [0, 0, 0]
    assert ConvLSTM(2, 3, forget_bias=0.5).input_conv.bias[3:6].tolist() == [0.5] * 3
    normed = ConvLSTM(2, 3, gate_norm_groups=2, bias=False)
    assert normed.gate_norm.bias.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 2}, "odd kernel size and at least one channel"),
        ({"kernel_size": 9}, "odd kernel size and at least one channel"),
        ({"hidden_kernel_size": 4}, "odd kernel size and at least one channel"),
        ({"input_channels": 0}, "odd kernel size and at least one channel"),
        ({"hidden_channels": 0}, "odd kernel size and at least one channel"),
        ({"gate_norm_groups": 3}, "has to divide the 4 gate channels, got 3"),
        ({"gate_norm_groups": 0}, "has to divide the 4 gate channels, got 0"),
        ({"zoneout": 1.0}, "shares of 0 to below 1, got 1.0"),
        ({"hidden_dropout": -0.1}, "shares of 0 to below 1, got 0.0 and -0.1"),
        ({"memory": "none"}, "'save' or 'recompute', got 'none'"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ConvLSTM(**({"input_channels": 1, "hidden_channels": 1} | options))
