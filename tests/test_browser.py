"""The site in a browser: what a reader does with it, with a mouse, a keyboard, a phone, or without scripts.

Skipped without Chromium and its driver; KDCORE_BROWSER=required (CI) makes that an error. axe-core comes from npm (make axe).
"""

import functools
import http.server
import io
import json
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from records import KEY, made, synthetic

from kdcore import outputs, papers
from kdcore.report import canvas, figures
from kdcore.report.site import write_site
from kdcore.trials.store import Store

ROOT = Path(__file__).parents[1]
AXE = ROOT / ".axe" / "node_modules" / "axe-core" / "axe.min.js"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
PHONE, DESK = (390, 844), (1280, 900)


def needed(what, reason: str) -> None:
    if not what:
        (pytest.fail if os.environ.get("KDCORE_BROWSER") == "required" else pytest.skip)(reason)


@pytest.fixture(scope="session", autouse=True)
def a_browser():
    needed(BROWSER and DRIVER, "no Chromium or no chromedriver: install chromium and chromium-driver")


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    """A site of few records: two arms, a failure, no other paper run."""
    store, paper = Store(tmp_path_factory.mktemp("small") / "results"), papers.get(KEY)
    arms = ["small", "small with KD", "small with KD, no 3s"]
    for record in synthetic(paper, "fast", 5, arms) + synthetic(paper, "laptop", 2, arms[:2]):
        store.put(record)
    store.put(made(paper.trial("fast", "cumbersome", 0), {"message": "the loss is not finite"}, status="nan"))
    (store.results / "executed").symlink_to(ROOT / "results" / "executed")
    canvas.write(store.results / "figures" / KEY / "fast_paper_errors.svg", lambda: figures.curve([0, 1], {"a": [[1, 2]]}), "test")
    return write_site(store.results, outputs.gather(store)).parent


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """The site of the committed records."""
    results = tmp_path_factory.mktemp("whole")
    for folder in ("records", "figures", "executed"):
        (results / folder).symlink_to(ROOT / "results" / folder)
    return write_site(results, outputs.gather(Store(results))).parent


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def served(small):
    """The address of the small site on a server of this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=small)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class Browser:
    """Chromium, with what it complained about and what it asked the network for."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, address: str, size=DESK, theme: str = "light", scripts: bool = True) -> None:
        width, height = size
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=size == PHONE)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        self.send("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.driver.get("about:blank")  # so that a new fragment opens the page anew
        self.driver.get(address)

    def send(self, command: str, **parameters):
        return self.driver.execute_cdp_cmd(command, parameters)

    def js(self, code: str, *arguments):
        return self.driver.execute_script(code, *arguments)

    def one(self, selector: str):
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def shown(self, selector: str) -> list:
        return [each for each in self.all(selector) if each.is_displayed()]

    def keys(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def asked(self) -> list[str]:
        """The addresses of all requests since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="session")
def chromium(a_browser):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(30)
    yield Browser(driver)
    driver.quit()


@pytest.fixture
def browser(chromium):
    """Whatever a test does, no page complains on the console, and no request goes to another host."""
    chromium.complaints()
    chromium.asked()
    yield chromium
    assert chromium.complaints() == []
    foreign = [url for url in chromium.asked() if not url.startswith(("http://127.0.0.1:", "file://", "data:", "about:"))]
    assert foreign == []


def rows(browser) -> list:
    """The claims that are shown on the first page."""
    return browser.js("return [...document.querySelectorAll('#claims ~ section tbody tr')].filter(each => each.checkVisibility())")


def texts(browser, part: str = "tr") -> list[str]:
    """The texts of the claims that are shown, or of one column."""
    found = "[...document.querySelectorAll(`#claims ~ section tbody ${arguments[0]}`)]"
    return browser.js(f"return {found}.filter(each => each.checkVisibility()).map(each => each.innerText.trim())", part)


def test_search_filter_and_hide_not_run(browser, served):
    browser.open(served)
    everything = len(rows(browser))
    assert everything == sum(len(papers.get(key).sheet["claims"]) for key in papers.names())
    assert browser.one("#claims ~ section output").text == f"{everything} of {everything} claims"
    assert len(texts(browser, ".badge")) == everything
    browser.one("[name=run]").click()
    run = texts(browser)
    assert 0 < len(run) < everything and not any("not run" in text for text in run)
    assert all(papers.get(KEY).sheet["short"] in text for text in run)
    browser.one("[name=text]").send_keys("FEWER soft")
    (found,) = rows(browser)
    assert "fewer errors with soft targets" in found.text and browser.one("output").text == f"1 of {everything} claims"
    browser.one("[name=text]").send_keys(" nonsense")
    assert rows(browser) == [] and browser.one(".nothing").is_displayed()
    browser.js("document.querySelector('[name=text]').value = ''")
    browser.one("[name=run]").click()
    select = browser.one("[name=paper]")
    select.send_keys(papers.get(KEY).sheet["short"])
    assert len(rows(browser)) == len(papers.get(KEY).sheet["claims"])
    browser.one("[name=verdict]").send_keys("not run")
    assert len(rows(browser)) == len(papers.get(KEY).sheet["claims"]) - len(run)


def test_sort(browser, served):
    browser.open(served)

    def column(number: int) -> list[str]:
        return texts(browser, f"tr > :nth-child({number + 1})")

    def click(number: int) -> str:
        button = browser.all("table.sortable thead button")[number]
        button.click()
        return browser.all("table.sortable thead th")[number].get_attribute("aria-sort")

    before = column(2)
    assert click(2) == "ascending" and column(2) == sorted(before, key=str.lower)
    assert click(2) == "descending" and column(2) == sorted(before, key=str.lower, reverse=True)
    assert click(2) is None and column(2) == before
    browser.one("[name=run]").click()
    click(4)
    numbers = [float(text.split(" [")[0].replace("\N{MINUS SIGN}", "-").replace("+", "").replace(",", "")) for text in column(4)]
    assert numbers == sorted(numbers) and len(numbers) > 1


def test_the_evidence_of_a_number_and_its_record(browser, served):
    browser.open(f"{served}papers/{KEY}.html")
    row = browser.one("[id='fast.errors.small+with+KD.test_errors']")
    assert not row.find_element("css selector", "details ul").is_displayed()
    row.find_element("css selector", "summary").click()
    seeds = row.find_elements("css selector", "details li")
    assert len(seeds) == 5 and all("Test CPU" in seed.text and "kdcore run" in seed.text for seed in seeds)
    value = seeds[3].find_element("css selector", "b").text
    seeds[3].find_element("css selector", "a").click()
    paper = papers.get(KEY)
    assert browser.driver.current_url.endswith(f"records/{KEY}/{paper.trial('fast', 'small with KD', 3).id}.html")
    text = browser.one("main").text
    assert 'kdcore run hinton_mnist --budget fast --arm "small with KD" --seed 3' in text
    (shown,) = [row.text for row in browser.all("table.pairs tr") if row.text.startswith("test_errors")]
    assert float(shown.split()[-1]) == pytest.approx(float(value), rel=1e-5)
    assert browser.all("svg.chart polyline")
    browser.one("#used + ul a").click()
    assert browser.driver.current_url.endswith("#fast.errors.small+with+KD.test_errors")


def test_a_permalink_opens_what_it_names(browser, served):
    browser.open(f"{served}papers/{KEY}.html#fast.errors.small+with+KD.test_errors")
    row = browser.one("tr:target")
    assert "small with KD" in row.text and row.find_element("css selector", "details ul").is_displayed()
    top = browser.js("return arguments[0].getBoundingClientRect().top", row)
    assert 0 <= top < DESK[1]
    row.find_element("css selector", "a.here").click()
    assert browser.driver.current_url.endswith("#fast.errors.small+with+KD.test_errors")
    browser.open(served)
    browser.one("[name=run]").click()
    rows(browser)[0].find_element("css selector", "th a").click()
    assert browser.one("tr:target .badge").is_displayed()
    browser.js("location.hash = '#laptop.claim.' + location.hash.split('.')[1]")
    assert browser.one("tr:target").is_displayed(), "a fold opens for what is linked in it"


def test_follow_a_notebook_and_come_back(browser, served):
    browser.open(served)
    browser.one(f"table.board a[href='notebooks/{KEY}.html']").click()
    assert browser.one("h1").text == papers.get(KEY).sheet["title"]
    assert browser.all("math") and browser.all(".input .highlight") and browser.all(".output img")
    browser.one(".back a").click()
    assert browser.driver.current_url.endswith(f"papers/{KEY}.html")
    browser.open(f"{served}equations.html")
    lesson = browser.one(f"article[data-paper='{KEY}'] a[href*='notebooks/']")
    lesson.click()
    assert browser.one(":target").is_displayed() and browser.one(":target").find_elements("css selector", "math")


def brightness(browser, selector: str) -> float:
    """The mean of a part of the page, from 0 for black to 255 for white."""
    browser.js("arguments[0].scrollIntoView()", browser.one(selector))
    time.sleep(0.3)  # a picture that loads when it is seen
    return float(np.asarray(Image.open(io.BytesIO(browser.one(selector).screenshot_as_png)).convert("L")).mean())


def test_the_theme_follows_the_system_until_chosen_and_is_remembered(browser, served):
    def background() -> str:
        return browser.js("return getComputedStyle(document.body).backgroundColor")

    browser.open(served)
    browser.js("localStorage.clear()")
    browser.open(served, theme="light")
    light = background()
    browser.open(served, theme="dark")
    dark = background()
    assert light != dark and browser.one("#theme").text == "Light"
    browser.one("#theme").click()
    assert background() == light and browser.one("#theme").text == "Dark"
    browser.open(f"{served}papers/{KEY}.html#fast.errors", theme="dark")
    assert background() == light and brightness(browser, "figure img") > 200
    browser.one("#theme").click()
    assert brightness(browser, "figure img") < 80, "a figure follows the page, not the system"
    browser.open(served, theme="light")
    assert background() == dark
    browser.js("localStorage.clear()")


def test_with_the_keyboard_alone(browser, served):
    from selenium.webdriver.common.keys import Keys

    def focused() -> str:
        return browser.js("return document.activeElement.outerHTML.slice(0, 200)")

    browser.open(f"{served}papers/{KEY}.html")
    browser.keys(Keys.TAB)
    assert "skip" in focused() and browser.driver.switch_to.active_element.is_displayed()
    browser.keys(Keys.ENTER)
    assert browser.js("return document.activeElement.id") == "main"
    for _ in range(120):
        browser.keys(Keys.TAB)
        if focused().startswith("<summary"):
            break
    browser.keys(Keys.ENTER)
    assert browser.js("return document.activeElement.parentElement.open")
    browser.keys(Keys.TAB)
    assert "records/" in focused()
    outline = browser.js("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none", "where the focus is can be seen"
    browser.open(served)
    button = browser.one("table.sortable thead button")
    browser.js("arguments[0].focus()", button)
    browser.keys(Keys.SPACE)
    assert browser.one("table.sortable thead th").get_attribute("aria-sort") == "ascending"


def test_without_scripts_everything_can_be_read(browser, served):
    browser.open(served, scripts=False)
    try:
        assert len(rows(browser)) > 50
        assert browser.shown("form.controls") == [] and browser.shown("#theme") == []
        browser.open(f"{served}papers/{KEY}.html", scripts=False)
        browser.one("details.evidence summary").click()
        assert browser.shown("details.evidence li")
        browser.open(f"{served}equations.html", scripts=False)
        assert len(browser.shown("math")) > 50
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)


def pages_of(site: Path) -> dict[str, str]:
    """A page of each kind."""
    record = min(path.relative_to(site).as_posix() for path in site.glob(f"records/{KEY}/*.html"))
    return {
        "first": "index.html",
        "paper": f"papers/{KEY}.html",
        "record": record,
        "notebook": f"notebooks/{KEY}.html",
        "equations": "equations.html",
    }


def wide(browser) -> list[str]:
    """What makes the page scroll sideways."""
    return browser.js(
        "return document.documentElement.scrollWidth <= innerWidth ? [] : [...document.querySelectorAll('main *')]"
        ".filter(e => e.getBoundingClientRect().right > innerWidth && !e.closest('.scroll, .output, .input, pre'))"
        ".slice(0, 5).map(e => e.outerHTML.slice(0, 120)).concat('wide')"
    )


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["1280", "390"])
def test_no_page_scrolls_sideways(browser, whole, size):
    pages = [*pages_of(whole).values(), *(f"{kind}/{key}.html" for key in papers.names() for kind in ("papers", "notebooks"))]
    found = {}
    for page in dict.fromkeys(pages):
        browser.open((whole / page).as_uri(), size)
        found[page] = wide(browser)
    assert {page: what for page, what in found.items() if what} == {}


def test_verdicts_stay_visible_on_a_phone(browser, whole):
    for page in ("index.html", f"papers/{KEY}.html"):
        browser.open((whole / page).as_uri(), PHONE)
        outside = browser.js(
            "return [...document.querySelectorAll('.badge, .mark')].filter(e => e.checkVisibility() && !e.closest('details:not([open])'))"
            ".filter(e => { const r = e.getBoundingClientRect(); return r.left < 0 || r.right > innerWidth || !r.width; }).length"
        )
        assert outside == 0 and browser.all(".badge")


def test_the_first_page_is_light_and_fast(browser, whole):
    taken = []
    for _ in range(3):
        browser.send("Network.clearBrowserCache")
        browser.asked()
        browser.open((whole / "index.html").as_uri())
        time.sleep(0.3)
        taken.append(browser.js("return performance.timing.loadEventEnd - performance.timing.navigationStart"))
        loaded = {url.removeprefix(whole.as_uri() + "/") for url in browser.asked() if url.startswith("file:")}
    assert "index.html" in loaded and "site.css" in loaded
    assert sum((whole / name).stat().st_size for name in loaded) < 300_000, loaded
    assert min(taken) < 1000
    assert browser.js("return document.querySelectorAll('*').length") < 5000


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser, small, served, theme):
    if not AXE.is_file():
        pytest.skip("axe-core is missing: make axe fetches it from npm")
    axe, found = AXE.read_text(), {}
    kinds = pages_of(small)
    for kind, size in [*((kind, DESK) for kind in kinds), ("first", PHONE), ("paper", PHONE)]:
        browser.open(served + kinds[kind], size, theme)
        browser.js("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        browser.js(axe)
        result = browser.driver.execute_async_script(
            "const done = arguments[0]; axe.run({resultTypes: ['violations']}).then(done, error => done({violations: `${error}`}))"
        )
        for each in result["violations"]:
            if each["impact"] in ("serious", "critical"):
                found[kind, size, each["id"]] = [node["html"][:150] for node in each["nodes"][:3]]
    assert found == {}
