"""Numbers and channels in words."""

import pytest
import xarray as xr

from convlstm_wx.conventions import Channel
from convlstm_wx.text import (
    choose_some,
    describe_levels,
    list_channels,
    list_names,
    merge_levels,
    select_some,
    subject,
    wrap,
)

ELEVEN = (100.0, 150.0, 200.0, 250.0, 300.0, 400.0, 500.0, 700.0, 850.0, 925.0, 1000.0)


def on_levels(*names, levels=ELEVEN):
    return [Channel(name, level) for name in names for level in levels]


def test_a_few_channels_are_listed_by_name():
    assert list_channels([Channel("t2m"), Channel("z", 500.0)]) == "t2m, z@500hPa"
    assert list_channels(on_levels("z", levels=ELEVEN[:8])).count(",") == 7


def test_many_channels_are_listed_by_variable():
    channels = [*on_levels("DPT", "GPH", "TEM", "U", "V"), Channel("precipitation")]
    expected = "DPT GPH TEM U V on 11 levels (100 to 1000 hPa), precipitation: 56 channels"
    assert list_channels(channels) == expected


def test_variables_on_other_levels_are_listed_on_their_own():
    channels = [*on_levels("z"), *on_levels("w", levels=(500.0, 850.0)), Channel("q", 850.0), Channel("t2m")]
    expected = "z on 11 levels (100 to 1000 hPa), w on 2 levels (500, 850 hPa), q@850hPa, t2m: 15 channels"
    assert list_channels(channels) == expected


def test_a_list_of_very_many_variables_ends():
    names = [f"tracer{number}" for number in range(300)]
    listed = list_channels([Channel(name) for name in names])
    assert listed.startswith("tracer0, tracer1, ")
    assert listed.endswith("tracer11 and 288 more: 300 channels")
    assert list_names(names[:12]).endswith("tracer11")


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ([None], ""),
        ([850.0, 500.0], "500, 850 hPa"),
        (list(ELEVEN), "100 to 1000 hPa"),
        ([100.0, 150.0, 200.0, 250.0], "100 to 250 hPa"),
        ([100.0, 150.0, 200.0, 300.0], "100, 150, 200, 300 hPa"),  # 250 hPa is left out
    ],
)
def test_levels_are_a_range_only_where_none_is_left_out(levels, words):
    assert describe_levels(levels, ELEVEN) == words


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        ([Channel("t2m")], "t2m"),
        ([Channel("z", 500.0)], "z@500hPa"),
        (on_levels("z"), "z on 11 levels (100 to 1000 hPa)"),
        ([Channel("t2m"), Channel("tp")], "t2m and tp"),
        ([*on_levels("z", "t"), Channel("tp")], "z, t and tp (23 channels)"),
        (on_levels("DPT", "GPH", "TEM", "U", "V"), "DPT, GPH and 3 more variables (55 channels)"),
    ],
)
def test_a_sentence_names_its_channels_in_a_few_words(channels, words):
    assert subject(channels) == words


def test_levels_of_a_variable_that_say_the_same_share_a_sentence():
    said = [(channel, f"{channel.name} beats persistence.") for channel in on_levels("z", "t")]
    assert merge_levels(said) == [
        "z on 11 levels (100 to 1000 hPa) beats persistence.",
        "t on 11 levels (100 to 1000 hPa) beats persistence.",
    ]
    said[1] = (said[1][0], "z@150hPa is worse than persistence.")
    assert merge_levels(said)[:2] == [
        "z on 10 levels (100, 200, 250, 300, 400, 500, 700, 850, 925, 1000 hPa) beats persistence.",
        "z@150hPa is worse than persistence.",
    ]
    assert merge_levels(said[:3]) == [text for _, text in said[:3]]  # few are told one by one


def test_some_channels_stand_for_all_variables():
    channels = [*on_levels("z", "t"), Channel("tp")]
    names = [[channel.name for channel in choose_some(channels, most)] for most in (2, 4, 6, 99)]
    assert names[0] == ["z@500hPa", "t@500hPa"]
    assert names[1] == ["z@500hPa", "z@850hPa", "t@500hPa", "tp"]
    assert names[2] == ["z@250hPa", "z@500hPa", "z@850hPa", "t@500hPa", "t@850hPa", "tp"]
    assert names[3] == [channel.name for channel in channels]
    scores = xr.Dataset(coords={"channel": [channel.name for channel in channels]})
    assert select_some(scores, 2)["channel"].values.tolist() == names[0]
    assert select_some(scores, 23) is scores


def test_the_nearest_level_stands_in_for_one_that_is_missing():
    assert choose_some(on_levels("z", levels=(10.0, 450.0, 700.0)), 1) == [Channel("z", 450.0)]


def test_lines_are_wrapped_between_words_and_columns_stay():
    assert wrap(["a  b"]) == ["a  b"]
    long = wrap([" ".join(["word"] * 40)], indent=20)
    assert max(map(len, long)) <= 100
    assert long[1].startswith("  word")
    assert wrap(["/a/path/" + "x" * 200]) == ["/a/path/" + "x" * 200]
    told = wrap([f"{'word ' * 30}is divided: --target-region 10 58 118 138 {'--more 1 ' * 20}".strip()])
    assert told[-2].endswith("is divided:")
    assert told[-1].startswith("  --target-region 10 58 118 138 --more 1 --more 1")  # to be pasted
    assert told[-1].count("--more") == 20
