"""Pages in a real browser: what their tests share; skips where selenium is missing."""

import shutil

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

from selenium.webdriver import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MARKS = [
    pytest.mark.browser,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver"),
]
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--window-size=1400,1100 --force-device-scale-factor=1"
)


def open_browser(profile):
    """A browser that keeps what pages complain of."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


def prefers(theme):
    return {"name": "prefers-color-scheme", "value": theme}


def find(page, selector):
    return page.find_element(By.CSS_SELECTOR, selector)


def find_all(page, selector):
    return page.find_elements(By.CSS_SELECTOR, selector)


def press(page, *keys):
    ActionChains(page).send_keys(*keys).perform()


def wait_for(page, condition):
    """Wait until an expression of JavaScript holds."""
    WebDriverWait(page, 10).until(lambda _: page.execute_script(f"return {condition}"))


def choose(page, name, value):
    Select(find(page, f"#{name}")).select_by_value(str(value))


def check_fits(page, selectors, *, widths):
    """See that nothing is wider than the window, nor than the box it is in."""
    try:
        for width in widths:
            page.set_window_size(width, 1000)
            for selector in selectors:
                box = find(page, selector)
                wide, room = (
                    int(box.get_property(f"{each}Width")) for each in ("scroll", "client")
                )
                assert wide <= room, (width, selector)
    finally:
        page.set_window_size(1280, 1000)


def check_themes(page):
    """See that the button switches, and that a dark system is followed."""
    colour = lambda: find(page, "body").value_of_css_property("background-color")  # noqa: E731
    light = colour()
    find(page, "#theme").click()
    assert (light, colour()) == ("rgba(247, 246, 243, 1)", "rgba(19, 20, 24, 1)")
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [prefers("dark")]})
    page.refresh()
    assert colour() == "rgba(19, 20, 24, 1)"
    assert find(page, "#theme").text == "Light theme"
