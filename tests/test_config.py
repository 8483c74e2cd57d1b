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
        ({"num_epochs": 0}, "--num-epochs 0: must be at least 1"),
        ({"num_epochs": 1.5}, "num_epochs: expected int, found 1.5"),
        ({"num_epochs": True}, "num_epochs: expected int, found True"),
        ({"hidden_channels": []}, "--hidden-channels needs at least one number"),
        ({"hidden_channels": [8, 0]}, "--hidden-channels 0: must be at least 1"),
        ({"kernel_size": 4}, "--kernel-size 4: must be odd"),
        ({"dropout": 1.0}, "--dropout 1: must be below 1"),
        ({"learning_rate": float("nan")}, "--learning-rate nan: must be at least 0"),
        ({"target_region": [1, 2, 3]}, "expected [lat_min, lat_max, lon_min, lon_max], found [1, 2, 3]"),
        ({"upstream_region": [[1, 2, 3, 4]]}, "--upstream-region does nothing without --include-upstream"),
        ({"use_amp": "yes"}, "use_amp: expected bool, found 'yes'"),
    ],
)
def test_a_bad_setting_is_named(entries, message):
    with pytest.raises(ConfigError) as error:
        TrainConfig.from_dict(entries)
    assert message in str(error.value)
