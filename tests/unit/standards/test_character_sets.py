"""Text in DICOM character sets: read leniently, written without a question mark."""

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from standards.charsets import decode, encode, encode_dataset, encode_for, is_known, terms, transliterate
from standards.errors import PermanentError

RUSSIAN = st.text("абвгдеёжзийклмнопрстуфхцчшщъыьэюяАБВГДЕЁЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯ -", max_size=40)
WRITABLE = [
    "",
    "ISO_IR 6",
    "ISO_IR 100",
    "ISO_IR 101",
    "ISO_IR 126",
    "ISO_IR 144",
    "ISO_IR 192",
    "GB18030",
    "ISO_IR 13",
]
PRINTABLE = st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="?\\^="), max_size=40)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("ISO-IR 100", ["ISO_IR 100"]),
        ("ISO_IR_144", ["ISO_IR 144"]),
        ("iso ir 144 ", ["ISO_IR 144"]),
        ("ISO_2022_IR_87", ["ISO 2022 IR 87"]),
        ("ISO 2022 IR 6\\ISO 2022 IR 144", ["ISO 2022 IR 6", "ISO 2022 IR 144"]),
        (["", "ISO 2022 IR 87"], ["", "ISO 2022 IR 87"]),
        ("UTF-8", ["ISO_IR 192"]),
        (None, [""]),
    ],
)
def test_misspelt_terms_are_understood(written: str | list[str] | None, meant: list[str]) -> None:
    assert terms(written) == meant
    assert is_known(written)


@given(RUSSIAN)
def test_russian_survives_every_set_that_has_it(text: str) -> None:
    for charset in ("ISO_IR 144", "ISO_IR 192", "GB18030", "ISO-IR 144", "ISO 2022 IR 6\\ISO 2022 IR 144"):
        assert encode_for(text, charset) == text
        assert decode(encode(text, charset), charset) == text


@given(PRINTABLE, st.sampled_from(WRITABLE))
def test_nothing_becomes_a_question_mark_and_all_of_it_can_be_encoded(text: str, charset: str) -> None:
    shown = encode_for(text, charset)
    assert "?" not in shown
    assert decode(encode(text, charset), charset) == shown
    assert encode_for(shown, charset) == shown


@given(PRINTABLE)
def test_transliteration_is_ascii(text: str) -> None:
    assert transliterate(text).isascii()


@pytest.mark.parametrize(
    ("text", "latin"),
    [
        ("Щёголев-Ящуржинский Пётр Ёжикович", "Shchyogolev-Yashchurzhinskiy Pyotr Yozhikovich"),
        ("ЩУКА", "SHCHUKA"),
        ("Хрущ", "Khrushch"),
        ("Подъячев", "Podyachev"),
        ("КТ №5 «Ёлка» — норма…", 'KT No.5 "Yolka" - norma...'),
        ("5 м², 37°", "5 m2, 37 deg "),
        ("Їжак Ґанна", "Yizhak Ganna"),
        ("Müller", "Muller"),
        ("Διονυσιος 5 μg", "Dionysios 5 ug"),
        ("中", "U+4E2D"),
    ],
)
def test_transliteration_reads_well(text: str, latin: str) -> None:
    assert transliterate(text) == latin


def test_only_what_the_set_lacks_is_transliterated() -> None:
    assert encode_for("Ёлкин №5 «А» — Müller", "ISO_IR 144") == 'Ёлкин №5 "А" - Muller'
    assert encode_for("Müller «А»", "ISO_IR 100") == "Müller «A»"
    assert encode_for("Й", "ISO_IR 144") == "Й"


def test_a_name_in_the_wrong_set_is_guessed() -> None:
    assert decode("Ёжиков".encode("cp1251"), None) == "Ёжиков"
    assert decode("Ёжиков".encode("cp1251"), "ISO_IR 192") == "Ёжиков"
    assert decode("Ёжиков".encode(), "") == "Ёжиков"
    assert decode("Jérôme".encode("latin-1"), None) == "Jérôme"
    assert decode("Ёжиков".encode(), "NO SUCH SET") == "Ёжиков"


def test_writing_into_an_unknown_set_is_refused() -> None:
    with pytest.raises(PermanentError, match="unknown-character-set"):
        encode_for("Ёж", "NO SUCH SET")


def worklist_item() -> Dataset:
    """An item whose texts are at every depth."""
    step = Dataset()
    step.ScheduledProcedureStepDescription = "КТ лёгких — «нативно»"
    step.Modality = "CT"
    item = Dataset()
    item.SpecificCharacterSet = "ISO_IR 192"
    item.PatientName = "Щёголев-Ящуржинский^Пётр^Ёжикович"
    item.OtherPatientNames = ["Ёж^А", "≤Ёж^↑Б"]
    item.PatientID = "К-1"
    item.StudyInstanceUID = "1.2.3"
    item.ScheduledProcedureStepSequence = [step]
    return item


@pytest.mark.parametrize("charset", ["ISO_IR 144", "ISO_IR 192", "ISO_IR 100", "", "ISO 2022 IR 6\\ISO 2022 IR 144"])
def test_a_data_set_arrives_in_the_devices_own_set(charset: str) -> None:
    original = worklist_item()
    encoded = encode_dataset(original, charset)
    encoded.file_meta = FileMetaDataset()
    encoded.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    encoded.file_meta.MediaStorageSOPClassUID = encoded.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    stream = io.BytesIO()
    encoded.save_as(stream, enforce_file_format=True)
    assert b"?" not in stream.getvalue()
    received = dcmread(io.BytesIO(stream.getvalue()))
    assert str(received.PatientName) == encode_for("Щёголев-Ящуржинский^Пётр^Ёжикович", charset)
    step = received.ScheduledProcedureStepSequence[0]
    assert step.ScheduledProcedureStepDescription == encode_for("КТ лёгких — «нативно»", charset)
    assert received.StudyInstanceUID == "1.2.3"
    assert [str(name).count("^") for name in received.OtherPatientNames] == [1, 1]
    assert all("=" not in str(name) for name in received.OtherPatientNames)
    assert original.SpecificCharacterSet == "ISO_IR 192"
    assert str(original.PatientName) == "Щёголев-Ящуржинский^Пётр^Ёжикович"


def test_the_samples_of_all_sets_read_as_what_is_meant(sample_data: Path) -> None:
    expected = {
        "chrRuss.dcm": "Люкceмбypг",
        "chrGreek.dcm": "Διονυσιος",
        "chrH31.dcm": "Yamada^Tarou=山田^太郎=やまだ^たろう",
        "chrKoreanMulti.dcm": "김희중",
        "chrGB2312.dcm": "Zhang^XiaoDong=张^小东",
        "chrX1.dcm": "Wang^XiaoDong=王^小東",
        "chrX2.dcm": "Wang^XiaoDong=王^小东",
    }
    for name, meant in expected.items():
        dataset = dcmread(sample_data / "charsets" / name)
        raw = dataset.PatientName.original_string
        assert decode(bytes(raw), dataset.SpecificCharacterSet, person_name=True) == meant
