"""Checkpoints: whole or not at all, and refused when they are not ours."""

import os
import pickle

import pytest
import torch

from convlstm_wx.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, versions
from convlstm_wx.config import TrainConfig
from convlstm_wx.data.inputs import prepare_training
from convlstm_wx.errors import CheckpointError
from convlstm_wx.files import replacing
from convlstm_wx.models.build import build
from convlstm_wx.training.blueprint import blueprint
from convlstm_wx.training.saving import Progress
from tests.region_files import region, write


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    path = write(region(days=60), tmp_path_factory.mktemp("data") / "region.nc")
    config = TrainConfig(data=(str(path),), hidden_channels=(4, 8), input_steps=2, lead_steps=2)
    spec = prepare_training(config).spec
    plan = blueprint(config, spec)
    weights = dict(build(*plan).named_parameters())
    return Checkpoint(config, spec, *plan, weights, {"progress": vars(Progress(global_step=3))}, versions())


def test_save_and_load_give_the_same(checkpoint, tmp_path):
    save_checkpoint(tmp_path / "best.pt", checkpoint)
    again = load_checkpoint(tmp_path / "best.pt")
    assert again.config == checkpoint.config
    assert again.spec.split == checkpoint.spec.split
    assert again.training == {"progress": vars(Progress(global_step=3))}
    for name, weight in again.network().named_parameters():
        assert torch.equal(weight, checkpoint.weights[name])
    assert os.listdir(tmp_path) == ["best.pt"]


def test_a_failed_write_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


class Evil:
    def __reduce__(self):
        return (os.system, ("echo run",))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "no such checkpoint; training writes best.pt"),
        (lambda path: path.write_bytes(path.read_bytes()[:-2000]), "truncated, damaged or another program's"),
        (lambda path: path.write_bytes(b""), "truncated, damaged or another program's"),
        (lambda path: path.write_text("hello"), "truncated, damaged or another program's"),
        (lambda path: path.write_bytes(pickle.dumps(Evil())), "truncated, damaged or another program's"),
        (lambda path: torch.save({"state_dict": {}}, path), "not a checkpoint of convlstm_wx"),
        (lambda path: torch.save([1, 2], path), "not a checkpoint of convlstm_wx"),
        (lambda path: _change(path, format_version=99), "newer than this version reads"),
        (lambda path: _change(path, spec={}), "an entry is missing or malformed"),
        (lambda path: _change(path, config={"no_such": 1}), "unknown setting 'no_such'"),
    ],
)
def test_what_is_not_our_checkpoint_is_refused_in_one_line(checkpoint, tmp_path, spoil, message):
    path = tmp_path / "best.pt"
    save_checkpoint(path, checkpoint)
    spoil(path)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def _change(path, **entries):
    contents = torch.load(path, weights_only=True)
    torch.save(contents | entries, path)
