"""All networks: one interface, any grid, every way of computing; and what each of them is."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from convlstm_wx.checkpoint import Checkpoint, load_checkpoint
from convlstm_wx.cli import main
from convlstm_wx.config import TrainConfig
from convlstm_wx.data.inputs import prepare_training
from convlstm_wx.device import DevicePolicy, choose_device, rehearsal_of_mps
from convlstm_wx.errors import ConfigError
from convlstm_wx.models.blocks import RecurrentPyramid
from convlstm_wx.models.build import NETWORKS, build
from convlstm_wx.models.compiling import compile_forward
from convlstm_wx.models.convlstm import ConvLSTM, State
from convlstm_wx.models.network import Network
from convlstm_wx.models.upstream import ResampledFusion, UpstreamFusion
from convlstm_wx.training.blueprint import blueprint, network_changes
from tests.region_files import region, write
from tests.textbook import convlstm, side_by_side

OPTIONS: dict[str, Any] = {
    "input_channels": 4,
    "target_indices": [0, 2],
    "target_mask_indices": [-1, 0],
    "mask_channels": 1,
    "forcing_channels": 3,
    "upstream_channels": [],
    "increment_scale": [0.5, 0.25],
    "hidden_channels": [4, 8],
    "kernel_size": 3,
    "dropout": 0.0,
}
UPSTREAM = {"upstream_channels": [5, 6]}
# Every network, and every way of fusing.
WITH_UPSTREAM = [
    (name, UPSTREAM | {"upstream_fusion": how})
    for name in ("encoder-forecaster", "unet")
    for how in ("attention", "resample")
]
KINDS: list[tuple[str, dict[str, Any]]] = [*((name, {}) for name in NETWORKS), *WITH_UPSTREAM]
named = pytest.mark.parametrize("name", NETWORKS)
each_kind = pytest.mark.parametrize(("name", "options"), KINDS, ids=lambda value: str(value))


def a_network(name: str, **changes: Any) -> Network:
    """With weights that let every other one matter."""
    torch.manual_seed(1)
    network = build(name, OPTIONS | changes)
    torch.nn.init.normal_(network.head.weight, std=0.3)
    return network


def inputs(
    height: int = 9, width: int = 7, leads: int = 3, batch: int = 2, times: int = 3, upstream: bool = False
) -> tuple[Tensor, Tensor, list[Tensor]]:
    torch.manual_seed(0)
    x = torch.randn(batch, times, 4, height, width)
    x[:, :, 3] = (torch.rand(batch, 1, height, width) < 0.8).float()
    x[:, :, 2] *= x[:, :, 3]
    regions = [torch.randn(batch, times, 5, 6, 11), torch.randn(batch, times, 6, 3, 4)]
    return x, torch.randn(batch, times + leads, 3, height, width), regions if upstream else []


def learned(network: Network, *arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """A forecast and the gradients of a loss of it."""
    network.zero_grad()
    y = network(*arguments)
    (y - 0.5).square().mean().backward()
    return y.detach(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def assert_same(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-8, name


# One interface


@each_kind
@pytest.mark.parametrize("size", [(7, 9), (29, 31), (5, 5), (1, 6)])
def test_three_resolutions_learn_on_any_grid_and_batch(name, options, size):
    network = a_network(name, hidden_channels=[4, 8, 12], **options)
    for leads, batch in ((1, 1), (7, 1), (2, 3)):
        y, gradients = learned(network, *inputs(*size, leads, batch, upstream=bool(options)))
        assert y.shape == (batch, leads, 2, *size)
        assert torch.isfinite(y).all()
        assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


@each_kind
@pytest.mark.parametrize("path", ["plain", "function"])
def test_every_parameter_gets_a_gradient(name, options, path, monkeypatch):
    if path == "plain":
        monkeypatch.setattr(ConvLSTM, "_is_fast", lambda *_: False)
    network = a_network(name, hidden_channels=[4, 8, 12], **options)
    _, gradients = learned(network, *inputs(upstream=bool(options)))
    assert [n for n, _ in network.named_parameters() if n not in gradients or not gradients[n].abs().sum() > 0] == []


@each_kind
def test_rolling_out_lead_by_lead_is_the_forecast(name, options):
    network = a_network(name, **options)
    x, forcing, upstream = inputs(upstream=bool(options))
    whole = network(x, forcing, upstream)
    rollout = network.rollout(x, forcing, upstream)
    torch.testing.assert_close(next(rollout), whole[:, 0])
    state = network.encode(x, forcing[:, :3], upstream)
    for lead in range(3):
        state = network.advance(state, forcing[:, 3 + lead])
        torch.testing.assert_close(state.fields_BDHW, whole[:, lead])


@each_kind
@pytest.mark.parametrize("path", ["plain", "function"])
@pytest.mark.parametrize("apart", [1, 2])
def test_windows_that_share_their_times_get_the_forecasts_of_each_alone(name, options, path, apart, monkeypatch):
    if path == "plain":
        monkeypatch.setattr(ConvLSTM, "_is_fast", lambda *_: False)
    network = a_network(name, hidden_channels=[4, 8, 12], **options).eval()
    record, forcing, regions = inputs(batch=1, times=9, upstream=bool(options))

    def windows(of_1NCHW: Tensor, length: int) -> Tensor:
        return of_1NCHW[0].unfold(0, length, apart).movedim(-1, 1)[:3].contiguous()

    x, f, u = windows(record, 3), windows(forcing, 5), [windows(region, 3) for region in regions]
    with torch.no_grad():
        each = torch.cat([network(x[at], f[at], [region[at] for region in u]) for at in torch.arange(3).split(1)])
        together = torch.stack(list(network.rollout(x, f, u, apart)), dim=1)
    torch.testing.assert_close(together, each, rtol=0, atol=1e-5)


@each_kind
def test_a_forecast_knows_nothing_of_what_comes_after(name, options):
    network = a_network(name, **options)
    x, forcing, upstream = inputs(upstream=bool(options))
    whole = network(x, forcing, upstream)
    torch.testing.assert_close(network(x, forcing[:, :5], upstream), whole[:, :2])
    forcing[:, -1] += 1
    torch.testing.assert_close(network(x, forcing, upstream)[:, :2], whole[:, :2])


@named
def test_forecasts_go_on_from_the_fields_that_they_are_given(name):
    network = a_network(name)
    x, forcing, _ = inputs()
    state = network.advance(network.encode(x, forcing[:, :3], ()), forcing[:, 3])
    told = state._replace(fields_BDHW=state.fields_BDHW + 1)
    after, after_told = (network.advance(each, forcing[:, 4]).fields_BDHW for each in (state, told))
    assert torch.equal(after, after_told) != network.feeds_back


@pytest.mark.parametrize(("name", "options"), WITH_UPSTREAM)
def test_upstream_regions_are_read_each_of_them(name, options):
    network = a_network(name, **options)
    x, forcing, upstream = inputs(upstream=True)
    before = network(x, forcing, upstream)
    for index in range(2):
        changed = [u.clone() for u in upstream]
        changed[index][:, 0] += 1
        assert not torch.allclose(network(x, forcing, changed), before)
    with pytest.raises(ValueError, match="1 upstream inputs for 2"):
        network(x, forcing, upstream[:1])


def test_the_settings_offer_the_networks_that_there_are():
    entries = TrainConfig.__dataclass_fields__
    assert entries["model"].metadata["choices"] == tuple(NETWORKS)


# What each of them is


def test_an_untrained_unet_is_persistence():
    x, forcing, _ = inputs()
    y = build("unet", OPTIONS)(x, forcing)
    assert torch.equal(y, x[:, -1:, [0, 2]].expand_as(y))


def test_the_unet_slides_its_window_over_its_own_forecasts():
    """By hand: its forecast is the newest time, the oldest is dropped, and what it does not forecast stays."""
    network = a_network("unet")
    x, forcing, _ = inputs(leads=3)
    window, by_hand = x, []
    for lead in range(3):
        by_hand.append(network(window, forcing[:, lead : lead + 4])[:, 0])
        coming = window[:, -1].clone()
        coming[:, 0] = by_hand[-1][:, 0]
        coming[:, 2] = by_hand[-1][:, 1] * x[:, -1, 3]  # nothing is fed back where its input was missing
        window = torch.cat([window[:, 1:], coming[:, None]], dim=1)
    observed = torch.stack([torch.ones_like(x[:, -1, 3]), x[:, -1, 3]], dim=1)[:, None]
    torch.testing.assert_close(network(x, forcing) * observed, torch.stack(by_hand, dim=1) * observed)


def test_the_unet_forgets_what_lies_before_its_window():
    network = a_network("unet")
    x, forcing, _ = inputs()
    state = network.encode(x, forcing[:, :3], ())
    for lead in range(3):
        assert len(state.earlier) == 2
        state = network.advance(state, forcing[:, 3 + lead])


def by_the_paper(network: Network, x: Tensor, forcing: Tensor) -> Tensor:
    """Shi et al.'s two stacks, layer by layer, with the textbook's cell."""

    def read(cell: ConvLSTM, sequence: Tensor, state: State | None) -> tuple[Tensor, State]:
        weight = side_by_side(cell.input_conv.weight, cell.hidden_conv.weight)
        zeros = torch.zeros(len(x), cell.hidden_channels, *x.shape[-2:], dtype=x.dtype)
        h, c = state or (zeros, zeros)
        return convlstm(sequence, weight, cell.input_conv.bias, h, c, peepholes=cell.peepholes_3K11)

    past, coming = torch.cat([x, forcing[:, :3]], dim=2), forcing[:, 3:]
    hidden = []
    for reader, forecaster in zip(network.encoder, network.forecaster):
        past, state = read(reader, past, None)
        coming, _ = read(forecaster, coming, state)
        hidden.append(coming)
    stacked = torch.cat(hidden, dim=2)
    return torch.nn.functional.conv2d(stacked.flatten(0, 1), network.head.weight, network.head.bias).unflatten(
        0, stacked.shape[:2]
    )


def test_shi2015_is_the_paper_by_the_textbooks_cell():
    network = a_network("shi2015").double()
    for cell in (*network.encoder, *network.forecaster):
        torch.nn.init.normal_(cell.peepholes_3K11)
    x, forcing, _ = inputs()
    torch.testing.assert_close(
        network(x.double(), forcing.double()), by_the_paper(network, x.double(), forcing.double())
    )


def test_shi2015_refuses_upstream_regions():
    with pytest.raises(ConfigError, match="shi2015 reads no upstream regions"):
        build("shi2015", OPTIONS | UPSTREAM)


def test_stretched_upstream_features_lie_corner_to_corner():
    """With weights that pass the second region's features through: a ramp stays a ramp, from edge to edge."""
    fusion = ResampledFusion(1, regions=2)
    torch.nn.init.zeros_(fusion.mix.bias)
    fusion.mix.weight.data = torch.tensor([0.0, 0.0, 1.0]).reshape(1, 3, 1, 1)
    ramp = torch.arange(4.0).expand(1, 1, 2, 4)
    said = fusion(torch.randn(1, 1, 3, 8), [torch.randn(1, 1, 5, 5), ramp])
    assert said.shape == (1, 1, 3, 8)
    assert said[0, 0, 1].tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]


# Ways of computing


@each_kind
@pytest.mark.parametrize("path", ["plain", "function"])
def test_recomputing_learns_the_same_in_less_memory(name, options, path, monkeypatch):
    if path == "plain":
        monkeypatch.setattr(ConvLSTM, "_is_fast", lambda *_: False)
    arguments = inputs(16, 15, leads=4, times=4, upstream=bool(options))
    results, kept = {}, {}
    for recompute in (False, True):
        network = a_network(name, recompute=recompute, dropout=0.3, **options)
        torch.manual_seed(5)
        kept[recompute] = bytes_kept(lambda n=network: n(*arguments), network)
        torch.manual_seed(5)
        results[recompute] = learned(network, *arguments)
    assert_same(results[True], results[False])
    assert kept[True] < 0.85 * kept[False]


def bytes_kept(forward: Callable[[], Tensor], network: Network) -> int:
    """What autograd, and the layers' own functions, keep for the backward pass beside the weights."""
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = forward()
    for node in functions_of(y):
        for part in getattr(node, "kept", ()):
            for tensor in (*part.gates, *part.cells_before):
                if tensor is not None:
                    keep(tensor)
    return sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in weights)


def functions_of(y: Tensor) -> set[Any]:
    """All nodes of the graph behind a tensor."""
    seen, ahead = set(), [y.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            ahead += [following for following, _ in node.next_functions]
    return seen


@each_kind
def test_networks_can_be_exported(name, options):
    network = a_network(name, **options).requires_grad_(False)
    arguments = inputs(leads=2, upstream=bool(options))
    exported = torch.export.export(network, arguments).module()
    torch.testing.assert_close(exported(*arguments), network(*arguments), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "recompute"), [(*kind, False) for kind in KINDS] + [("encoder-forecaster", {}, True)]
)
def test_networks_are_one_graph(name, options, recompute):
    network = a_network(name, recompute=recompute, **options)
    arguments = inputs(leads=2, upstream=bool(options))
    expected = learned(network, *arguments)
    torch._dynamo.reset()
    network.forward = torch.compile(network.forward, fullgraph=True, backend="aot_eager")
    assert_same(learned(network, *arguments), expected)


@pytest.mark.slow
def test_a_compiled_network_learns_the_same_under_the_same_names():
    network = a_network("encoder-forecaster", hidden_channels=[4])
    arguments = inputs(leads=2)
    names, expected = list(network.state_dict()), learned(network, *arguments)
    torch._dynamo.reset()
    compile_forward(network, "default")
    assert list(network.state_dict()) == names
    assert_same(learned(network, *arguments), expected)
    assert "Compiled" in type(network.forward).__name__
    assert network.forward.now is not network.forward.plain  # it was the compiled one


def test_as_many_graphs_are_compiled_as_there_are_lead_times_and_sizes():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    network = torch.nn.Flatten()  # a forward pass without kernels: nothing to wait for
    with torch._dynamo.config.patch(cache_size_limit=4, accumulated_cache_size_limit=4):
        compile_forward(network, "default", lead_counts=2)
        for size in range(2, 18):
            assert network(torch.ones(size, 2, 2)).shape == (size, 4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 16


def test_each_device_says_what_becomes_of_compile():
    cpu = choose_device("cpu")
    assert cpu.compile_mode is None
    assert cpu.compiling().compile_mode == "default"
    assert "torch.compile" in cpu.compiling().reasons[-1]
    # CUDA graphs (reduce-overhead) spoil the gradients that several micro-batches add up.
    assert DevicePolicy(**vars(cpu) | {"device": torch.device("cuda")}).compiling().compile_mode == "default"
    mps = DevicePolicy(**vars(rehearsal_of_mps()) | {"device": torch.device("mps")}).compiling()
    assert mps.compile_mode is None
    assert "no effect" in mps.reasons[-1]


# From settings, and from checkpoints


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(region(days=150, height=6, width=10)[["t2m"]], tmp_path_factory.mktemp("data") / "region.nc")


def checkpoint_of(config: TrainConfig) -> Checkpoint:
    spec = prepare_training(config).spec
    plan = blueprint(config, spec)
    return Checkpoint(config, spec, *plan, dict(build(*plan).named_parameters()), {}, {})


def test_every_setting_of_the_network_reaches_it(data):
    def cells(**settings: Any) -> Network:
        config = TrainConfig(data=(str(data),), hidden_channels=(3,), **settings)
        return build(*blueprint(config, prepare_training(config).spec))

    assert [type(cells(model=name)) for name in NETWORKS] == list(NETWORKS.values())
    upstream = {"include_upstream": True, "target_region": (40.0, 60.0, -4.0, 8.0)}
    assert isinstance(cells(**upstream).fusion, ResampledFusion)
    assert isinstance(cells(upstream_fusion="attention", **upstream).fusion, UpstreamFusion)
    for name in NETWORKS:
        layers = [m for m in cells(model=name, recompute=True).modules() if isinstance(m, ConvLSTM)]
        assert {layer.memory for layer in layers} == {"recompute"}
    pyramids = [m for m in cells(recompute=True, **upstream).modules() if isinstance(m, RecurrentPyramid)]
    assert {cell.memory for pyramid in pyramids for cell in pyramid.cells} == {"recompute"}


def test_a_checkpoint_from_before_an_option_was_there_goes_on(data):
    checkpoint = checkpoint_of(TrainConfig(data=(str(data),), hidden_channels=(3,)))
    ours = blueprint(checkpoint.config, checkpoint.spec)
    del checkpoint.model_options["recompute"]
    assert isinstance(checkpoint.network(), Network)
    assert network_changes(checkpoint, ours) == []


def test_another_network_is_told_from_one_that_may_go_on(data):
    config = TrainConfig(data=(str(data),), hidden_channels=(3,))
    checkpoint = checkpoint_of(config)

    def changes(**settings: Any) -> list[str]:
        return network_changes(checkpoint, blueprint(TrainConfig(**{**vars(config), **settings}), checkpoint.spec))

    assert changes(recompute=True, dropout=0.1, compile=True) == []
    assert changes(model="unet") == ["model encoder-forecaster there, unet here"]
    assert changes(kernel_size=5) == ["kernel_size 3 there, 5 here"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "resnet"}, "--model resnet: there are encoder-forecaster, unet, shi2015"),
        ({"model": "shi2015", "include_upstream": True}, "--model shi2015 reads no upstream regions"),
        ({"upstream_fusion": "sum", "include_upstream": True}, "--upstream-fusion sum: there are attention, resample"),
        ({"upstream_fusion": "attention"}, "--upstream-fusion does nothing without --include-upstream"),
    ],
)
def test_what_a_network_cannot_do_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**settings)


@named
def test_every_network_is_trained_and_forecasts_from_its_checkpoint(name, data, tmp_path):
    options = ["--hidden-channels", "3", "4", "--input-steps", "3", "--lead-steps", "2", "--device", "cpu"]
    options += ["--batch-size", "16"]
    run = tmp_path / "run"
    trained = ["train", "--data", data, "--output-dir", run, "--num-epochs", 1, "--model", name, *options]
    assert main([str(word) for word in trained]) == 0
    assert load_checkpoint(run / "best.pt").model_name == name
    assert f"network      {name}, 3 4 hidden channels" in (run / "training.log").read_text()
    forecast = ["forecast", "--checkpoint", run / "best.pt", "--data", data, "--output", tmp_path / "forecast.nc"]
    assert main([str(word) for word in [*forecast, "--lead-steps", 5]]) == 0


@pytest.mark.slow
def test_without_a_compiler_one_warning_and_on_it_goes(data, tmp_path):
    """In a process of its own: PyTorch remembers which compilers it found."""
    sizes = ["--hidden-channels", "3", "--input-steps", "2", "--lead-steps", "1"]
    sizes += ["--num-epochs", "1", "--batch-size", "16"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "convlstm_wx",
            "train",
            "--data",
            data,
            *sizes,
            "--compile",
            "--output-dir",
            tmp_path / "run",
        ],
        env=os.environ | {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (said,) = (line for line in (done.stdout + done.stderr).splitlines() if "going on without" in line)
    assert said.startswith("--compile: ")
    assert "compiler" in said.removeprefix("--compile: ")
    assert (tmp_path / "run" / "best.pt").exists()


@pytest.mark.slow
def test_a_run_goes_on_compiled_as_it_would_have_without(data, tmp_path):
    def train(*options: object) -> int:
        fixed = ["--hidden-channels", 3, "--input-steps", 2, "--lead-steps", 1, "--device", "cpu", "--dropout", 0]
        fixed += ["--batch-size", 16]
        return main([str(word) for word in ["train", "--data", data, *fixed, *options]])

    first = tmp_path / "first" / "last.pt"
    assert train("--output-dir", first.parent, "--num-epochs", 1) == 0
    torch._dynamo.reset()
    weights = []
    for flag in ("--no-compile", "--compile"):
        folder = tmp_path / flag
        assert train("--resume", first, "--output-dir", folder, "--num-epochs", 2, flag) == 0
        said = (folder / "training.log").read_text()
        assert ("torch.compile" in said) == (flag == "--compile")
        assert "going on without" not in said
        weights.append(load_checkpoint(folder / "last.pt").training["weights"])
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-5)
    assert train("--resume", folder / "last.pt", "--num-epochs", 3, "--no-compile") == 0
