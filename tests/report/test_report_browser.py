"""The report in a real browser: headless Chromium, driven by selenium."""

from __future__ import annotations

import base64
import csv
import io
import json
import re

import chromium
import pytest
import report_study as made_up

from fitspace.report import build

ActionChains = chromium.webdriver.ActionChains
Keys = chromium.webdriver.Keys
WebDriverWait = pytest.importorskip("selenium.webdriver.support.wait").WebDriverWait
pytestmark = chromium.needed
PHONE, LAPTOP = (390, 844), (1280, 900)
SIZES = pytest.mark.parametrize("size", [PHONE, LAPTOP], ids=["phone", "laptop"])
SCHEMES = pytest.mark.parametrize("scheme", ["light", "dark"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    factors = {"input": made_up.INPUTS[:5], "output": made_up.OUTPUTS[:4]}
    study = made_up.study(factors, tasks=("blueprint", "night"), responses=("fd_effnet", "clip_t"))
    table = made_up.rows(study)
    made_up.write(folder, table, dropped=["adapter (input=CA_in, output=SA_in): flows back"])
    made_up.write_gallery(folder, table, [f"a rather long caption, number {i}" for i in range(12)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fitspace.core.files.os.fsync", lambda handle: None)
        build(study, folder)
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    make = tmp_path_factory.mktemp
    with chromium.started(make("profile"), make("downloads")) as driver:
        yield driver


@pytest.fixture
def opened(browser, folder):
    """Open the report as a device would show it; returns a function that runs a script."""

    def opened(size=LAPTOP, scheme="light"):
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1}
        metrics["mobile"] = width < 500
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        chosen = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in chosen.items()]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})
        for kind in ("browser", "performance"):
            browser.get_log(kind)
        browser.get("about:blank")
        browser.get((folder / "report.html").as_uri())
        wait(browser).until(lambda b: b.execute_script("return document.readyState") == "complete")
        return browser.execute_script

    return opened


def wait(browser):
    return WebDriverWait(browser, 10, poll_frequency=0.05)


@SCHEMES
@SIZES
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


@SIZES
def test_the_first_screen_has_the_answer(opened, size):
    """On a laptop also the figure and the samples; on a phone they follow at once."""
    run = opened(size)
    ends = run(
        "return ['.question', '#answer > p:last-of-type', '#answer .plot', '#answer .samples',"
        "  '.toc'].map((name) => document.querySelector(name).getBoundingClientRect())"
        ".map((box) => [box.top, box.bottom])"
    )
    question, answer, figure, samples, contents = ends
    assert question[1] < answer[1] < size[1]
    if size == LAPTOP:
        assert max(figure[1], samples[1]) < 1.15 * size[1]
    else:
        assert answer[1] <= figure[0] < figure[1] <= samples[0] < samples[1] <= contents[0]
    pictures = run(
        "return [...document.querySelectorAll('#answer .picture')].map((p) => "
        "[p.ariaLabel, getComputedStyle(p).backgroundImage.startsWith('url(\"data:')])"
    )
    assert len(pictures) == 3 * 8 and all(drawn for _, drawn in pictures)
    # Two tasks: the first four captions of each, beside target and base.
    labels = [label for label, _ in pictures]
    assert labels[:3] == [f"Target: blueprint: {CAPTION.format(i)}" for i in range(3)]
    assert labels[-1] == f"Untouched base: night: {CAPTION.format(3)}"


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
    "const at = heads.findIndex((head) => JSON.parse(head.dataset.names)[0] === arguments[0]);"
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


@pytest.mark.parametrize("allowed", ["granted", "denied"])
def test_copy_fills_the_clipboard(opened, browser, folder, allowed):
    run = opened()
    for name, setting in (("clipboard-read", "granted"), ("clipboard-write", allowed)):
        permission = {"name": name, "allowWithoutSanitization": False}
        arguments = {"permission": permission, "setting": setting}
        browser.execute_cdp_cmd("Browser.setPermission", arguments)
    browser.execute_cdp_cmd("Page.bringToFront", {})
    run("document.activeElement.blur(); location.hash = 'runs'")
    button = browser.find_element("css selector", "#runs .copy")
    button.click()
    pasted = browser.execute_async_script(
        "const done = arguments[0];"
        "setTimeout(() => navigator.clipboard.readText().then(done, done), 200)"
    )
    assert pasted == (folder / "runs.csv").read_text()
    assert button.text == "Copied" and run("return document.activeElement.className") == (
        "copy script"
    )


# --- figures ------------------------------------------------------------------------------

DIALOG = "return [dialog.open, dialog.querySelectorAll('.stage > svg').length]"


@SIZES
def test_a_figure_enlarges_and_closes(opened, browser, size):
    run = opened(size)
    run("document.querySelector('.enlarge').click()")
    assert run(DIALOG) == [True, 1]
    box = run("const b = dialog.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]")
    assert box[0] >= 0 and box[1] >= 0 and box[2] <= size[0] and box[3] <= size[1]
    run("dialog.querySelector('.close').click()")
    assert run(DIALOG)[0] is False


def figures_of(run) -> list[str]:
    return run("return [...document.querySelectorAll('figure .download')].map((a) => a.download)")


def test_every_figure_shows_its_data(opened, browser, folder):
    run = opened(PHONE)
    names = figures_of(run)
    assert len(names) == run("return document.querySelectorAll('.plot').length") > 8
    for index, name in enumerate(names):
        run("document.querySelectorAll('figure .data')[arguments[0]].click()", index)
        shown = run("return [dialog.open, asCsv(dialog.querySelector('table'))]")
        assert shown == [True, (folder / "figures" / name).read_text(encoding="utf-8")], name
        assert run("return document.documentElement.scrollWidth") <= PHONE[0]
        run("dialog.close()")
    assert browser.get_log("browser") == []


def test_the_data_of_a_figure_sorts(opened, folder):
    run = opened()
    at = figures_of(run).index("heatmap-fd_effnet.csv")
    run("document.querySelectorAll('figure .data')[arguments[0]].click()", at)
    rows = csv.DictReader((folder / "figures/heatmap-fd_effnet.csv").read_text().splitlines())
    means = sorted(float(row["mean"]) for row in rows)
    script = (
        "const head = [...dialog.querySelectorAll('th')].find((h) => h.textContent === 'mean');"
        "head.querySelector('button').click();"
        "return [...dialog.querySelectorAll('tbody tr')].map((row) =>"
        "  Number(row.cells[head.cellIndex].querySelector('data').value))"
    )
    assert run(script) == means and run(script) == means[::-1]


def test_the_data_of_a_figure_downloads(opened, browser, folder, tmp_path):
    opened()
    behaviour = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    browser.execute_script("document.querySelector('figure .download').click()")
    path = chromium.downloaded(tmp_path, "*.csv")
    assert path.read_bytes() == (folder / "figures" / path.name).read_bytes()
    assert browser.get_log("browser") == []


# --- sample sheets ------------------------------------------------------------------------

COMPARED = (
    "const panel = document.querySelector('.compare');"
    "if (!panel.checkVisibility() || panel.querySelector('.chosen').hidden) return null;"
    "return [...panel.querySelectorAll('figure:not([hidden]) .picture')].map((p) => p.ariaLabel)"
)
CAPTION = "a rather long caption, number {}"


def compared(*labels: str, caption: int) -> list[str]:
    return [f"{label}: {CAPTION.format(caption)}" for label in labels]


def tile(browser, role: int, caption: int):
    return browser.find_element(
        "css selector", f"[data-caption='{caption}'] .tile[data-role='{role}']"
    )


@SIZES
def test_pointing_at_a_tile_compares_it(opened, browser, size):
    run = opened(size)
    wanted = tile(browser, 2, 5)
    run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", wanted)
    ActionChains(browser).move_to_element(wanted).perform()
    assert run(COMPARED) == compared("Target", "Worst here", "Untouched base", caption=5)
    # The tile is in front at its middle: the panel is elsewhere.
    in_front = (
        "const b = arguments[0].getBoundingClientRect();"
        "return document.elementFromPoint(b.x + b.width / 2, b.y + b.height / 2) === arguments[0]"
    )
    assert run(in_front, wanted)
    pictures = run(
        "const panel = document.querySelector('.compare');"
        "return [...panel.querySelectorAll('figure:not([hidden]) .picture')]"
        ".map((p) => [p.offsetWidth / 64, getComputedStyle(p).imageRendering])"
    )
    assert len(pictures) == 3
    assert all(zoom >= 1.4 and how == "pixelated" for zoom, how in pictures)
    assert run("return document.documentElement.scrollWidth") <= size[0]


@pytest.mark.parametrize("at", ["start", "end"])
def test_the_panel_keeps_off_the_tile(opened, browser, at):
    run = opened(PHONE)
    wanted = tile(browser, 1, 1)
    run("arguments[0].scrollIntoView({block: arguments[1], behavior: 'instant'})", wanted, at)
    wanted.click()
    boxes = run(
        "const [a, b] = [arguments[0], document.querySelector('.compare')]"
        ".map((e) => e.getBoundingClientRect()); return [a.top, a.bottom, b.top, b.bottom]",
        wanted,
    )
    assert boxes[1] <= boxes[2] or boxes[3] <= boxes[0], boxes


@SIZES
def test_the_sheet_is_walked_by_keyboard(opened, browser, size):
    run = opened(size)
    stops = "return [...document.querySelectorAll('.gallery')].map((g) => "
    stops += "[...g.querySelectorAll('.tile')].filter((t) => t.tabIndex === 0).length)"
    assert run(stops) == [1, 1]
    run("document.querySelector('.tile').focus()")
    keys = [Keys.ARROW_RIGHT] * 4 + [Keys.ARROW_DOWN] * 2 + [Keys.ARROW_LEFT, Keys.ARROW_UP]
    for key in [*keys, Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_DOWN]:
        browser.switch_to.active_element.send_keys(key)
    # Across the edge of a band to the right and back; the last row holds.
    label = run("return document.activeElement.ariaLabel")
    assert [label] == compared("Full fine-tuning", caption=3)
    kept = ("Target", "Untouched base", "Full fine-tuning")
    assert run(COMPARED) == compared(*kept, caption=3)
    assert run(stops) == [1, 1]
    for _ in range(6):  # What is folded away is not stepped into.
        browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert [run("return document.activeElement.ariaLabel")] == compared(kept[2], caption=7)
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert run(COMPARED) is None


def test_the_panel_closes_by_its_button_and_by_leaving(opened, browser):
    run = opened(PHONE)
    assert run(COMPARED) is None
    wanted = tile(browser, 1, 0)
    for leave in (
        "document.querySelector('.compare .close').click()",
        "document.querySelector('.toc a').focus()",
    ):
        wanted.click()
        run("arguments[0].focus()", wanted)
        assert len(run(COMPARED)) == 3
        run(leave)
        assert run(COMPARED) is None
        run("document.activeElement.blur()")


def test_a_caption_is_marked_in_every_strip(opened):
    run = opened()
    marked = run(
        "const gallery = document.querySelector('.gallery');"
        "gallery.querySelector('.tile').focus();"
        "return [...gallery.querySelectorAll('.marked')].map((cell) => cell.dataset.caption)"
    )
    # The caption, and the tile of: target, best, worst, untouched base, full fine-tuning.
    assert marked == ["0"] * 6


# --- for everyone -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "scheme"), [(PHONE, "light"), pytest.param(LAPTOP, "dark", marks=pytest.mark.slow)]
)
def test_axe_finds_nothing(opened, browser, size, scheme):
    run = opened(size, scheme)
    run("for (const item of document.querySelectorAll('details')) item.open = true")
    run("document.querySelector('.tile').focus()")
    # Two rows of a table are as all are.
    page = {"exclude": [["tbody tr:nth-child(n+3)"], ["#runs td:nth-child(n+5)"]]}
    assert broken(browser, page) == []
    run("document.querySelector('figure .data').click()")
    assert broken(browser, {"include": [["dialog"]], **page}) == []


def broken(browser, context: dict) -> list[str]:
    """What breaks the rules of axe-core: WCAG 2 A and AA, and its best practices."""
    axe = pytest.importorskip("selenium_axe_python", reason="selenium-axe-python").Axe(browser)
    axe.inject()
    browser.set_script_timeout(120)
    options = {"resultTypes": ["violations"], "rules": {"target-size": {"enabled": True}}}
    found = axe.run(json.dumps(context), json.dumps(options))["violations"]
    return [f"{v['id']}: {v['help']}: {n['html'][:200]}" for v in found for n in v["nodes"][:3]]


def test_the_keyboard_reaches_every_control_and_shows_where_it_is(opened, browser):
    run = opened()
    # Each kind of control once: the page has a few hundred.
    kinds = "a[href]:not(.toc a), .toc a, summary, .scroll, .sort, .copy, .enlarge, figure .data"
    run("for (const item of document.querySelectorAll('details')) item.open = true")
    unreachable = run(
        f"return [...document.querySelectorAll('{kinds}')]"
        ".filter((e) => e.tabIndex < 0 || !e.checkVisibility()).length"
    )
    assert unreachable == 0
    for selector in (".toc a", ".tile", "summary", ".enlarge", "figure .data", ".copy", ".sort"):
        run(f"document.querySelector('{selector}').focus({{focusVisible: true}})")
        width, style = run(
            "const s = getComputedStyle(document.activeElement);"
            "return [parseFloat(s.outlineWidth), s.outlineStyle]"
        )
        assert width >= 2 and style == "solid", selector


def test_a_dialog_gives_the_focus_back(opened, browser):
    run = opened()
    button = browser.find_element("css selector", "figure .data")
    run("arguments[0].focus()", button)
    button.send_keys(Keys.ENTER)
    assert run("return dialog.contains(document.activeElement)")
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert run("return [dialog.open, document.activeElement === arguments[0]]", button) == [
        False,
        True,
    ]


def test_the_keyboard_starts_at_the_skip_link(opened, browser):
    run = opened()
    browser.switch_to.active_element.send_keys(Keys.TAB)
    assert run("return document.activeElement.className") == "skip"


# --- on paper -----------------------------------------------------------------------------


def test_on_paper_it_is_black_on_white_and_whole(opened, browser):
    run = opened(LAPTOP, "dark")
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    media = {"media": "print", "features": features}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    run("dispatchEvent(new Event('beforeprint'))")
    colours = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
    assert run(colours) == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    controls = ".toc, .skip, .copy, .tools, .compare, dialog"
    shown = f"return [...document.querySelectorAll('{controls}')].filter((e) =>"
    shown += " e.checkVisibility()).length"
    assert run(shown) == 0
    assert run("return document.querySelectorAll('details:not([open])').length") == 0
    cut = "return [...document.querySelectorAll('.scroll')].filter((e) =>"
    cut += " getComputedStyle(e).overflow !== 'visible').length"
    assert run(cut) == 0
    run("dispatchEvent(new Event('afterprint'))")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    assert run("return document.querySelectorAll('details:not([open])').length") > 3


def test_it_prints(opened, browser):
    opened(LAPTOP, "dark")
    settings = {"printBackground": True, "preferCSSPageSize": True, "generateTaggedPDF": False}
    printed = browser.execute_cdp_cmd("Page.printToPDF", settings)
    content = base64.b64decode(printed["data"])
    boxes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", content)
    wide = [float(width) > float(height) for width, height in boxes]
    assert content.startswith(b"%PDF") and len(boxes) > 5
    # The table of all runs lies across its pages, the rest stands.
    assert 1 <= sum(wide) < len(wide) / 2
