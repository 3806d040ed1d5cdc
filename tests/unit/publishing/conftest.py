"""A study of a plainly fictional patient and the disc it makes."""

from pathlib import Path

import pytest

from publishing.build import build_disc
from publishing.contract import DiscOptions, DiscReport
from standards.uids import new_uid
from tests.unit.publishing.made_up import ct_slice, pdf_report, save, text_report, unpacked, us_cine


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six CT slices, a cine loop, an SR and an encapsulated PDF of one patient."""
    folder = tmp_path_factory.mktemp("study")
    study, series = new_uid(), new_uid()
    for number in range(1, 7):
        save(ct_slice(study, series, number), folder / "ct" / f"slice-{number}.dcm")
    save(us_cine(study), folder / "us.dcm")
    save(text_report(study), folder / "report-sr.dcm")
    save(pdf_report(study), folder / "report-pdf.dcm")
    return folder


@pytest.fixture(scope="session")
def disc(study_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DiscReport:
    """The disc of ``study_folder``; tests read it and never change it."""
    output = tmp_path_factory.mktemp("disc") / "disc.iso"
    return build_disc([study_folder], output, options=DiscOptions(institution="Больница «Вымысел»", contact="тел. 000"))


@pytest.fixture(scope="session")
def disc_folder(disc: DiscReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the disc, taken out of its ISO 9660 tree."""
    return unpacked(disc.output, tmp_path_factory.mktemp("unpacked"))
