"""The second half of the story: read and signed, consulted, handed out on a disc, and a cut link that loses nothing."""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

from deploy.people import expect_refusal, until
from deploy.simulator.acquisition import acquire
from deploy.simulator.populate import Visit, book_first_free
from deploy.story.browser import Eyes
from deploy.story.stage import PATIENT, Stage
from publishing.image import ImageReader
from publishing.read import read_disc

FINDINGS = "Очаговых изменений вещества мозга не выявлено. Желудочки не расширены, срединные структуры не смещены."
CONCLUSION = "КТ-картина без патологии (учебный пример)."
OPINION = "Согласен с заключением. Ёмкость ликворных пространств в пределах нормы."
SPECTATORS = ["radiologist", "registrar", "clerk", "expert", "engineer", "admin"]


def see_as_each_role(stage: Stage) -> str:
    """Each role logs in through the page and gets its own first page; an expert without a consult sees no study."""
    for username in SPECTATORS:
        person = stage.person(username)
        person.get("/")
        if stage.eyes is not None:
            page = stage.eyes.log_in(stage.url, username, stage.user(username)["password"])
            page.wait_for_selector("h1")
            stage.eyes.keep(page, f"first-page-{username}")
            page.context.close()
    assert not stage.studies("expert", stage.study_instance_uid), "an expert of another site sees the study unasked"
    expect_refusal("403", lambda: stage.person("registrar").get("/audit/"))
    return f"{len(SPECTATORS)} roles; an expert sees nothing unasked, a registrar no audit trail"


def report_study(stage: Stage) -> str:
    """The radiologist sees the images beside the report, writes, signs; PDF and SR reach the archive."""
    study = stage.study["id"]
    looked = ""
    if stage.eyes is not None:
        page = stage.eyes.log_in(stage.url, "radiologist", stage.user("radiologist")["password"])
        _write_and_sign(stage.eyes, page, f"{stage.url}/studies/{study}/")
        page.context.close()
        looked = "OHIF drew the image inside the page; typed, saved by itself, signed by keyboard; "
    else:
        text = {"study": study, "findings": FINDINGS, "conclusion": CONCLUSION, "sign": True}
        stage.person("radiologist").send("/api/v1/reports", text)

    def stored() -> dict[str, Any] | None:
        report = stage.person("radiologist").json("/api/v1/reports", study=study)["results"][0]
        return report if report["documents"] and all(d["stored_at"] for d in report["documents"]) else None

    report = until("PDF and SR are at the archive", stored)
    assert (report["status"], report["findings"]) == ("final", FINDINGS), f"{report['status']}: {report['findings']}"
    pdf = stage.person("radiologist").get(f"/reports/{report['id']}/report.pdf").content
    assert pdf.startswith(b"%PDF-"), "the PDF is none"
    uid = stage.study_instance_uid
    with stage.node_client("archive", uid) as client:
        series = client.get(f"/studies/{uid}/series").raise_for_status().json()
    modalities = {one["00080060"]["Value"][0] for one in series}
    assert {"DOC", "SR"} <= modalities, f"the archive has {sorted(modalities)}"
    changed = {"study": study, "version": report["version"], "findings": "другое", "conclusion": ""}
    expect_refusal("409", lambda: stage.person("radiologist").send("/api/v1/reports", changed))
    return f"{looked}PDF and SR are at the archive; a change after signing was refused"


def _write_and_sign(eyes: Eyes, page: Page, url: str) -> None:
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(url)
    viewer = page.frame_locator("#viewer")
    eyes.wait_for_picture(viewer.locator(".cornerstone-canvas").first, "the viewer inside the study page")
    page.fill("#report-findings", FINDINGS)
    page.fill("#report-conclusion", CONCLUSION)
    eyes.keep(page, "study-with-report")
    page.wait_for_function(
        "() => !localStorage.getItem('regis-report-' + document.getElementById('report-form').dataset.study)"
    )
    page.press("#report-conclusion", "Control+Enter")
    page.wait_for_selector("#report .state-final")
    eyes.keep(page, "study-signed")


def consult_expert(stage: Stage) -> str:
    """The clinic asks, the expert takes a slot, has all images first, concludes; the grant ends with the consult."""
    asked = stage.person("radiologist").send(
        "/api/v1/consults",
        {
            "study": stage.study["id"],
            "reference_site": "reference",
            "question": "Прошу второе мнение.",
            "is_urgent": True,
        },
    )
    expert, consult = stage.person("expert"), f"/api/v1/consults/{asked['id']}"
    assert stage.studies("expert", stage.study_instance_uid), "the expert does not see the study of the consult"
    expert.send(f"{consult}/take", {"minutes": 20})
    ready = until("all images are ready for the expert", lambda: _ready(expert.json(consult)))
    if stage.eyes is not None:
        page = stage.eyes.log_in(stage.url, "expert", stage.user("expert")["password"])
        page.goto(f"{stage.url}/consults/{asked['id']}/")
        viewer = page.frame_locator("iframe").first.locator(".cornerstone-canvas").first
        stage.eyes.wait_for_picture(viewer, "the viewer on the expert's desk")
        stage.eyes.keep(page, "consult")
        page.context.close()
    saved = expert.send(f"{consult}/opinion", {"version": ready["version"], "opinion": OPINION})
    done = expert.send(f"{consult}/conclude", {"version": saved["version"], "opinion": OPINION})
    assert done["status"] == "completed", done["status"]
    seen = stage.person("radiologist").json(consult)
    assert seen["opinion"] == OPINION, "the clinic does not see the opinion"
    assert not stage.studies("expert", stage.study_instance_uid), "the expert sees the study after the consult"
    return "slot taken, images there first, concluded, seen by the clinic; the expert's grant has ended"


def _ready(consult: dict[str, Any]) -> dict[str, Any] | None:
    return consult if consult["images_ready_at"] else None


def order_disc(stage: Stage) -> str:
    """The clerk orders a disc; it is built and verified, holds every image and the report, and opens from its files."""
    clerk = stage.person("clerk")
    ordered = clerk.send("/api/v1/discs", {"studies": [stage.study["id"]], "medium": "cd"})

    def finished() -> dict[str, Any] | None:
        job: dict[str, Any] = clerk.json(f"/api/v1/discs/{ordered['id']}")
        assert job["status"] != "failed", f"{job['error_code']}: {job['error_detail']}"
        return job if job["status"] == "completed" else None

    job = until("the disc is built and verified", finished)
    assert job["verified_at"], "the disc was not verified"
    folder = Path(tempfile.mkdtemp(prefix="disc-", dir=stage.info.directory))
    try:
        image = folder / "disc.iso"
        image.write_bytes(clerk.get(f"/discs/{ordered['id']}/disc.iso").content)
        files = read_disc(image)
        good = {found.sop_instance_uid for found in files if found.status == "ok"}
        assert stage.sent <= good, f"the disc has {len(good & stage.sent)} of {len(stage.sent)} images"
        opened = ""
        if stage.eyes is not None:
            _copy_off(image, folder / "files")
            _open_disc(stage.eyes, folder / "files")
            opened = ", opened from its own files in the browser"
    finally:
        shutil.rmtree(folder)
    return f"{len(good)} objects on it, {job['image_bytes'] // 1_000_000} MB, read back and compared{opened}"


def _copy_off(image: Path, folder: Path) -> None:
    """All files of the disc into a folder, as a person's file manager would."""
    with ImageReader(image) as disc:
        for name in disc.names():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                disc.copy(name, file)


def _open_disc(eyes: Eyes, files: Path) -> None:
    page = eyes.context().new_page()
    page.goto((files / "INDEX.HTM").as_uri())
    page.wait_for_load_state()
    name = PATIENT.split("^")[0]
    page.get_by_text(name).first.wait_for()
    eyes.wait_for_picture(page.locator("canvas").first, "the viewer of the disc")
    eyes.keep(page, "disc")
    page.context.close()


def cut_and_restore(stage: Stage) -> str:
    """Clinic B acquires while its link is cut; when it returns, everything arrives once, and all of it is safe."""
    scanner, images = stage.scanner("MR_B"), 12
    visit = Visit("MR_B", "Островитянин^Робинзон^Пятницын", "1972-07-07", "M", "МРТ коленного сустава", 0, images)
    order = book_first_free(stage.person("registrar-b"), visit)
    accession, uid = order["accession_number"], order["study_instance_uid"]
    scheduled = until("clinic B has the order", lambda: scanner.worklist(AccessionNumber=accession))[0]
    stage.info.cut_link("clinic-b")
    try:
        sent = scanner.send(acquire(scheduled, images=images, station="MR_B", time_zone="Europe/Samara"))
        assert len(sent.stored) == images, f"cut off, clinic B stored {len(sent.stored)} of {images}"
        again = scanner.worklist(AccessionNumber=accession)
        assert again, "cut off, clinic B has lost its worklist"
        time.sleep(3)  # long enough that a link which is not really cut would have told the centre
        assert not stage.studies("radiologist-b", uid), "the centre knows of it although the link is cut"
    finally:
        stage.info.restore_link("clinic-b")

    def arrived() -> dict[str, Any] | None:
        rows = stage.studies("radiologist-b", uid)
        return rows[0] if rows and rows[0]["instances_safe"] == images else None

    study = until("everything of clinic B is safe", arrived)
    assert study["instances_known"] == images, f"{study['instances_known']} known of {images}"
    with stage.node_client("archive", uid) as client:
        found = client.get(f"/studies/{uid}/instances").raise_for_status().json()
    uids = [one["00080018"]["Value"][0] for one in found]
    assert sorted(uids) == sorted(sent.stored), f"the archive lists {len(uids)} of {images}"
    return f"{images} acquired while cut off, {images} of {images} safe after, none twice"
