"""A disc opened by double click: real browsers, file://, no WebGL, no network."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from pydicom.uid import ExplicitVRLittleEndian

from publishing.build import build_disc
from publishing.contract import DiscOptions
from standards.uids import new_uid
from tests.unit.publishing.made_up import PDF, ct_slice, save, text_report, unpacked, us_cine

NAME = "Щёголев-Ящуржинский Пётр Ёжикович"
PATIENCE = 120_000
"""Milliseconds: a browser that draws without a graphics card on a busy machine takes its time."""
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disc with a CT series, a cine loop, an SR and a PDF, built as an image and taken out of it."""
    base = tmp_path_factory.mktemp("disc")
    study, series = new_uid(), new_uid()
    for number in range(1, 21):
        save(ct_slice(study, series, number, size=128), base / "source" / f"{number}.dcm", ExplicitVRLittleEndian)
    save(us_cine(study), base / "source" / "us.dcm")
    save(text_report(study), base / "source" / "sr.dcm")
    (base / "signed.pdf").write_bytes(PDF)
    options = DiscOptions(institution="Больница «Вымысел»", reports=(base / "signed.pdf",))
    report = build_disc([base / "source"], base / "disc.iso", options=options)
    assert report.instances == 22
    return unpacked(report.output, base / "files")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium is installed")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=executable,
            args=["--no-sandbox", "--disable-gpu", "--disable-webgl", "--disable-3d-apis"],
            timeout=PATIENCE,
        )
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that may have no script error and ask for nothing over a network."""
    one = browser.new_page(viewport={"width": 1366, "height": 768})
    one.set_default_timeout(PATIENCE)
    problems: list[str] = []
    one.on("pageerror", lambda error: problems.append(str(error)))
    one.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
    yield one
    one.close()
    assert problems == []


def open_disc(page: Page, folder: Path) -> None:
    page.goto((folder / "INDEX.HTM").as_uri(), wait_until="commit")  # a chunk that is held back holds the load event


def shown(page: Page, frame: str) -> None:
    page.wait_for_function("frame => document.body.dataset.shown === frame", arg=frame)


def image(page: Page) -> np.ndarray[Any, Any]:
    """The picture itself, (rows, columns, 4), before it is scaled to the window."""
    pixels = page.evaluate(
        "[off.width, off.height, ...off.getContext('2d').getImageData(0, 0, off.width, off.height).data]"
    )
    return np.array(pixels[2:], np.uint8).reshape(pixels[1], pixels[0], 4)


def windowed(number: int) -> np.ndarray[Any, Any]:
    values = np.frombuffer(ct_slice("1.2", "1.3", number, size=128).PixelData, "<i2").reshape(128, 128).astype(float)
    return np.clip((values - (40 - 200)) / 400 * 255, 0, 255)


def test_the_image_the_name_and_the_report_are_shown_without_webgl(page: Page, folder: Path) -> None:
    open_disc(page, folder)
    assert page.evaluate("document.createElement('canvas').getContext('webgl')") is None
    shown(page, "S00001/0")
    assert np.abs(image(page)[..., 0] - windowed(1)).max() <= 1
    greys = page.evaluate(
        "new Set(document.getElementById('canvas').getContext('2d')"
        ".getImageData(0, 0, canvas.width, canvas.height).data.filter((_, i) => i % 4 === 0)).size"
    )
    assert greys > 5
    expect(page.locator("#name")).to_have_text(NAME)
    expect(page.locator("#report-body")).to_contain_text("Очаговых изменений не выявлено <b>& всё ясно</b>")
    expect(page.locator("#warning")).to_have_text("Не для диагностики")
    expect(page.locator("#institution")).to_have_text("Больница «Вымысел»")


def test_every_frame_is_unpacked_to_the_very_values_of_the_object(page: Page, folder: Path) -> None:
    open_disc(page, folder)
    shown(page, "S00001/0")
    page.wait_for_function("state.stack.loaded === state.stack.count")
    biased = page.evaluate("Promise.all(state.stack.frames.map(async frame => [...await unpack(frame)]))")
    for number, values in enumerate(biased, 1):
        expected = np.frombuffer(ct_slice("1.2", "1.3", number, size=128).PixelData, "<i2")
        assert np.array_equal(np.array(values) - 32768, expected)
    page.locator("[data-stack=S00002]").click()
    page.wait_for_function("state.stack.loaded === 5")
    colours = page.evaluate(
        "Promise.all(state.stack.frames.map(async f => (await unpack(f)).map(plane => [...plane])))"
    )
    loop = np.frombuffer(us_cine("1.2").PixelData, np.uint8).reshape(5, 48 * 64, 3)
    assert np.array_equal(np.array(colours).transpose(0, 2, 1), loop)


def test_the_first_image_is_there_before_the_rest_has_come(page: Page, folder: Path) -> None:
    held: list[Any] = []
    page.route("**/S00001/C00002.JS", lambda route: held.append(route))
    open_disc(page, folder)
    shown(page, "S00001/0")
    assert page.evaluate("state.stack.loaded") == 1
    page.wait_for_function("state.stack.chunks[1].state === 'loading'")
    for _ in range(PATIENCE // 100):  # the browser tells of a request a moment after the page has made it
        if held:
            break
        page.wait_for_timeout(100)
    assert len(held) == 1
    held[0].continue_()
    page.wait_for_function("state.stack.loaded === 20")


def test_wheel_keys_slider_and_drag_do_what_they_say(page: Page, folder: Path) -> None:
    open_disc(page, folder)
    shown(page, "S00001/0")
    view = page.locator("#view")
    view.hover()
    page.mouse.wheel(0, 100)
    shown(page, "S00001/1")
    page.keyboard.press("End")
    shown(page, "S00001/19")
    assert np.abs(image(page)[..., 0] - windowed(20)).max() <= 1
    page.locator("#slider").fill("4")
    shown(page, "S00001/4")
    before = image(page)
    box = view.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 150, y - 60, steps=4)
    page.mouse.up()
    width, centre = page.evaluate("[state.window[1], state.window[0]]")
    assert width > 450
    assert centre < 0
    assert not np.array_equal(image(page), before)
    view.focus()
    page.keyboard.press("r")
    assert np.array_equal(image(page), before)
    page.keyboard.press("2")
    assert page.evaluate("state.window") == [-600, 1500]


def test_a_length_is_measured_in_millimetres(page: Page, folder: Path) -> None:
    open_disc(page, folder)
    shown(page, "S00001/0")
    page.locator("[data-tool=length]").click()
    scale = page.evaluate("placement(state.shown.info).scaleX / devicePixelRatio")
    box = page.locator("#view").bounding_box()
    assert box is not None
    x, y = box["x"] + 200, box["y"] + 200
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 30 * scale, y + 40 * scale, steps=3)
    page.mouse.up()
    ((x1, y1, x2, y2),) = page.evaluate("state.lines.get('S00001/0')")
    assert np.hypot(x2 - x1, y2 - y1) == pytest.approx(50, abs=0.5)


def test_a_cine_loop_plays_and_stops(page: Page, folder: Path) -> None:
    open_disc(page, folder)
    shown(page, "S00001/0")
    page.locator("[data-stack=S00002]").click()
    shown(page, "S00002/0")
    assert page.locator("#rate").input_value() == "25"
    page.locator("#play").click()
    for frame in (3, 0):
        shown(page, f"S00002/{frame}")
    page.locator("#play").click()
    assert page.evaluate("state.playing") == 0


def test_the_language_changes_all_words(page: Page, folder: Path) -> None:
    open_disc(page, folder)
    shown(page, "S00001/0")
    page.locator("[data-language=en]").click()
    expect(page.locator("#warning")).to_have_text("Not for diagnosis")
    expect(page.locator("#bottom-left")).to_contain_text("Image 1 of 20")
    texts = page.evaluate("TEXTS")
    assert texts["ru"].keys() == texts["en"].keys()
    for words in texts.values():
        assert "" not in [word for key, word in words.items() if key != "O"]


def test_the_signed_pdf_opens_beside_the_images(page: Page, folder: Path) -> None:
    open_disc(page, folder)
    shown(page, "S00001/0")
    page.get_by_role("button", name="PDF").click()
    link = page.locator("#report-link").evaluate("one => one.href")
    assert link == (folder / "IHE_PDI" / "REPORT02.PDF").as_uri()
    assert page.locator("#report-body iframe").evaluate("one => one.src") == link


def test_an_unreadable_chunk_is_said_to_be_so(page: Page, folder: Path) -> None:
    page.route("**/S00001/C00001.JS", lambda route: route.abort())
    open_disc(page, folder)
    expect(page.locator("#message")).to_contain_text("не читается")
    page.keyboard.press("ArrowDown")
    shown(page, "S00001/1")
    expect(page.locator("#message")).to_have_text("")


def test_without_scripts_the_page_still_leads_to_reports_and_objects(folder: Path) -> None:
    content = (folder / "INDEX.HTM").read_text("utf-8")
    for wanted in ("IHE_PDI/REPORT01.HTM", "IHE_PDI/REPORT02.PDF", "README.TXT", "<noscript>", "DICOM/PA000001"):
        assert wanted in content
    assert "Очаговых изменений" in (folder / "IHE_PDI" / "REPORT01.HTM").read_text("utf-8")


@pytest.mark.timeout(900)
def test_firefox_shows_the_same_page(folder: Path, tmp_path: Path) -> None:
    firefox = shutil.which("firefox-esr") or shutil.which("firefox")
    if firefox is None:
        pytest.skip("no Firefox is installed")
    profile, target = tmp_path / "profile", tmp_path / "shot.png"
    profile.mkdir()
    (profile / "user.js").write_text(f"user_pref({json.dumps('webgl.disabled')}, true);\n")
    spread = 0.0
    for _ in range(10):  # it takes its picture at the load event, which a busy machine may fire before the first frame
        subprocess.run(
            [
                *(firefox, "--headless", "--no-remote", "--profile", str(profile), "--window-size", "1366,768"),
                *("--screenshot", str(target), (folder / "INDEX.HTM").as_uri()),
            ],
            env={**os.environ, "HOME": str(profile)},
            capture_output=True,
            timeout=300,
            check=True,
        )
        shot = np.asarray(Image.open(target).convert("L")).astype(float)
        stage = shot[200:650, 400:780]  # the middle of the image, without marks and panels
        spread = float(stage.max() - stage.min())
        if spread > 100:
            break
    assert spread > 100
    banner, report = shot[5:60, 10:600], shot[120:400, 920:1340]
    assert (banner > 180).sum() > 200
    assert (report > 150).sum() > 200
