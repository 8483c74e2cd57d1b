"""What changes over a run: the learning rate, the lead times that are learned, how often the truth is told."""

import pytest
import torch

from convlstm_wx.checkpoint import load_checkpoint
from convlstm_wx.cli import main
from convlstm_wx.config import TrainConfig
from convlstm_wx.models.build import NETWORKS
from convlstm_wx.training.schedule import Schedule, plateaus
from convlstm_wx.training.step import forecast_told_the_truth
from tests.region_files import region, write
from tests.test_training_parts import a_learner, batches_of

FEEDING_BACK = [name for name, network in NETWORKS.items() if network.feeds_back]


# The schedule


def test_the_curriculum_begins_with_one_lead_and_reaches_all_evenly():
    schedule = Schedule(TrainConfig(lead_steps=4, curriculum_epochs=3, num_epochs=5), steps_per_epoch=2)
    assert [schedule.lead_steps(step) for step in range(10)] == [1, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    assert Schedule(TrainConfig(lead_steps=4), steps_per_epoch=2).lead_steps(0) == 4


def test_the_share_of_truth_falls_to_nothing():
    schedule = Schedule(TrainConfig(scheduled_sampling=0.8, num_epochs=2), steps_per_epoch=2)
    assert [schedule.truth_share(step) for step in range(5)] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0])
    assert Schedule(TrainConfig(num_epochs=1), steps_per_epoch=2).truth_share(0) == 0


@pytest.mark.parametrize(
    ("losses", "count"),
    [
        ([], 0),
        ([3, 2, 1], 0),
        ([1, 1], 0),
        ([1, 1, 2], 1),
        ([1, 2, 3, 2, 3], 2),
        ([1, 2, 0.5, 0.6, 0.4, 0.5, 0.5], 1),
    ],
)
def test_a_plateau_is_two_epochs_without_a_better_loss(losses, count):
    assert plateaus(losses, patience=2) == count


def test_with_plateaus_the_learning_rate_warms_up_and_stays_until_one():
    config = TrainConfig(schedule="plateau", plateau_factor=0.1, plateau_patience=1, learning_rate=2.0, num_epochs=10)
    schedule = Schedule(config, steps_per_epoch=4)  # 5 % of 40 steps are a warm-up of two
    assert [schedule.learning_rate(step, []) for step in range(4)] == [1, 2, 2, 2]
    assert schedule.learning_rate(39, [1.0, 1.0, 1.0]) == pytest.approx(0.02)


# Some of the lead times


def test_the_first_leads_of_a_batch_are_all_that_is_rolled_out():
    (batch,) = batches_of([3])
    batch = batch._replace(emphasis_BLDHW=torch.rand_like(batch.y_BLDHW))
    short = batch.first_leads(1)
    assert short.forcing_BSFHW.shape[1] == batch.x_BTCHW.shape[1] + 1
    assert torch.equal(short.y_BLDHW, batch.y_BLDHW[:, :1])
    assert torch.equal(short.valid_BLDHW, batch.valid_BLDHW[:, :1])
    assert torch.equal(short.emphasis_BLDHW, batch.emphasis_BLDHW[:, :1])
    assert torch.equal(short.x_BTCHW, batch.x_BTCHW)
    learner = a_learner()
    assert learner.network(short.x_BTCHW, short.forcing_BSFHW).shape[1] == 1


def test_micro_batches_teach_the_same_with_one_lead_too():
    whole, parts = a_learner(), a_learner()
    whole.learn([batch.first_leads(1) for batch in batches_of([8])], 1e-2)
    parts.learn([batch.first_leads(1) for batch in batches_of([2, 2, 2, 2])], 1e-2)
    for a, b in zip(whole.network.parameters(), parts.network.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


# Telling the truth


@pytest.mark.parametrize("network", FEEDING_BACK)
def test_never_told_the_truth_a_network_forecasts_as_always(network):
    network, (batch,) = a_learner(network=network).network, batches_of([3])
    told = forecast_told_the_truth(network, batch.x_BTCHW, batch, 0.0)
    assert torch.equal(told, network(batch.x_BTCHW, batch.forcing_BSFHW))


@pytest.mark.parametrize("network", FEEDING_BACK)
def test_told_the_truth_an_untrained_network_repeats_it_where_there_is_one(network):
    network, (batch,) = a_learner(network=network).network, batches_of([3])
    torch.nn.init.zeros_(network.head.weight)  # persistence
    told = forecast_told_the_truth(network, batch.x_BTCHW, batch, 1.0)
    last = batch.x_BTCHW[:, -1]
    assert torch.equal(told[:, 0], last)
    assert torch.equal(told[:, 1], torch.where(batch.valid_BLDHW[:, 0] > 0, batch.y_BLDHW[:, 0], last))


@pytest.mark.parametrize("network", FEEDING_BACK)
def test_what_a_network_is_told_changes_what_it_forecasts_next(network):
    """Not only by the difference of what its increments are added to."""
    network, (batch,) = a_learner(network=network).network, batches_of([3])
    batch = batch._replace(valid_BLDHW=torch.ones_like(batch.valid_BLDHW))
    alone = network(batch.x_BTCHW, batch.forcing_BSFHW)
    told = forecast_told_the_truth(network, batch.x_BTCHW, batch, 1.0)
    assert not torch.allclose(told[:, 1] - batch.y_BLDHW[:, 0], alone[:, 1] - alone[:, 0])


def test_each_window_is_told_by_itself():
    network, (batch,) = a_learner().network, batches_of([400])
    torch.nn.init.zeros_(network.head.weight)
    torch.manual_seed(0)
    batch = batch._replace(valid_BLDHW=torch.ones_like(batch.valid_BLDHW))
    told = forecast_told_the_truth(network, batch.x_BTCHW, batch, 0.25)[:, 1] == batch.y_BLDHW[:, 0]
    share = told.double().mean(dim=(1, 2, 3))
    assert set(share.tolist()) == {0, 1}
    assert 0.2 < float(share.mean()) < 0.3


# The real command

LEARNING = ["--curriculum-epochs", "2", "--scheduled-sampling", "0.5", "--schedule", "plateau"]


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Trains quick epochs; returns the last checkpoint, or the exit code if there is none."""
    folder = tmp_path_factory.mktemp("curriculum")
    path = write(region(days=150, height=5, width=6)[["t2m"]], folder / "region.nc")
    short = ["--input-steps", "3", "--lead-steps", "3", "--hidden-channels", "4", "8", "--checkpoint-frequency", "1"]
    short += ["--batch-size", "16"]

    def run(name: str, *options: str):
        arguments = ["--data", str(path), "--output-dir", str(folder / name), "--device", "cpu", *short, *options]
        code = main(["train", *arguments])
        return load_checkpoint(folder / name / "last.pt") if code == 0 else code

    run.folder = folder
    return run


def test_each_option_changes_what_is_learned(train):
    options = [[], ["--curriculum-epochs", "1"], ["--scheduled-sampling", "0.5"], ["--schedule", "plateau"]]
    heads = [train("".join(each) or "none", "--num-epochs", "1", *each).weights["head.weight"] for each in options]
    assert not any(torch.equal(heads[0], head) for head in heads[1:])


def test_a_network_that_is_deaf_to_its_own_forecast_is_not_told_the_truth(train, capsys):
    assert train("deaf", "--model", "shi2015", "--scheduled-sampling", "0.5") == 2
    assert "--scheduled-sampling: shi2015 never sees its own forecast; leave it out" in capsys.readouterr().err
    assert not (train.folder / "deaf").exists()


def test_compiling_what_training_does_not_call_is_refused(train, capsys):
    assert train("compiled", "--compile", "--scheduled-sampling", "0.5") == 2
    assert "--compile has no effect on training with --scheduled-sampling; drop one" in capsys.readouterr().err
    assert not (train.folder / "compiled").exists()


def test_validation_is_always_at_all_lead_times(train):
    rows = [
        train(name, "--num-epochs", "1", "--learning-rate", "0", *options).training["progress"]["history"][0]
        for name, options in (("all", []), ("curriculum", ["--curriculum-epochs", "1"]))
    ]
    assert rows[0]["validation_loss"] == rows[1]["validation_loss"]
    assert rows[0]["persistence_loss"] == rows[1]["persistence_loss"]
    assert rows[0]["train_loss"] > rows[1]["train_loss"]  # the first leads are the easy ones


def test_a_plateau_halves_the_learning_rate(train):
    # So small a rate changes nothing: each epoch but the first is a plateau of its own.
    options = ["--num-epochs", "4", "--learning-rate", "1e-30", "--schedule", "plateau", "--plateau-patience", "1"]
    history = train("plateau", *options).training["progress"]["history"]
    assert [row["learning_rate"] for row in history] == pytest.approx([1e-30, 1e-30, 5e-31, 2.5e-31], rel=1e-6, abs=0)


def test_a_resumed_run_goes_on_exactly_within_all_of_it(train, capsys):
    whole = train("whole", "--num-epochs", "3", *LEARNING)
    said = capsys.readouterr().out
    for line in ("times 0.5 after 2 epochs", "1 lead step at first, all 3 after 2 epochs", "probability 0.5 at first"):
        assert line in said
    resumed = train("resumed", "--resume", str(train.folder / "whole/epoch_0001.pt"))
    ours, theirs = whole.training["weights"], resumed.training["weights"]
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
