"""The draft's editor and the registration form as a browser runs them: no sentence is lost, two windows agree."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.factories.dicom import Patient, Study, ct_series, write_all
from tests.node.conftest import NodeProcess

PREPARE = """
from datetime import timedelta
from django.contrib.auth.models import User
from django.utils import timezone
from gateway.envelope import AccessionBlock
from pacs_node.clinic.models import ApplicationEntity, RosterMember
from pacs_node.offline.accessions import take_block
from pacs_node.study_index.models import Study
user = User.objects.create_user("dr", password="radiant-day")
RosterMember.objects.create(user=user, role="radiologist", expires_at=timezone.now() + timedelta(days=1))
take_block(AccessionBlock(prefix="A", first=1, last=500))
ApplicationEntity.objects.create(ae_title="VANCT", modality="CT")
print(Study.objects.create(study_instance_uid="1.2.3", patient_id="A", patient_name="Выдумкин^Пример").pk)
"""
SLOW = 60_000
HIDDEN = """[...document.querySelectorAll('main .act, main input, main textarea')].filter(one => {
  const frame = one.closest('.panel') || document.body
  return one.getBoundingClientRect().right > frame.getBoundingClientRect().right + 1
}).map(one => one.outerHTML)"""
"""Buttons and fields that begin or end beyond the panel that they are in."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Doctor:
    """A doctor's browser at a node of the test's own."""

    def __init__(self, node: NodeProcess, chromium: Browser) -> None:
        self.node, self._chromium = node, chromium
        self.address = f"http://127.0.0.1:{node.http_port}"
        self.key = node.python(PREPARE)
        context = chromium.new_context(locale="en")
        context.set_default_timeout(SLOW)
        self.context = context
        page = context.new_page()
        page.goto(f"{self.address}/login/")
        page.fill("#username", "dr")
        page.fill("#password", "radiant-day")
        page.click("button.act")
        expect(page).not_to_have_url(f"{self.address}/login/", timeout=SLOW)
        page.close()

    def open(self, path: str = "") -> Page:
        page = self.context.new_page()
        page.goto(f"{self.address}{path or f'/drafts/{self.key}/'}")
        return page


@pytest.fixture
def doctor(chromium: Browser, make_node: Callable[..., NodeProcess]) -> Iterator[Doctor]:
    made = Doctor(make_node(), chromium)
    yield made
    made.context.close()


def kept(page: Page) -> None:
    """Wait until the node has what was typed."""
    expect(page.locator("#draft-state")).to_contain_text("kept at this node", timeout=SLOW)


def test_what_was_typed_is_there_after_the_node_was_killed_and_the_page_loaded_again(doctor: Doctor) -> None:
    page = doctor.open()
    page.locator("#findings").press_sequentially("Очаг 5 мм в S6")
    kept(page)
    doctor.node.kill()
    page.locator("#findings").press_sequentially(", без динамики")
    expect(page.locator("#draft-state")).to_contain_text("kept in this browser", timeout=SLOW)
    doctor.node.start()
    kept(page)
    assert doctor.node.sql("SELECT findings FROM offline_reportdraft") == [("Очаг 5 мм в S6, без динамики",)]
    page.reload()
    expect(page.locator("#findings")).to_have_value("Очаг 5 мм в S6, без динамики", timeout=SLOW)


def test_a_text_that_only_the_browser_has_is_offered_when_the_page_opens_again(doctor: Doctor) -> None:
    page = doctor.open()
    page.locator("#findings").press_sequentially("Начало")
    kept(page)
    doctor.node.kill()
    page.locator("#findings").press_sequentially(" и конец")
    page.close(run_before_unload=False)
    doctor.node.start()
    again = doctor.open()
    expect(again.locator("#recover")).to_be_visible(timeout=SLOW)
    again.click("[data-recover=take]")
    kept(again)
    assert doctor.node.sql("SELECT findings FROM offline_reportdraft") == [("Начало и конец",)]


def test_two_windows_are_shown_both_texts_and_joined(doctor: Doctor) -> None:
    first, second = doctor.open(), doctor.open()
    first.locator("#findings").press_sequentially("Первое окно")
    kept(first)
    second.locator("#findings").press_sequentially("Второе окно")
    expect(second.locator("#conflict")).to_be_visible(timeout=SLOW)
    assert "Первое окно" in second.inner_text("#theirs")
    assert "Второе окно" in second.inner_text("#mine")
    second.click("[data-conflict=both]")
    kept(second)
    assert doctor.node.sql("SELECT findings FROM offline_reportdraft") == [("Первое окно\n\nВторое окно",)]


def test_an_examination_is_registered_by_keyboard_alone(doctor: Doctor) -> None:
    page = doctor.open("/registration/new/")
    page.focus("#name")
    page.keyboard.type("Выдумкин Пример Ёлкович")
    page.focus("#description")
    page.keyboard.type("КТ груди")
    page.keyboard.press("Control+Enter")
    expect(page.locator("[role=status]")).to_contain_text("A00000001", timeout=SLOW)
    again = doctor.open("/registration/new/")
    with again.expect_response(lambda answer: "q=" in answer.url and answer.ok, timeout=SLOW):
        again.locator("#find").press_sequentially("ёлк", delay=50)
    expect(again.locator(".found")).to_have_count(1, timeout=SLOW)
    again.press("#find", "ArrowDown")
    again.keyboard.press("Enter")
    expect(again.locator("#name")).to_have_value("Выдумкин Пример Ёлкович", timeout=SLOW)
    expect(again.locator("#number")).to_contain_text("PA00000001", timeout=SLOW)


@pytest.mark.parametrize("language", ["ru", "en"])
def test_on_a_tablet_every_button_is_in_sight(doctor: Doctor, language: str, tmp_path: Path) -> None:
    long = Patient(patient_id="TEST-1001-10001", name="Превысокомногорассмотрительствующая^Переименована^Ёжиковна")
    write_all(ct_series(1, study=Study(patient=long)), tmp_path / "in")
    doctor.node.command("import", str(tmp_path / "in"))
    page = doctor.context.new_page()
    page.set_viewport_size({"width": 820, "height": 1180})
    doctor.context.add_cookies([{"name": "django_language", "value": language, "url": doctor.address}])
    for path in ("/", f"/drafts/{doctor.key}/", "/registration/", "/registration/new/", "/waiting/"):
        page.goto(f"{doctor.address}{path}")
        assert page.get_attribute("html", "lang") == language
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path
        assert page.evaluate(HIDDEN) == [], path
    page.goto(doctor.address)
    assert page.locator("td a.act").count() == 2, "a draft and the images"
