"""The report in a real browser: headless Chromium, driven by selenium."""

from __future__ import annotations

import csv
import io
import json
import shutil

import pytest
import report_study as made_up

from fitspace.report import build

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="chromium and chromedriver are not installed"
)
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
]
PHONE, LAPTOP = (390, 844), (1280, 900)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    factors = {"input": made_up.INPUTS[:5], "output": made_up.OUTPUTS[:4]}
    study = made_up.study(factors, tasks=("blueprint", "night"), responses=("fd_effnet", "clip_t"))
    table = made_up.rows(study)
    made_up.write(folder, table, dropped=["adapter (input=CA_in, output=SA_in): flows back"])
    made_up.write_gallery(folder, table, [f"a rather long caption, number {i}" for i in range(12)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fitspace.files.os.fsync", lambda handle: None)
        build(study, folder)
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, folder):
    """Open the report as a device would show it; returns a function that runs a script."""

    def opened(size=LAPTOP, scheme="light"):
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1}
        metrics["mobile"] = width < 500
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        for kind in ("browser", "performance"):
            browser.get_log(kind)
        browser.get((folder / "report.html").as_uri())
        return browser.execute_script

    return opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, LAPTOP], ids=["phone", "laptop"])
def test_it_opens_cleanly_and_fits(opened, browser, size, scheme):
    run = opened(size, scheme)
    run("for (const item of document.querySelectorAll('details')) item.open = true")
    assert run("return document.documentElement.scrollWidth") <= size[0]
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert asked and all(url.startswith(("file://", "data:")) for url in asked)
    # Figures and page share one ink, so neither is lost on the other's background.
    inks = run(
        "const ink = getComputedStyle(document.body).color;"
        "const text = document.querySelector('.plot text');"
        "return [ink, getComputedStyle(text).fill, getComputedStyle(document.body).backgroundColor]"
    )
    assert inks[0] == inks[1] != inks[2]


def test_figures_can_be_read_on_a_phone(opened):
    run = opened(PHONE)
    heights = run(
        "return [...document.querySelectorAll('.plot text')].map((t) => "
        "parseFloat(getComputedStyle(t).fontSize)"
        " * Math.hypot(t.getScreenCTM().a, t.getScreenCTM().b))"
    )
    assert len(heights) > 50 and min(heights) >= 7


def test_nothing_in_a_figure_is_cut_off(opened):
    run = opened(LAPTOP)
    cut = run(
        "return [...document.querySelectorAll('.plot svg')].flatMap((svg) => {"
        "  const box = svg.closest('figure').getBoundingClientRect();"
        "  return [...svg.querySelectorAll('text')].filter((text) => {"
        "    const it = text.getBoundingClientRect();"
        "    return it.left < box.left || it.right > box.right || it.top < box.top"
        "      || it.bottom > box.bottom;"
        "  }).map((text) => svg.closest('figure').id + ': ' + text.textContent);"
        "})"
    )
    assert cut == []


COLUMN = (
    "const table = document.querySelector('#runs table');"
    "const heads = [...table.tHead.rows[0].cells];"
    "const at = heads.findIndex((head) => head.dataset.names === arguments[0]);"
    "if (arguments[1]) heads[at].querySelector('button').click();"
    "return [heads[at].ariaSort, [...table.tBodies[0].rows].map((row) => "
    "  row.cells[at].querySelector('data')?.value ?? row.cells[at].textContent.trim())]"
)


@pytest.mark.parametrize("column", ["fd_effnet", "trainable", "train_seconds"])
def test_a_column_sorts_both_ways_with_empty_cells_last(opened, folder, column):
    run = opened()
    rows = list(csv.DictReader(io.StringIO((folder / "runs.csv").read_text())))
    values = sorted(float(row[column]) for row in rows if row[column])
    empty = [""] * sum(not row[column] for row in rows)
    for direction, expected in (("ascending", values), ("descending", values[::-1])):
        sort, shown = run(COLUMN, column, True)
        assert sort == direction
        assert [float(text) for text in shown[: len(values)]] == expected
        assert shown[len(values) :] == empty


def test_text_sorts_as_text(opened):
    run = opened()
    before = run(COLUMN, "run", False)[1]
    sort, after = run(COLUMN, "run", True)
    assert sort == "ascending" and sorted(before) == sorted(after) and before != after


def test_a_copied_table_is_its_csv(opened, folder):
    run = opened()
    copied = run("return asCsv(document.querySelector('#runs table'))")
    assert copied == (folder / "runs.csv").read_text()
    part = run("return asCsv(document.querySelector('#anova table'))")
    whole = list(csv.DictReader(io.StringIO((folder / "anova.csv").read_text())))
    for row in csv.DictReader(io.StringIO(part)):
        assert any(row.items() <= other.items() for other in whole), row
    run("document.querySelector('.copy').click()")


def test_a_figure_enlarges_and_closes(opened):
    run = opened(PHONE)
    state = (
        "const d = document.getElementById('enlarged');"
        "return [d.open, d.querySelectorAll('svg').length]"
    )
    run("document.querySelector('.enlarge').click()")
    assert run(state) == [True, 1]
    run("document.querySelector('#enlarged .close').click()")
    assert run(state)[0] is False


def test_a_caption_is_marked_in_every_strip(opened):
    run = opened()
    marked = run(
        "const gallery = document.querySelector('.gallery');"
        "gallery.querySelector('.tile').focus();"
        "return [...gallery.querySelectorAll('.marked')].map((cell) => cell.dataset.caption)"
    )
    # The caption, and the tile of: target, best, worst, untouched base, full fine-tuning.
    assert marked == ["0"] * 6


def test_the_keyboard_starts_at_the_skip_link(opened, browser):
    run = opened()
    from selenium.webdriver.common.keys import Keys

    browser.switch_to.active_element.send_keys(Keys.TAB)
    assert run("return document.activeElement.className") == "skip"
