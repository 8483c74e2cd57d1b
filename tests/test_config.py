"""Settings: checked at once, the same in JSON, TOML and on the command line."""

import json

import pytest

from convlstm_wx.config import TrainConfig
from convlstm_wx.errors import ConfigError


def test_settings_survive_json():
    config = TrainConfig(
        data=("a.nc", "b.nc"),
        hidden_channels=(8, 16, 32),
        target_region=(40.0, 55.0, 0.0, 14.5),
        include_upstream=True,
        upstream_region=((40.0, 55.0, -20.0, 0.0),),
    )
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_whole_number_may_stand_for_a_real_one_and_one_name_for_a_list():
    config = TrainConfig.from_dict({"learning-rate": 1, "variables": "t2m", "levels": [850]})
    assert (config.learning_rate, config.variables, config.levels) == (1.0, ("t2m",), (850.0,))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"epochs": 3}, "unknown setting 'epochs'; known are data, variables"),
        ({"num_epochs": 0}, "--num-epochs 0: must be at least 1, or auto"),
        ({"num_epochs": 1.5}, "num_epochs: expected int, found 1.5"),
        ({"num_epochs": True}, "num_epochs: expected int, found True"),
        ({"hidden_channels": []}, "--hidden-channels needs at least one number"),
        ({"hidden_channels": [8, 0]}, "--hidden-channels 0: must be at least 1"),
        ({"kernel_size": 4}, "--kernel-size 4: must be odd"),
        ({"kernel_size": 9}, "--kernel-size 9: must be odd and at most 7"),
        ({"dropout": 1.0}, "--dropout 1: must be below 1"),
        ({"learning_rate": float("nan")}, "--learning-rate nan: must be at least 0"),
        ({"target_region": [1, 2, 3]}, "expected [lat_min, lat_max, lon_min, lon_max], found [1, 2, 3]"),
        ({"upstream_region": [[1, 2, 3, 4]]}, "--upstream-region does nothing without --include-upstream"),
        ({"use_amp": "yes"}, "use_amp: expected bool, found 'yes'"),
        ({"loss": "rmse"}, "--loss rmse: there are mse, mae, huber, log-cosh"),
        ({"loss": "huber", "huber_delta": 0}, "--huber-delta 0: must be above 0"),
        ({"huber_delta": 2}, "--huber-delta does nothing without --loss huber"),
        ({"schedule": "linear"}, "--schedule linear: there are cosine, plateau"),
        ({"plateau_patience": 3}, "--plateau-patience does nothing without --schedule plateau"),
        ({"schedule": "plateau", "plateau_factor": 1}, "--plateau-factor 1: must be above 0 and below 1"),
        ({"schedule": "plateau", "plateau_patience": 0}, "--plateau-patience 0: must be at least 1"),
        ({"curriculum_epochs": 9, "num_epochs": 8}, "--curriculum-epochs 9: the run has 8 epochs"),
        ({"curriculum_epochs": 2, "lead_steps": 1}, "--curriculum-epochs does nothing with one lead time"),
        ({"scheduled_sampling": 0.5, "lead_steps": 1}, "--scheduled-sampling does nothing with one lead time"),
        ({"scheduled_sampling": 1.5}, "--scheduled-sampling 1.5: a probability is at most 1"),
        ({"variable_weights": ["t2m"]}, "--variable-weights t2m: write it as t2m=2, with a weight of at least 0"),
        ({"variable_weights": ["t2m=nan"]}, "--variable-weights t2m=nan: write it as t2m=2"),
        ({"variable_weights": ["t2m=-1"]}, "--variable-weights t2m=-1: write it as t2m=2"),
        ({"variable_weights": ["t2m=1", "t2m=2"]}, "--variable-weights t2m=2: 't2m' has a weight already"),
        ({"rain_weights": ["5"]}, "--rain-weights 5: write it as 5=2"),
        ({"rain_weights": ["much=2"]}, "--rain-weights much=...: a threshold is a number of mm above 0"),
        ({"rain_weights": ["0=2"]}, "--rain-weights 0=...: a threshold is a number of mm above 0"),
    ],
)
def test_a_bad_setting_is_named(entries, message):
    with pytest.raises(ConfigError) as error:
        TrainConfig.from_dict(entries)
    assert message in str(error.value)
