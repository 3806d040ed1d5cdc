"""The rewritten OHIF build runs below /viewer/ in a real browser and asks nobody else for anything."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "var" / "vendor" / "ohif"
CHROMIUM = Path("/usr/bin/chromium")
CONFIG = """window.config = {
  routerBasename: '/viewer', extensions: [], modes: [], showStudyList: true,
  investigationalUseDialog: {option: 'never'},
  defaultDataSourceName: 'regis',
  dataSources: [{namespace: '@ohif/extension-default.dataSourcesModule.dicomweb', sourceName: 'regis', configuration: {
    name: 'regis', friendlyName: 'Regis', qidoRoot: '/dicom-web', wadoRoot: '/dicom-web', imageRendering: 'wadors'}}],
};"""


class _Site(http.server.SimpleHTTPRequestHandler):
    """OHIF's files below /viewer/, an empty archive below /dicom-web/, nothing else."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/dicom-web/"):
            self._answer(b"[]", "application/dicom+json")
        elif path == "/viewer/app-config.js":
            self._answer(CONFIG.encode(), "text/javascript")
        elif path.startswith("/viewer/"):
            file = BUILD / path.removeprefix("/viewer/")
            file = file if file.is_file() else BUILD / "index.html"
            self._answer(file.read_bytes(), self.guess_type(file))
        else:
            self.send_error(404)

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Site) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.timeout(900)
@pytest.mark.skipif(not CHROMIUM.exists(), reason="Chromium is not installed")
@pytest.mark.skipif(not BUILD.is_dir(), reason="var/vendor/ohif is missing: run ./regis once")
def test_the_viewer_lives_below_its_prefix_and_calls_nobody_outside(site: str) -> None:
    refused: list[str] = []
    strangers: list[str] = []
    errors: list[str] = []
    arguments = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    arguments += ["--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=180_000)
        page = browser.new_page()
        page.set_default_timeout(180_000)
        page.on("response", lambda answer: refused.append(answer.url) if answer.status >= 400 else None)
        page.on("request", lambda asked: strangers.append(asked.url) if "://127.0.0.1" not in asked.url else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{site}/viewer/")
        page.get_by_text("No studies available").wait_for()
        browser.close()
    assert refused == []
    assert [url for url in strangers if not url.startswith(("data:", "blob:"))] == []
    assert errors == []


@pytest.mark.skipif(not BUILD.is_dir(), reason="var/vendor/ohif is missing: run ./regis once")
def test_what_regis_does_not_use_is_left_out_and_the_rest_is_compressed() -> None:
    names = {path.relative_to(BUILD).as_posix() for path in BUILD.rglob("*") if path.is_file()}
    assert not [
        name for name in names if name.startswith(("ort/", "dicom-microscopy-viewer/")) or name.endswith(".map")
    ]
    assert "app-config.js" not in names
    big = [name for name in names if name.endswith(".js") and (BUILD / name).stat().st_size > 20_000]
    assert big
    assert [name for name in big if f"{name}.gz" not in names] == []
