"""The page in a real browser: it opens without an error, its maps move, it fits a phone, and nothing is fetched."""

import asyncio
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.data.regions import Grid
from convlstm_wx.report.card import Card
from convlstm_wx.report.page import write_page
from convlstm_wx.verification.evaluate import evaluate
from convlstm_wx.verification.summary import verdicts
from tests.weather import times, travelling_waves

aiohttp = pytest.importorskip("aiohttp")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
PATIENCE_S = 60

SHOWN = """(id => {
  const viewer = document.getElementById(id);
  const fields = [...viewer.querySelectorAll(".field")];
  return { moment: viewer.querySelector(".moment").textContent, sources: fields.map(field => field.currentSrc),
           texts: fields.map(field => field.alt), ticks: viewer.querySelector(".ticks").textContent,
           drawn: fields.every(field => field.complete && field.naturalWidth > 300) };
})"""


class Tab:
    """One page in a headless browser, driven through the DevTools protocol."""

    def __init__(self, folder: Path):
        self.events: list[dict[str, Any]] = []
        self._loop = asyncio.new_event_loop()
        self._numbers = itertools.count(1)
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        self._process = subprocess.Popen(
            [*command, "--no-first-run", f"--user-data-dir={folder}", "about:blank"], stderr=subprocess.PIPE, text=True
        )
        told = (re.search(r"listening on ws://([^/]+)/", line) for line in self._process.stderr)
        address = next(found for found in told if found)[1]
        self._session, self._socket = self._wait(self._connect(address))
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def _wait(self, coroutine: Any) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(coroutine, PATIENCE_S))

    async def _connect(self, address: str) -> tuple[Any, Any]:
        session = aiohttp.ClientSession()
        async with session.get(f"http://{address}/json") as answer:
            pages = [entry for entry in await answer.json() if entry["type"] == "page"]
        return session, await session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask for something, and wait for the answer."""
        return self._wait(self._ask(next(self._numbers), method, params))

    async def _ask(self, number: int, method: str, params: dict[str, Any]) -> dict[str, Any]:
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            message = json.loads((await self._socket.receive()).data)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    async def _until(self, method: str) -> None:
        while not self.told(method):
            self.events.append(json.loads((await self._socket.receive()).data))

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, page: Path) -> None:
        """Load a page with its images."""
        self.events.clear()
        self.send("Page.navigate", url=page.as_uri())
        self._wait(self._until("Page.loadEventFired"))

    def press(self, key: str) -> None:
        """A key on the keyboard."""
        code = {"ArrowRight": 39, "End": 35, "ArrowDown": 40}[key]
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)
        self.run("Promise.all([...document.querySelectorAll('.field')].map(field => field.decode())).then(() => 1)")

    def told(self, method: str) -> list[dict[str, Any]]:
        """What the browser reported of one kind since the page was opened."""
        return [event["params"] for event in self.events if event["method"] == method]

    def close(self) -> None:
        """End the browser."""
        self._wait(self._socket.close())
        self._wait(self._session.close())
        self._process.terminate()
        self._process.wait(PATIENCE_S)
        self._loop.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """Two variables, three lead times."""
    at = times("2000-01-01", "2002-01-01")
    waves = [travelling_waves(at.size, 14, 20, seed=seed) for seed in (0, 1)]
    dims, places = ("time", "lat", "lon"), {"lat": np.linspace(40, 60, 14), "lon": np.linspace(-20, 10, 20)}
    truth = xr.Dataset(
        {
            "t2m": (dims, 280 + 5 * waves[0], {"units": "K"}),
            "msl": (dims, 101_000 + 500 * waves[1], {"units": "Pa"}),
        },
        {"time": at, **places},
    )
    inits, leads = at[560:640], np.arange(1, 4) * np.timedelta64(24, "h").astype("timedelta64[ns]")
    forecast = truth.sel(time=xr.DataArray(np.add.outer(inits, leads), dims=("init_time", "lead_time")))
    forecast = forecast.drop_vars("time").assign_coords(init_time=inits, lead_time=leads)
    forecast = forecast * (1 + np.random.default_rng(2).normal(0, 0.01, (80, 3, 14, 20)))
    for name in truth:
        forecast[name].attrs = truth[name].attrs
    scores = evaluate(forecast, truth, at[:500], baselines=["persistence"])
    return write_page(
        tmp_path_factory.mktemp("page") / "report.html",
        title="A page",
        verdicts=verdicts(scores),
        scores=scores,
        forecast=forecast,
        truth=truth,
        card=Card(
            {"Data": "waves"}, {"target": Grid.from_dataset(truth)}, {"training": [("2000-01-01", "2001-05-14")]}
        ),
    )


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Tab]:
    tab = Tab(tmp_path_factory.mktemp("profile"))
    yield tab
    tab.close()


@pytest.fixture
def tab(browser, page) -> Tab:
    """The page, freshly opened."""
    browser.open(page)
    return browser


def shown(tab: Tab, viewer: str = "forecasts") -> dict[str, Any]:
    return tab.run(f"{SHOWN}('{viewer}')")


def test_page_opens_without_an_error_and_fetches_nothing(tab, page):
    tab.run("1")
    assert not tab.told("Runtime.exceptionThrown")
    assert not tab.told("Log.entryAdded")
    assert not tab.told("Runtime.consoleAPICalled")
    asked = [event["request"]["url"] for event in tab.told("Network.requestWillBeSent")]
    assert page.as_uri() in asked
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
    assert [url for url in asked if url.startswith("file:")] == [page.as_uri()]
    assert tab.run("[...document.images].every(image => image.naturalWidth > 0)")


@pytest.mark.parametrize("viewer", ["forecasts", "errors"])
def test_arrow_keys_on_the_slider_move_the_maps(tab, viewer):
    before = shown(tab, viewer)
    assert before["drawn"]
    tab.run(f"document.querySelector('#{viewer} [name=lead]').focus()")
    tab.press("ArrowRight")
    after = shown(tab, viewer)
    assert before["moment"].startswith("+24 h")
    assert after["moment"].startswith("+48 h")
    assert all(a != b for a, b in zip(before["sources"], after["sources"]))
    assert all("+48 h" in text for text in after["texts"])
    assert after["drawn"]
    tab.press("End")
    assert shown(tab, viewer)["moment"].startswith("+72 h")


def test_the_worst_case_and_other_variables_can_be_chosen_by_keyboard(tab):
    before = shown(tab)
    tab.run("document.querySelector('#forecasts [name=case]').focus()")
    tab.press("ArrowDown")
    worst = shown(tab)
    assert worst["sources"][1] != before["sources"][1]
    assert worst["ticks"] == before["ticks"]  # one scale for both
    tab.run("document.querySelector('#forecasts select').focus()")
    tab.press("ArrowDown")
    other = shown(tab)
    assert "msl" in other["texts"][0]
    assert other["ticks"] != before["ticks"]


def test_play_goes_through_the_lead_times_and_stops(tab):
    tab.run("document.querySelector('#forecasts button').click()")
    assert shown(tab)["moment"].startswith("+48 h")
    tab.run("document.querySelector('#forecasts button').click()")
    assert tab.run("document.querySelector('#forecasts button').textContent") == "play"


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_sticks_out_of_the_window(tab, width):
    tab.send("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600)
    try:
        assert tab.run("document.documentElement.scrollWidth") <= width
    finally:
        tab.send("Emulation.clearDeviceMetricsOverride")


def test_light_and_dark_pages_have_other_colours(tab):
    colours = []
    for scheme in ("light", "dark"):
        tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        colours.append(tab.run("getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(255, 255, 255)", "rgb(18, 23, 29)"]


def test_without_javascript_the_first_maps_are_there_and_controls_that_do_nothing_are_not(browser, page):
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page)
        root = browser.send("DOM.getDocument")["root"]["nodeId"]
        form = browser.send("DOM.querySelector", nodeId=root, selector="#forecasts form[hidden]")
        note = browser.send("DOM.querySelector", nodeId=root, selector="#forecasts noscript p")
        assert form["nodeId"]
        assert note["nodeId"]
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
