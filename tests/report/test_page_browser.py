"""The page in a browser: what moves, what a keyboard reaches, what a printer gets."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mla_opt import cost_model
from mla_opt.cost_model import HARDWARE, Workload
from mla_opt.report.page import PageData, page_data, render
from mla_opt.report.page.totals import totals_at
from mla_opt.report.units import duration, quantity
from tests.report import examples, pages

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

pytestmark = pytest.mark.long

ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900")


@pytest.fixture(scope="module")
def data() -> PageData:
    return page_data(pages.deep(), None, examples.report(), workload=Workload(2, 1, 8192))


@pytest.fixture(scope="module")
def files(data: PageData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    mixed = page_data(pages.mixed())
    made = {"deep": data, "hostile": pages.hostile(), "mixed": mixed}
    for name, each in made.items():
        (folder / f"{name}.html").write_text(render(each), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in made}


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    found = webdriver.Chrome(options=options, service=service)
    yield found
    found.quit()


@pytest.fixture
def empty(started: Any) -> Any:
    """A browser on a light screen; what the test before has set is gone."""
    emulate(started, scheme="light")
    return started


@pytest.fixture
def browser(empty: Any, files: dict[str, Path]) -> Any:
    """A browser with the page of a deep model."""
    empty.get(files["deep"].as_uri())
    return empty


def emulate(browser: Any, *, scheme: str, media: str = "") -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    given = {"media": media, "features": features}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", given)


def text(browser: Any, name: str) -> str:
    """What an element says once the page has drawn."""
    browser.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0]))")
    return str(browser.find_element(By.ID, name).text)


def write(browser: Any, name: str, given: str) -> None:
    """Type a number in the place of the one that is there."""
    field = browser.find_element(By.ID, name)
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(Keys.DELETE, given, Keys.TAB)


def style(browser: Any, selector: str, name: str) -> str:
    script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    return str(browser.execute_script(script, selector, name))


def row(browser: Any, form: str) -> list[str]:
    cells = browser.find_elements(By.CSS_SELECTOR, f"#forms tr[data-form='{form}'] td")
    return [cell.text for cell in cells]


def require(browser: Any, data: PageData, workload: Workload, machine: str) -> None:
    """What stands on the page is what the cost model says."""
    true = totals_at(data.layers, workload, HARDWARE[machine])
    assert true.cache_after is not None
    assert text(browser, "cache-before") == quantity(true.cache_before, "B")
    assert text(browser, "cache-after") == quantity(true.cache_after, "B")
    assert text(browser, "seconds-before") == duration(true.seconds_before)
    assert text(browser, "seconds-after") == duration(true.seconds_after)
    for form in cost_model.COST_FORMS:
        cost = cost_model.cost(pages.V3, form, dtype_bytes=2, workload=workload)
        seconds = duration(cost.seconds(HARDWARE[machine]))
        told = [quantity(cost.flops), quantity(cost.bytes, "B")]
        assert [*row(browser, form)[:2], row(browser, form)[3]] == [*told, seconds]


def test_sliders_and_machines_change_the_numbers(browser: Any, data: PageData) -> None:
    require(browser, data, Workload(2, 1, 8192), "cpu")
    browser.find_element(By.ID, "batch-slider").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    require(browser, data, Workload(8, 1, 8192), "cpu")
    browser.find_element(By.ID, "context-slider").send_keys(Keys.HOME)
    require(browser, data, Workload(8, 1, 1), "cpu")
    write(browser, "context", "12345")
    browser.find_element(By.CSS_SELECTOR, "#machine option[value=h200]").click()
    require(browser, data, Workload(8, 1, 12345), "h200")
    assert HARDWARE["h200"].name in text(browser, "now")


def test_long_queries_take_the_other_form(browser: Any, data: PageData) -> None:
    assert "never made" in text(browser, "after-title")
    browser.find_element(By.ID, "query-slider").send_keys(Keys.END)
    require(browser, data, Workload(2, 4096, 8192), "cpu")
    assert "made again" in text(browser, "after-title")
    assert "after" in row(browser, "expanded")[-1]
    # More new tokens than there is context: it counts them, too.
    browser.find_element(By.ID, "context-slider").send_keys(Keys.HOME)
    require(browser, data, Workload(2, 4096, 4096), "cpu")


def test_each_attention_can_be_looked_at(empty: Any, files: dict[str, Path]) -> None:
    empty.get(files["mixed"].as_uri())
    names = [each.text for each in empty.find_elements(By.CSS_SELECTOR, "#layer-choice option")]
    assert names == ["layers 0-1 (2 sites)", "model.layers.2.self_attn", "narrow"]
    empty.find_element(By.CSS_SELECTOR, "#layer-choice option[value='2']").click()
    assert text(empty, "crossover") == "Expanding never takes fewer operations."
    cost = cost_model.cost(pages.NARROW, "fold", dtype_bytes=4)
    assert row(empty, "fold")[:2] == [quantity(cost.flops), quantity(cost.bytes, "B")]
    assert "never made" in text(empty, "after-title")
    assert "W_UQ W_UK" in empty.find_element(By.CSS_SELECTOR, "#drawing-after svg").text


@pytest.mark.parametrize("given", ["", "0", "-3", "1e99", "2.6"])
def test_any_number_can_be_typed(browser: Any, given: str) -> None:
    write(browser, "batch", given)
    assert "NaN" not in text(browser, "main")
    assert "Infinity" not in text(browser, "main")
    value = browser.find_element(By.ID, "batch").get_property("value")
    assert 1 <= int(value) <= 1024


def test_everything_is_drawn(browser: Any) -> None:
    for name in ("cache", "time", "roofline", "folds"):
        assert browser.find_elements(By.CSS_SELECTOR, f"#chart-{name} svg"), name
    for side, box in (("before", "cache: keys and values"), ("after", "latent attention")):
        drawing = browser.find_element(By.CSS_SELECTOR, f"#drawing-{side} svg")
        assert drawing.get_attribute("role") == "img"
        assert box in drawing.text
    overlaps = browser.execute_script(
        """
        const boxes = [...document.querySelectorAll("#drawing-after .box:not(.cache)")];
        const places = boxes.map((box) => box.getBoundingClientRect());
        return places.some((a, i) => places.some((b, j) => i < j &&
          a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom));
        """
    )
    assert not overlaps


def test_dark_and_light(browser: Any) -> None:
    button = browser.find_element(By.ID, "theme")
    light = style(browser, "body", "backgroundColor")
    assert button.get_attribute("aria-pressed") == "false"
    button.send_keys(Keys.SPACE)
    dark = style(browser, "body", "backgroundColor")
    assert button.get_attribute("aria-pressed") == "true"
    assert (light, dark) == ("rgb(255, 255, 255)", "rgb(20, 23, 28)")
    button.click()
    assert style(browser, "body", "backgroundColor") == light
    browser.refresh()
    emulate(browser, scheme="dark")
    assert style(browser, "body", "backgroundColor") == dark
    assert browser.find_element(By.ID, "theme").get_attribute("aria-pressed") == "true"


def test_a_keyboard_reaches_everything_in_order(browser: Any) -> None:
    reached: list[str] = []
    script = """
        const at = document.activeElement;
        return [at.id || at.getAttribute("href") || at.tagName, getComputedStyle(at).outlineStyle];
    """
    for _ in range(40):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        name, outline = browser.execute_script(script)
        if name == "BODY":
            break
        assert outline != "none", name
        reached.append(name)
    assert reached[:3] == ["#main", "theme", "#found"]
    fields = [
        "machine",
        *(f"{n}{e}" for n in ("batch", "query", "context") for e in ("-slider", "")),
    ]
    start = reached.index("machine")
    assert reached[start : start + len(fields)] == fields
    assert reached.index("#bytes") < start
    assert "SUMMARY" in reached


def test_a_print_is_light_whole_and_without_controls(browser: Any) -> None:
    browser.find_element(By.ID, "theme").click()
    browser.execute_script(
        """
        addEventListener("beforeprint", () => {
          const open = [...document.querySelectorAll("details")].map((each) => each.open);
          window.printed = { open, long: document.querySelectorAll("details.long").length };
        });
        """
    )
    count = "return document.querySelectorAll('details:not([open])').length"
    closed = browser.execute_script(count)
    printed = base64.b64decode(browser.print_page())
    assert printed.startswith(b"%PDF")
    seen = browser.execute_script("return window.printed")
    assert seen["open"].count(False) <= seen["long"]
    assert browser.execute_script(count) == closed
    emulate(browser, scheme="dark", media="print")
    assert style(browser, "body", "backgroundColor") == "rgb(255, 255, 255)"
    for hidden in (".controls", "#theme", "nav"):
        assert style(browser, hidden, "display") == "none"
    assert style(browser, "#now", "display") != "none"


@pytest.mark.parametrize("name", ["deep", "hostile", "mixed"])
def test_nothing_is_fetched_and_nothing_complains(
    empty: Any, files: dict[str, Path], name: str
) -> None:
    empty.get_log("performance"), empty.get_log("browser")
    empty.get(files[name].as_uri())
    assert text(empty, "seconds-after")
    asked = [m for m in empty.get_log("performance") if "requestWillBeSent" in m["message"]]
    other = [m for m in asked if f"{name}.html" not in m["message"]]
    assert asked
    assert not [m for m in other if "data:," not in m["message"]]
    assert not empty.get_log("browser")
    assert len(empty.find_elements(By.TAG_NAME, "img")) == 0


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_no_page_is_wider_than_its_window(empty: Any, files: dict[str, Path], width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    empty.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        for name in files:
            empty.get(files[name].as_uri())
            assert text(empty, "seconds-after")
            assert empty.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        empty.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
