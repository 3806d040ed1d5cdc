"""Plays the steps in order and prints a line for each with what was checked; ends at the first that fails."""

import time
from collections.abc import Callable
from pathlib import Path

import httpx
from playwright.sync_api import Error as BrowserError

from deploy.people import Refused
from deploy.region import RegionInfo
from deploy.story.browser import Eyes, chromium
from deploy.story.chapters_centre import consult_expert, cut_and_restore, order_disc, report_study, see_as_each_role
from deploy.story.chapters_clinic import acquire_study, book_examination, look_at_node, watch_it_arrive
from deploy.story.stage import Stage
from standards.errors import RegisError

CHAPTERS: list[tuple[str, Callable[[Stage], str]]] = [
    ("A registrar books an examination", book_examination),
    ("The scanner finds it on its worklist and sends the images", acquire_study),
    ("The node has them at once", look_at_node),
    ("The centre's worklist shows them arriving, with proof", watch_it_arrive),
    ("Everybody logs in and sees their own pages", see_as_each_role),
    ("A radiologist reads the images, writes and signs", report_study),
    ("The reference centre is asked and concludes", consult_expert),
    ("A disc is ordered, built, verified and opened", order_disc),
    ("The link to clinic B is cut and restored", cut_and_restore),
]


def play(info: RegionInfo, data: Path | None) -> int:
    """Play the story in a running region; 0 when every step held. ``data``: files that the first scanner acquires."""
    program = chromium()
    if program is None:
        print("No Chromium is installed here: what people see is not looked at.", flush=True)
        return _chapters(Stage(info, data, None))
    with Eyes(program, info.directory / "screenshots") as eyes:
        return _chapters(Stage(info, data, eyes))


def _chapters(stage: Stage) -> int:
    for number, (title, chapter) in enumerate(CHAPTERS, start=1):
        begun = time.monotonic()
        try:
            checked = chapter(stage)
        except (RegisError, Refused, AssertionError, httpx.HTTPError, BrowserError, OSError) as error:
            print(f"  ✗ {number}. {title}: {type(error).__name__}: {error}", flush=True)
            return 1
        print(f"  ✓ {number}. {title} ({time.monotonic() - begun:.1f} s): {checked}", flush=True)
    return 0
