"""Fixtures of the pages' browser tests."""

import pytest


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One browser for the tests of a module."""
    from tests.render.in_browser import open_browser

    driver = open_browser(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, address):
    """The page at the module's `address`, in the light theme; it may not complain."""
    from tests.render.in_browser import prefers

    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [prefers("light")]})
    browser.get(address)
    yield browser
    assert browser.get_log("browser") == []
