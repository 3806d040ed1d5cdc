"""A real Chromium that looks at what people see."""

import io
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Locator, Page, sync_playwright

from standards.errors import PermanentError

PROGRAMS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PATIENCE = 120_000
"""Milliseconds for any step: it draws without a graphics card, perhaps on a busy machine."""


def chromium() -> str | None:
    """The browser of this machine, if there is one."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


def is_picture(png: bytes) -> bool:
    """Whether a screenshot shows more than a plain or empty area."""
    grey = np.asarray(Image.open(io.BytesIO(png)).convert("L"), dtype=np.float32)
    return bool(grey.std() > 6 and len(np.unique(grey)) > 24)


class Eyes:
    """One browser; every look is a context of its own, so that logins do not meet."""

    def __init__(self, program: str, screenshots: Path) -> None:
        self._playwright = sync_playwright().start()
        self._profile = tempfile.TemporaryDirectory(prefix="regis-browser-")
        self._browser: Browser = self._playwright.chromium.launch(executable_path=program, args=FLAGS, timeout=PATIENCE)
        self.screenshots = screenshots
        screenshots.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Eyes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._browser.close()
        self._playwright.stop()
        self._profile.cleanup()

    def context(self) -> BrowserContext:
        """A fresh browser window of a work station."""
        made = self._browser.new_context(viewport={"width": 1366, "height": 768}, locale="ru-RU")
        made.set_default_timeout(PATIENCE)
        return made

    def log_in(self, url: str, username: str, password: str) -> Page:
        """Log in through the page as a person does. Raises: PermanentError("login-failed")."""
        page = self.context().new_page()
        page.goto(f"{url}/login/")
        page.fill("input[name=username]", username)
        page.fill("input[name=password]", password)
        with page.expect_navigation():  # a busy centre takes its time over a password
            page.click("form [type=submit]")
        if "/login" in page.url:
            raise PermanentError("login-failed", f"{username} was not let in")
        return page

    def keep(self, page: Page, name: str) -> Path:
        """Take a screenshot for people to look at."""
        path = self.screenshots / f"{name}.png"
        page.screenshot(path=path)
        return path

    @staticmethod
    def wait_for_picture(area: Locator, what: str, seconds: float = 180) -> None:
        """Wait until the area shows an image. Raises: PermanentError("no-picture")."""
        area.wait_for(timeout=seconds * 1000)
        for _ in range(int(seconds * 2)):
            if is_picture(area.screenshot()):
                return
            area.page.wait_for_timeout(500)
        raise PermanentError("no-picture", f"{what} stays empty")
