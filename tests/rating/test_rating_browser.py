"""The rating page in a real browser: keyboard, resumption, what it saves."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import chromium
import numpy as np
import pytest

from fitspace import rating
from fitspace.rating import pairs as module

pytestmark = chromium.needed


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of made-up samples of three points, and the folder of its report."""
    folder = tmp_path_factory.mktemp("reports") / "mine"
    task = SimpleNamespace(name="a", dreambooth=None)
    sample = SimpleNamespace(prompts=5, images_per_prompt=1)
    study = SimpleNamespace(name="mine", title="Mine", tasks=[task], seeds=[0], sample=sample)
    stage = SimpleNamespace(folder="x", sidecar=SimpleNamespace(exists=lambda: True))
    runs = [
        SimpleNamespace(
            point=SimpleNamespace(name=n), task=task, seed=0, sample=stage, prepare=None
        )
        for n in ("one", "two", "three")
    ]
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    numbers = list(range(5))
    manifest = {"captions": [f"thing {i}" for i in numbers], "prompts": numbers,
                "prompt_images": numbers}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "own_drawing", lambda study, point: True)
        patch.setattr("fitspace.stages.evaluate.drawn", lambda study, run: images)
        patch.setattr("fitspace.data.prepared.read_manifest", lambda stage: manifest)
        patch.setattr("fitspace.data.prepared.read_images", lambda stage, manifest: images)
        return rating.write(SimpleNamespace(study=study, runs=runs), folder, 3, seed=0), folder


@pytest.fixture
def browser(tmp_path):
    with chromium.started(tmp_path / "profile", tmp_path) as driver:
        yield driver


def begin(browser, page, name):
    browser.get(page[0].as_uri())
    field = browser.find_element("id", "rater")
    field.send_keys(name + chromium.webdriver.Keys.ENTER)


def press(browser, *keys):
    for key in keys:
        chromium.webdriver.ActionChains(browser).send_keys(key).perform()


def state(browser) -> str:
    return browser.find_element("id", "state").get_attribute("textContent")


def test_a_rater_judges_by_keyboard_comes_back_and_saves_a_file(browser, page, tmp_path):
    keys = chromium.webdriver.Keys
    begin(browser, page, "ann")
    assert state(browser) == "0 of 3 judged"
    first = browser.find_element("id", "caption").text
    press(browser, keys.ARROW_LEFT, keys.ARROW_DOWN)
    assert state(browser) == "2 of 3 judged"
    begin(browser, page, "ann")  # resumed
    assert state(browser) == "2 of 3 judged"
    press(browser, keys.BACKSPACE)
    assert state(browser) == "1 of 3 judged"
    press(browser, keys.ARROW_RIGHT, keys.ARROW_RIGHT)
    assert browser.find_element("id", "end").is_displayed()
    browser.find_element("id", "save").click()
    saved = chromium.downloaded(tmp_path, "*.json")
    content = json.loads(saved.read_text())
    choices = [answer["choice"] for answer in content["answers"]]
    assert sorted(choices) == ["left", "right", "right"] and content["rater"] == "ann"
    shutil.copy(saved, page[1] / "ratings/ann.json")
    assert len(rating.read(page[1], "mine").rows) == 3
    begin(browser, page, "another person")  # starts anew, in an order of their own
    assert state(browser) == "0 of 3 judged" and first
    assert not [e for e in browser.get_log("browser") if e["level"] == "SEVERE"]


def test_the_page_is_accessible(browser, page):
    axe = pytest.importorskip("selenium_axe_python")
    begin(browser, page, "axe")
    runner = axe.Axe(browser)
    runner.inject()
    found = runner.run()
    assert found["violations"] == [], found["violations"]
