"""A rules file is tried on stored studies: what would change is said, and nothing is changed."""

from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from gateway.proxy.journal import Journal
from pacs_node import proxying
from pacs_node.study_index.models import Instance
from tests.factories.dicom import ct_series, part10
from tests.unit.gateway.test_proxy_rewriting import lie

pytestmark = pytest.mark.django_db

RULES = """
[destinations.RESEARCH]
host = "192.0.2.1"
port = 104
[[rule]]
name = "All to the node"
copy = "node"
[[rule]]
name = "Coerce"
when = { modality = "CT" }
set = { InstitutionName = "Больница" }
[[rule]]
name = "Research"
copy = "RESEARCH"
deidentify = true
[[rule]]
name = "Mend"
charset = "repair"
"""


def check(tmp_path: Path, *arguments: object, rules: str = RULES) -> str:
    path = tmp_path / "rules.toml"
    path.write_text(rules, encoding="utf-8")
    out = StringIO()
    call_command("proxy", "check", str(path), *map(str, arguments), stdout=out)
    return out.getvalue()


def test_stored_studies_are_told_of_and_stay_as_they_are(tmp_path: Path) -> None:
    study, other = ct_series(1)[0], ct_series(1)[0]
    for dataset in (study, other):
        path = tmp_path / f"{dataset.SOPInstanceUID}.dcm"
        path.write_bytes(part10(dataset))
        call_command("import", str(path), stdout=StringIO())
    before = sorted(Instance.objects.values_list("path", "dataset_sha256"))
    said = check(tmp_path, "--studies", study.StudyInstanceUID)
    assert f"Study {study.StudyInstanceUID}" in said
    assert other.StudyInstanceUID not in said
    assert "rules that fit: «All to the node», «Coerce», «Research», «Mend»" in said
    assert "(0008,0080) InstitutionName: " in said
    assert "→ 'Больница'" in said
    assert "node: copied as it is" in said
    assert "RESEARCH: copied, changed" in said
    assert "(0012,0062) PatientIdentityRemoved: is not there → 'YES'" in said
    assert sorted(Instance.objects.values_list("path", "dataset_sha256")) == before


def test_what_cannot_be_de_identified_is_said_to_be_withheld(tmp_path: Path) -> None:
    (dataset,) = ct_series(1)
    dataset.BurnedInAnnotation = "YES"
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "one.dcm").write_bytes(part10(dataset))
    assert "RESEARCH: withheld (not-deidentifiable" in check(tmp_path, folder)


def test_lying_characters_are_shown_with_what_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    whole = part10(ct_series(1)[0])
    (folder / "one.dcm").write_bytes(
        whole[: 144 + int.from_bytes(whole[140:144], "little")] + lie("cp1251", "ISO_IR 100")
    )
    said = check(tmp_path, folder)
    assert "its texts declare ISO_IR 100 and are Windows-1251" in said
    assert "Щёголев^Пётр" in said
    assert "(0008,0005) SpecificCharacterSet: 'ISO_IR 100' → 'ISO_IR 192'" in said


def test_as_if_another_device_had_sent_it(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "one.dcm").write_bytes(part10(ct_series(1)[0]))
    rules = '[[rule]]\nname = "MR only"\nwhen = { calling_ae = "MR*" }\ndrop = true\n'
    assert "rules that fit: none" in check(tmp_path, folder, rules=rules)
    assert "old PACS: dropped, answered 0000" in check(tmp_path, folder, "--calling", "MR7", rules=rules)


def test_as_if_it_had_come_from_another_address_by_the_same_device(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (dataset,) = ct_series(1)
    dataset.file_meta.SendingApplicationEntityTitle = "CT7"
    (folder / "one.dcm").write_bytes(part10(dataset))
    rules = '[[rule]]\nname = "room 5"\nwhen = { calling_ae = "CT7", address = "10.1.2.0/24" }\ndrop = true\n'
    assert "rules that fit: none" in check(tmp_path, folder, rules=rules)
    assert "rules that fit: «room 5»" in check(tmp_path, folder, "--address", "10.1.2.3", rules=rules)


def test_where_there_is_nothing_to_try_it_on_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "There was nothing to try it on." in check(tmp_path, "--studies", "1.2.3")
    assert "Nothing is stored of study 1.2.3" in capsys.readouterr().err
    with pytest.raises(CommandError, match="is not there"):
        check(tmp_path, tmp_path / "nowhere")


def test_a_broken_file_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="«typo»"):
        check(tmp_path, rules='[[rule]]\nname = "typo"\ncopi = "node"\n')


def test_what_was_not_tapped_is_listed() -> None:
    Journal(proxying.folder()).missing("too-slow", sop_instance_uid="1.2.3.4", calling_ae_title="CT1")
    out = StringIO()
    call_command("proxy", "missing", stdout=out)
    assert "CT1 1.2.3.4: too-slow" in out.getvalue()
