"""What rules make of a data set: coerced, mended in its characters, de-identified; and what they must leave."""

import io
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileDataset
from pydicom.filereader import dcmread

from gateway.proxy.conditions import Sender
from gateway.proxy.journal import Journal
from gateway.proxy.rewriting import Rewritten, rewritten
from gateway.proxy.rules import Rules, Verdict, read
from gateway.proxy.rules_file import RulesFile
from standards import part10 as part10_reader
from standards.errors import PermanentError
from standards.uids import new_uid
from tests.factories.dicom import Patient, Study, ct_series, part10

EXPLICIT = "1.2.840.10008.1.2.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
SENDER = Sender("CT1", "OLDPACS", "10.1.2.3")
SECRET = b"of the tests"


def rules(text: str) -> Rules:
    return read(tomllib.loads(text))


def data_of(dataset: FileDataset) -> bytes:
    whole = part10(dataset)
    return whole[144 + int.from_bytes(whole[140:144], "little") :]


def verdict(text: str, dataset: FileDataset, sender: Sender = SENDER) -> Verdict:
    header = part10_reader.read_header(io.BytesIO(data_of(dataset)), EXPLICIT, required=())
    return rules(text).verdict(sender, str(dataset.SOPClassUID), header.dataset)


def changed(text: str, dataset: FileDataset) -> tuple[Dataset, Rewritten]:
    """The data set after the changes of all rules that fit, read by pydicom."""
    found = verdict(text, dataset)
    changes = (*found.changes, *(copy.changes for copy in found.copies))
    new = rewritten(memoryview(data_of(dataset)), EXPLICIT, changes, SECRET)
    return dcmread(io.BytesIO(b"".join(bytes(piece) for piece in new.pieces)), force=True), new


def lie(written_in: str, declared: str) -> bytes:
    """An encoded slice whose texts are in another set than it says."""
    (dataset,) = ct_series(1, study=Study(patient=Patient(name="Щёголев^Пётр"), character_set="ISO_IR 192"))
    honest = data_of(dataset)
    for text in ("Щёголев^Пётр", "КТ головы"):
        utf, other = text.encode(), text.encode(written_in)
        utf += b" " * (len(utf) % 2)
        other += b" " * (len(other) % 2)
        assert len(utf).to_bytes(2, "little") + utf in honest
        honest = honest.replace(len(utf).to_bytes(2, "little") + utf, len(other).to_bytes(2, "little") + other)
    said = declared + " " * (len(declared) % 2)
    return honest.replace(b"CS\x0a\0ISO_IR 192", b"CS" + len(said).to_bytes(2, "little") + said.encode())


# Conditions


@pytest.mark.parametrize(
    ("when", "fits"),
    [
        ('calling_ae = "CT*"', True),
        ('calling_ae = "MR*"', False),
        ('calling_ae = ["MR1", "CT1"]', True),
        ('address = "10.1.0.0/16"', True),
        ('address = "10.2.0.0/16"', False),
        ('modality = "CT"', True),
        ('sop_class = "CTImageStorage"', True),
        ('sop_class = "MR*"', False),
        ('PatientID = "TEST-*"', True),
        ('"0010,0020" = "/^TEST-\\\\d+$/"', True),
        ('PatientID = "/^X/"', False),
        ('absent = ["PatientComments"]', True),
        ('absent = ["PatientID"]', False),
        ('present = ["PatientID"]', True),
        ('PatientComments = ""', True),
        ('modality = "CT", PatientID = "nobody"', False),
    ],
)
def test_conditions_fit_or_not(when: str, fits: bool) -> None:
    found = verdict(f'[[rule]]\nname = "one"\nwhen = {{ {when} }}\ndrop = true\n', ct_series(1)[0])
    assert found.rules == (("one",) if fits else ())


def test_the_first_drop_or_route_counts_and_stop_ends() -> None:
    text = """
    [destinations.A]
    host = "a"
    port = 104
    [[rule]]
    name = "to A"
    route = "A"
    [[rule]]
    name = "drop"
    drop = 0xA700
    stop = true
    [[rule]]
    name = "never reached"
    copy = "A"
    """
    found = verdict(text, ct_series(1)[0])
    assert (found.route, found.drop, found.copies) == ("A", None, ())
    assert found.rules == ("to A", "drop")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[rule]]\nname = "x"\nset = { PatientNme = "a" }', "PatientNme"),
        ('[[rule]]\nname = "x"\ncopy = "nowhere"', "[destinations.nowhere]"),
        ('[[rule]]\nname = "x"\ndeidentify = true', "deidentify goes with copy"),
        ('[[rule]]\nname = "x"\ncopy = "node"\nset = { PatientID = "a" }', "originals"),
        ('[[rule]]\nname = "x"', "does nothing"),
        ('[[rule]]\nname = "x"\ncharset = "klingon"', "klingon"),
        ('[[rule]]\nname = "x"\nset = { Rows = "1" }', "text only"),
        ('[[rule]]\nname = "x"\nset = { SOPInstanceUID = "1" }', "SOP Instance UID"),
        ('[[rule]]\nname = "x"\ncopy_tag = { ImageComments = "Rows" }', "Rows is US"),
        ('[[rule]]\nname = "x"\nwhen = { PatientID = "/(/" }\ndrop = true', "regular expression"),
        ('[[rule]]\nname = "x"\ndrop = true\n[[rule]]\nname = "x"\ndrop = true', "two rules"),
        ('[old_pacs]\nwhen_down = "panic"', "panic"),
        ("rules = 1", "'rules'"),
        ("rule = 5", "[[rule]]"),
        ('[[rule]]\nname = "x"\nmap = { Modality = "OT" }', "Modality is no table"),
        ('[[rule]]\nname = "x"\nremove = 5', "list of texts"),
        ('[[rule]]\nname = "x"\nset = { PatientID = ["a"] }', "no text"),
        ('[[rule]]\nname = "x"\ncopy = "node"\nstop = "no"', "not true or false"),
        ("[devices]\nCT1 = 5", "CT1 is no table"),
        ('[charsets]\nwatch = "no"', "not true or false"),
        ('[destinations."../../x"]\nhost = "a"\nport = 104', "make a name"),
    ],
)
def test_a_file_that_does_not_hold_together_is_refused_with_the_place(text: str, said: str) -> None:
    with pytest.raises(PermanentError, match="invalid-rules") as refusal:
        rules(text)
    assert said in refusal.value.detail


_WORDS = st.sampled_from(
    [
        *("old_pacs", "destinations", "devices", "rule", "charsets", "when_down", "watch", "name", "when", "stop"),
        *("drop", "route", "copy", "deidentify", "set", "remove", "copy_tag", "map", "charset", "charset_to"),
        *("node", "host", "port", "ae_title", "PatientID", "Rows", "0009,1010", "address", "absent", "repair", "/(/"),
    ]
)
_WRITTEN = st.recursive(
    st.one_of(_WORDS, st.integers(-1, 1 << 17), st.booleans(), st.floats(), st.dates()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_WORDS, inner, max_size=5)),
    max_leaves=30,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.dictionaries(_WORDS, _WRITTEN, max_size=4)
    | st.builds(lambda entries: {"rule": entries}, st.lists(st.dictionaries(_WORDS, _WRITTEN, max_size=5), max_size=3))
)
def test_whatever_a_person_writes_is_rules_or_a_fault_with_a_name(raw: dict[str, Any]) -> None:
    with suppress(PermanentError):
        read(raw)


def test_a_file_that_nobody_foresaw_is_broken_and_does_not_end_who_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumbles(raw: dict[str, Any]) -> None:
        raise TypeError("not iterable")

    monkeypatch.setattr("gateway.proxy.rules.read", stumbles)
    path = tmp_path / "rules.toml"
    path.write_text("")
    told = Journal(tmp_path)
    found = RulesFile(path, tmp_path / "last-good.toml", told)
    assert found.now().rules == ()
    assert told.facts["rules"]["state"] == "broken"
    assert "not iterable" in told.facts["rules"]["error"]


def test_the_file_of_the_guide_holds_together() -> None:
    guide = (Path(__file__).parents[3] / "docs" / "guide" / "proxy.md").read_text(encoding="utf-8")
    found = rules(guide.partition("```toml")[2].partition("```")[0])
    assert found.store_and_forward
    assert len(found.rules) == 6
    assert found.devices == {"CT1": ("10.0.0.21", 104)}


# Coercion


def test_values_are_set_removed_copied_and_mapped_and_nothing_else_changes() -> None:
    (dataset,) = ct_series(1)
    text = """
    [[rule]]
    name = "coerce"
    set = { InstitutionName = "Городская больница №5" }
    remove = ["PatientSex"]
    copy_tag = { StudyID = "AccessionNumber" }
    map = { Modality = { CT = "OT" } }
    """
    after, new = changed(text, dataset)
    assert after.InstitutionName == "Городская больница №5"
    assert "PatientSex" not in after
    assert (after.StudyID, after.Modality) == (dataset.AccessionNumber, "OT")
    assert {difference.tag for difference in new.differences} == {0x00080080, 0x00100040, 0x00200010, 0x00080060}
    for element in dataset:
        if element.tag not in {0x00080080, 0x00100040, 0x00200010, 0x00080060}:
            assert after[element.tag].value == element.value


# Characters


@pytest.mark.parametrize("written_in", ["cp1251", "koi8_r", "utf_8", "cp866"])
@pytest.mark.parametrize("declared", ["ISO_IR 100", "ISO_IR 144"])
@pytest.mark.parametrize("rule", ["repair", "declared"])
def test_lying_texts_are_mended(written_in: str, declared: str, rule: str) -> None:
    word = {"cp1251": "windows-1251", "koi8_r": "KOI8-R", "utf_8": "UTF-8", "cp866": "CP866"}[written_in]
    text = f'[[rule]]\nname = "mend"\ncharset = "{"repair" if rule == "repair" else word}"\n'
    (found,) = [one.changes for one in rules(text).rules]
    new = rewritten(memoryview(lie(written_in, declared)), EXPLICIT, (found,), SECRET)
    after = dcmread(io.BytesIO(b"".join(bytes(piece) for piece in new.pieces)), force=True)
    assert after.SpecificCharacterSet == "ISO_IR 192"
    assert (after.PatientName, after.StudyDescription) == ("Щёголев^Пётр", "КТ головы")


def test_they_are_mended_into_what_the_old_pacs_reads() -> None:
    text = '[[rule]]\nname = "mend"\ncharset = "repair"\ncharset_to = "ISO_IR 144"\n'
    (found,) = [one.changes for one in rules(text).rules]
    new = rewritten(memoryview(lie("cp1251", "ISO_IR 100")), EXPLICIT, (found,), SECRET)
    after = dcmread(io.BytesIO(b"".join(bytes(piece) for piece in new.pieces)), force=True)
    assert (after.SpecificCharacterSet, after.PatientName) == ("ISO_IR 144", "Щёголев^Пётр")


def test_honest_texts_stay_byte_for_byte() -> None:
    (dataset,) = ct_series(1)
    _, new = changed('[[rule]]\nname = "mend"\ncharset = "repair"\n', dataset)
    assert b"".join(bytes(piece) for piece in new.pieces) == data_of(dataset)
    assert new.differences == ()


# De-identification

DEIDENTIFY = """
[destinations.RESEARCH]
host = "r"
port = 104
[[rule]]
name = "research"
copy = "RESEARCH"
deidentify = true
"""


def test_nothing_that_names_the_patient_is_left() -> None:
    (dataset,) = ct_series(1)
    dataset.OtherPatientIDs = "OTHER-ID"
    dataset.PatientAddress = "Улица Тестовая 1"
    dataset.add_new(0x00091010, "LO", "private Щёголев")
    request = Dataset()
    request.RequestedProcedureDescription = "Щёголев, повторно"
    dataset.RequestAttributesSequence = [request]
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CT, new_uid()
    dataset.ReferencedImageSequence = [item]
    after, new = changed(DEIDENTIFY, dataset)
    encoded = b"".join(bytes(piece) for piece in new.pieces)
    for told in ("Щёголев", "TEST-1001", "19700229", "20261121", "OTHER-ID", "Тестовая", str(dataset.StudyInstanceUID)):
        assert told.encode() not in encoded, told
    assert item.ReferencedSOPInstanceUID.encode() not in encoded
    assert (after.PatientIdentityRemoved, after.DeidentificationMethodCodeSequence[0].CodeValue) == ("YES", "113100")
    assert after.PixelData == dataset.PixelData
    assert (after.SOPClassUID, after.Rows, after.Modality) == (CT, 64, "CT")
    assert new.sop_instance_uid == after.SOPInstanceUID != dataset.SOPInstanceUID


def test_pseudonyms_are_the_same_for_the_same_secret_and_patient() -> None:
    one, two = ct_series(2)
    first, second = changed(DEIDENTIFY, one)[0], changed(DEIDENTIFY, two)[0]
    assert first.PatientID == second.PatientID
    assert first.StudyInstanceUID == second.StudyInstanceUID
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    assert first.SOPInstanceUID != second.SOPInstanceUID
    found = verdict(DEIDENTIFY, one)
    other = rewritten(memoryview(data_of(one)), EXPLICIT, (found.copies[0].changes,), b"another secret")
    assert other.sop_instance_uid != first.SOPInstanceUID


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("BurnedInAnnotation", "YES"),
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.7"),
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.88.33"),
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.104.1"),
    ],
)
def test_what_may_show_the_name_in_pixels_or_texts_is_withheld(keyword: str, value: str) -> None:
    (dataset,) = ct_series(1)
    setattr(dataset, keyword, value)
    with pytest.raises(PermanentError, match="not-deidentifiable"):
        changed(DEIDENTIFY, dataset)
