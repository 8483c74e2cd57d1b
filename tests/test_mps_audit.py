"""The operator audit: what we ship passes, and whatever MPS cannot do is found."""

import importlib.util
from dataclasses import field
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from convlstm_wx.commands import auditing
from convlstm_wx.commands.auditing import Case, audit, cases, main, source_audit, untried
from convlstm_wx.device import rehearsal_of_mps
from convlstm_wx.models.build import NETWORKS
from convlstm_wx.models.forecaster import EncoderForecaster
from convlstm_wx.training import rehearsal
from convlstm_wx.training.mps_facts import (
    SKIP_LISTS,
    has_mps_kernel,
    has_route,
    is_composite,
    parse_operators,
    parse_skips,
    site_packages,
    skips,
)
from convlstm_wx.training.mps_rules import findings, source_findings
from convlstm_wx.training.recording import recording
from convlstm_wx.training.rehearsal import as_on_mps
from tests.test_training_parts import a_learner, batches_of

ROOT = Path(__file__).parents[1]


def rules_broken_by(action) -> set[str]:
    with recording() as kept:
        action()
    return {finding.rule for finding in findings(kept)}


# What we ship


@pytest.fixture(scope="module")
def shipped():
    return audit(list(cases()))


@pytest.mark.slow
def test_every_network_and_option_has_a_way_to_run_on_mps(shipped):
    found = [f"{finding} (first with: {case})" for finding, case in shipped.found.items()]
    assert [line for line in found if "[scattered_gradient]" not in line] == []


@pytest.mark.slow
def test_every_gradient_comes_back_contiguous(shipped):
    assert [str(finding) for finding in shipped.found if finding.rule == "scattered_gradient"] == []


@pytest.mark.slow
def test_the_audit_saw_every_network_and_a_whole_training(shipped):
    assert shipped.networks == set(NETWORKS.values())
    told = {name.partition(".")[0].removeprefix("aten::") for name in shipped.operators}
    assert told >= {
        *("convolution", "convolution_backward", "upsample_bilinear2d_backward", "bmm"),  # the network
        *("normal_", "bernoulli_", "linalg_vector_norm", "addcdiv_", "lerp_"),  # noise, dropout, clipping, AdamW, EMA
    }
    assert not told & {"mkldnn_convolution", "_scaled_dot_product_flash_attention_for_cpu"}  # ways of the CPU only


def test_every_setting_that_may_change_an_operator_is_tried():
    assert untried() == []
    tried = {name for case in cases() for name in case.settings}
    assert tried >= {"model", "upstream_fusion", "recompute"}
    assert tried >= {"hidden_channels", "kernel_size", "dropout", "input_noise", "ema_decay", "gradient_clip_norm"}
    assert {case.use_amp for case in cases()} == {case.upstream for case in cases()} == {False, True}
    assert {case.settings.get("model") for case in cases() if case.use_amp} >= NETWORKS.keys() - {"encoder-forecaster"}


def test_every_choice_of_a_setting_is_tried():
    metadata = {"group": "Training", "kind": str, "low": None, "choices": ("mse", "mae", "huber")}
    entry = field(default="mse", metadata=metadata)
    entry.name = "loss"
    assert auditing.values_of(entry) == ("mae", "huber")


def test_our_source_says_nothing_that_a_mac_refuses():
    assert [str(finding) for finding in source_audit()] == []


def test_the_rehearsal_makes_the_choices_of_mps():
    policy = rehearsal_of_mps(use_amp=True)
    assert policy.device.type == "cpu"
    assert (policy.channels_last, policy.pin_memory, policy.fused_optimizer) == (False, False, False)
    assert policy.amp_dtype is torch.bfloat16


# Whatever is planted is found


def unsupported(x):
    torch.linalg.svdvals(x[0, 0, 0].detach())


def too_wide(x):
    x.double().sum()


def scattered(x):
    functional.conv2d(x[:, 1], torch.ones(1, x.shape[2], 1, 1))


PLANTS = [(unsupported, "no_route"), (too_wide, "too_wide"), (scattered, "scattered_convolution")]


@pytest.mark.parametrize(("plant", "rule"), PLANTS)
def test_what_is_planted_into_the_network_makes_the_audit_fail(monkeypatch, capsys, plant, rule):
    true_forward = EncoderForecaster.forward

    def forward(self, x_BTCHW, *rest):
        plant(x_BTCHW)
        return true_forward(self, x_BTCHW, *rest)

    monkeypatch.setattr(EncoderForecaster, "forward", forward)
    monkeypatch.setattr(auditing, "cases", lambda: iter([Case()]))
    assert main([]) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if f"[{rule}]" in line)
    assert "EncoderForecaster" in line
    assert "first with: defaults" in line


def test_nothing_planted_nothing_found(monkeypatch, capsys):
    monkeypatch.setattr(auditing, "cases", lambda: (Case({"model": name}) for name in NETWORKS))
    assert main([]) == 0
    assert capsys.readouterr().out == ""


def test_the_script_is_the_same_audit():
    path = ROOT / "scripts" / "audit_mps_operators.py"
    spec = importlib.util.spec_from_file_location("audit_mps_operators", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main is main


def a_half_convolution():
    x = torch.randn(1, 2, 4, 4, dtype=torch.float16, requires_grad=True)
    functional.conv2d(x, torch.ones(2, 2, 3, 3, dtype=torch.float16)).sum().backward()


def growth_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        functional.interpolate(torch.ones(1, 1, 2, 2), size=(4, 4), mode="bilinear")


def attention_of_a_view():
    q = torch.ones(1, 4, 2, 8).transpose(1, 2)
    functional.scaled_dot_product_attention(q, q, q)


def many_shapes():
    conv = nn.Conv2d(1, 1, 1)
    for width in range(1, 20):
        conv(torch.ones(1, 1, 2, width))


def smooth_growth():
    x = torch.ones(1, 1, 4, 4, requires_grad=True)
    functional.interpolate(x, size=(2, 2), mode="bilinear", antialias=True).sum().backward()


def a_transposed_gradient():
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    (nn.Conv2d(2, 3, 1)(x).flatten(2).transpose(1, 2) * torch.ones(1, 16, 3)).sum().backward()


@pytest.mark.parametrize(
    ("action", "rule"),
    [
        (smooth_growth, "no_route"),
        (lambda: torch.linalg.eigh(torch.eye(3)), "no_route"),
        (lambda: torch.ops.prims.sin(torch.ones(2)), "no_route"),
        (a_half_convolution, "skipped_by_pytorch"),
        (lambda: functional.conv3d(torch.ones(1, 1, 3, 3, 3), torch.ones(1, 1, 1, 1, 1)), "layers_to_avoid"),
        (lambda: nn.ConvTranspose2d(1, 1, 2).bfloat16()(torch.ones(1, 1, 2, 2).bfloat16()), "layers_to_avoid"),
        (lambda: nn.BatchNorm2d(2)(torch.randn(3, 2, 4, 4)), "layers_to_avoid"),
        (lambda: functional.adaptive_avg_pool2d(torch.ones(1, 1, 5, 5), 2), "uneven_pooling"),
        (growth_under_autocast, "half_growth"),
        (attention_of_a_view, "scattered_attention"),
        (lambda: torch.ones(2).to("cpu", non_blocking=True), "waiting_copies"),
        (lambda: functional.conv2d(torch.ones(65536, 1, 1, 1), torch.ones(1, 1, 1, 1)), "large_batch"),
        (many_shapes, "changing_shapes"),
        (a_transposed_gradient, "scattered_gradient"),
        (lambda: functional.conv2d(torch.ones(1, 2, 3, 3), torch.ones(2, 3, 1, 1).transpose(0, 1)), "scattered_"),
    ],
)
def test_every_rule_finds_its_trap(action, rule):
    assert any(found.startswith(rule) for found in rules_broken_by(action))


@pytest.mark.parametrize(
    "action",
    [
        lambda: nn.GroupNorm(2, 4)(torch.randn(2, 4, 5, 5)),
        lambda: functional.max_pool2d(torch.randn(2, 4, 5, 5, requires_grad=True), 2).sum().backward(),
        lambda: functional.adaptive_avg_pool2d(torch.ones(1, 1, 4, 4), 2),
        lambda: functional.dropout(torch.ones(3), 0.5),
        lambda: functional.interpolate(torch.ones(1, 1, 2, 2), scale_factor=2),
    ],
)
def test_layers_that_are_fine_are_left_alone(action):
    assert rules_broken_by(action) == set()


def test_the_gradient_scaler_may_divide_in_float64():
    """It does so everywhere but on MPS."""
    parameter = nn.Parameter(torch.ones(2))
    optimizer, scaler = torch.optim.AdamW([parameter]), torch.amp.GradScaler("cpu")

    def step():
        scaler.scale(parameter.sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()

    assert "too_wide" not in rules_broken_by(step)


# The rehearsal


def test_networks_believe_to_be_on_mps_and_what_they_make_is_on_the_cpu(monkeypatch):
    conv, x = nn.Conv2d(1, 1, 1), torch.ones(1, 1, 2, 2)
    with as_on_mps():
        assert x.device.type == "cpu"  # this file is not of `models`
    monkeypatch.setattr(rehearsal, "MODELS", Path(__file__).parent)
    with recording(), as_on_mps():
        assert x.device.type == "mps"
        made = (torch.ones(2, device=x.device), torch.linspace(0, 1, 2, device=x.device), x.to(x.device))
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            assert torch.is_autocast_enabled(x.device.type)
            assert torch.get_autocast_dtype(x.device.type) is torch.bfloat16
            assert conv(x).dtype is torch.bfloat16
            with torch.autocast(x.device.type, enabled=False):
                assert conv(x).dtype is torch.float32
    assert {tensor.device.type for tensor in (x, *made)} == {"cpu"}
    assert not torch.is_autocast_enabled("cpu")


# Recording


def test_recording_changes_no_number():
    plain, watched = a_learner(dtype=torch.float32), a_learner(dtype=torch.float32)
    batches = batches_of([4, 2], torch.float32)
    plain.learn(batches, 1e-2)
    with recording():
        watched.learn(batches, 1e-2)
    assert all(torch.equal(a, b) for a, b in zip(plain.network.parameters(), watched.network.parameters()))


def test_composite_operators_are_opened():
    with recording() as kept:
        torch._foreach_lerp_([torch.ones(2)], [torch.zeros(2)], 0.5)
    assert {"aten::_foreach_lerp_.Scalar", "aten::lerp_.Scalar"} <= {call.name for call in kept.calls}


def test_a_gradient_is_told_by_the_module_that_it_belongs_to():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Sequential(nn.SiLU(), nn.Conv2d(2, 1, 1)))
    with recording() as kept:
        network(torch.ones(1, 1, 2, 2)).sum().backward()
    places = [call.where for call in kept.calls if call.last_name == "convolution_backward"]
    assert [place.partition(",")[0] for place in places] == ["Sequential.1.1", "Sequential.0"]
    assert all("gradient" in place for place in places)


# PyTorch's own files


def test_the_table_of_operators_is_read_as_it_is_written():
    table = parse_operators(
        [
            "- func: tanh(Tensor self) -> Tensor",
            "  structured_delegate: tanh.out",
            "  dispatch:",
            "    SparseCPU, SparseMPS: tanh_sparse",
            "  tags: [core, pointwise]",
            "- func: tanh.out(Tensor self, *, Tensor(a!) out) -> Tensor(a!)",
            "  dispatch:",
            "    CPU, CUDA, MPS: tanh_out",
            "  autogen: tanh.made",
        ]
    )
    assert table["tanh"].delegate == "tanh.out"
    assert "MPS" not in table["tanh"].backends
    assert table["tanh.out"].backends == {"CPU", "CUDA", "MPS"}
    assert table["tanh.made"].backends == {"CompositeExplicitAutograd"}


@pytest.mark.parametrize("name", ["_linalg_svd", "_linalg_eigh", "_upsample_bilinear2d_aa_backward", "no_such_thing"])
def test_known_gaps_have_no_route(name):
    assert not has_route(name)


@pytest.mark.parametrize("name", ["add.Tensor", "native_group_norm", "convolution", "convolution_backward", "silu"])
def test_known_kernels_have_one(name):
    assert has_route(name)


def test_a_composite_is_told_from_a_kernel():
    assert is_composite("_foreach_lerp_.Scalar")
    assert not has_mps_kernel("_foreach_lerp_.Scalar")
    assert not is_composite("tanh")


def test_lists_of_skipped_operators_are_read_with_dtypes_and_without_harmless_entries():
    text = (
        "def grad_modifier(ops):\n    SKIPLIST_GRAD = {'nn.functional.conv2d': [torch.float16], 'item': None}\n"
        "def error_inputs(ops):\n    XFAILLIST = {'add': None}\n"
        "def modifier(ops):\n    X_XFAILLIST: dict = {'linalg.eigh': None}\n"
    )
    found = parse_skips(text)
    assert set(found) == {"conv2d", "linalg_eigh"}
    (skip,) = found["conv2d"]
    assert (skip.dtypes, skip.in_backward) == (frozenset({"float16"}), True)
    assert not skip.concerns({"float32"})
    assert found["linalg_eigh"][0].concerns({"float32"})


def test_this_pytorch_brings_its_lists():
    assert (site_packages() / SKIP_LISTS).is_file()
    assert len(skips()) > 100


@pytest.mark.parametrize(
    "line",
    [
        "clip_grad_norm_(p, 1.0, foreach=True)",
        "s = torch.amp.GradScaler()",
        "torch.cuda.amp.autocast()",
        "torch.jit.script(network)",
        "os.environ['PYTORCH_MPS_HIGH_WATERMARK_RATIO'] = '0.0'",
    ],
)
def test_lines_that_a_mac_refuses_are_found(tmp_path, line):
    path = tmp_path / "some.py"
    path.write_text(f"'''foreach=True GradScaler()'''\n{line}\nGradScaler('mps')\n")
    (finding,) = source_findings(path, "some.py")
    assert finding.where == "some.py:2"
