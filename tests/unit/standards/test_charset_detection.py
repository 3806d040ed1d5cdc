"""Texts that are not in the character set that they declare are found out; honest ones are believed."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from standards.charset_detection import CANDIDATES, codec, detect
from standards.errors import PermanentError
from tests.factories.made_up_names import _STEMS

SHCHYOGOLEV = "Щёголев-Ящуржинский^Пётр^Ёжикович"
LATIN = [
    "Müller^Jörg", "Weiß^Jürgen", "Øystein^Åse", "Façade^José", "Göğüş^Ümit".replace("ğ", "g").replace("ş", "s"),
    "Hernández^María José", "Lefèvre^Éloïse", "Ångström^Björn", "Sørensen^Søren", "Dvořák".replace("ř", "r"),
]  # fmt: skip
OTHER_TEXTS = ["КТ головы", "МРТ коленного сустава", "Кабинет №5", "Рентген ОГК, прямая проекция"]

endings = st.sampled_from(["ов", "ова", "ин", "ина", "ский", "ская", "енко", "ёв", "ёва", "щин"])
names = st.builds(lambda stem, end: stem + end, st.sampled_from(_STEMS), endings)
firsts = st.sampled_from(["Пётр", "Анна", "Семён", "Ольга", "Щукарь", "Эдуард", "Юлия", "Ия", "Фёдор", "Жанна"])
cases = st.sampled_from([str, str.upper, str.lower])
persons = st.builds(lambda surname, first, case: case(f"{surname}^{first}"), names, firsts, cases)


def encoded(text: str, name: str) -> bytes | None:
    try:
        return text.encode(name)
    except UnicodeEncodeError:
        return None


@given(persons, st.sampled_from(CANDIDATES), st.sampled_from(["", "ISO_IR 100", "ISO_IR 144"]))
def test_what_russian_names_are_written_in_is_found(name: str, written_in: str, declared: str) -> None:
    found = detect([name.encode(written_in)], declared)
    if (written_in, declared) == ("iso8859_5", "ISO_IR 144"):
        assert found is None
    else:
        assert found is not None
        assert (found.codec, found.preview) == (written_in, name)


@given(st.lists(persons, min_size=2, max_size=4), st.sampled_from(["cp1251", "koi8_r", "cp866"]))
def test_the_texts_of_a_data_set_together_make_sure(name: list[str], written_in: str) -> None:
    texts = [*name, "КТ головы", "Городская больница"]
    found = detect([text.encode(written_in) for text in texts], "ISO_IR 100")
    assert found is not None
    assert found.is_sure
    assert found.codec == written_in


@pytest.mark.parametrize("name", ["Ыдырыс^Чынгыз", "МедЦентр РентгенЛаб", "Нгуен^Тхи", "Мкртчян^Ашот"])
@pytest.mark.parametrize("written_in", CANDIDATES)
@pytest.mark.parametrize("declared", ["ISO_IR 100", "ISO_IR 144", "ISO_IR 192"])
def test_capitals_within_words_give_a_wrong_guess_away(name: str, written_in: str, declared: str) -> None:
    """Names of rare letters, alone: nothing else tells."""
    found = detect([name.encode(written_in)], declared)
    if (written_in, declared) in (("iso8859_5", "ISO_IR 144"), ("utf_8", "ISO_IR 192")):
        assert found is None
    else:
        assert found is not None
        assert (found.codec, found.preview) == (written_in, name)


@pytest.mark.parametrize("written_in", CANDIDATES)
@pytest.mark.parametrize("declared", ["", "ISO_IR 100", "ISO_IR 144"])
def test_rare_letters_and_signs_do_not_mislead(written_in: str, declared: str) -> None:
    values = [one for text in (SHCHYOGOLEV, *OTHER_TEXTS) if (one := encoded(text, written_in))]
    found = detect(values, declared)
    if (written_in, declared) == ("iso8859_5", "ISO_IR 144"):
        assert found is None
    else:
        assert found is not None
        assert found.is_sure
        assert found.codec == written_in


@given(persons, st.sampled_from([("ISO_IR 144", "iso8859_5"), ("ISO_IR 192", "utf_8")]))
def test_honest_cyrillic_is_believed(name: str, honest: tuple[str, str]) -> None:
    assert detect([name.encode(honest[1])], honest[0]) is None


@pytest.mark.parametrize("name", LATIN)
@pytest.mark.parametrize("declared", ["ISO_IR 100", ""])
def test_western_names_are_believed(name: str, declared: str) -> None:
    assert detect([name.encode("latin-1")], declared) is None


@given(st.lists(st.text("ABCDEFGHIJabcdefghij ^-0123456789", max_size=20), max_size=4))
def test_plain_ascii_tells_nothing(values: list[str]) -> None:
    assert detect([value.encode() for value in values], "") is None


@given(
    st.binary(max_size=40), st.sampled_from(["", "ISO_IR 100", "ISO_IR 144", "ISO_IR 192", "ISO_IR 101", "nonsense"])
)
def test_no_bytes_are_too_strange_to_be_judged(value: bytes, declared: str) -> None:
    found = detect([value], declared)
    assert found is None or 0 <= found.confidence <= 1


@given(persons)
def test_code_extensions_are_believed(name: str) -> None:
    assume(not name.isascii())
    assert detect([b"\x1b-L" + name.encode("iso8859_5")], "ISO 2022 IR 6\\ISO 2022 IR 144") is None


@pytest.mark.parametrize("written_in", ["cp1251", "koi8_r", "utf_8"])
@pytest.mark.parametrize("declared", ["\\ISO 2022 IR 144", "ISO 2022 IR 6\\ISO 2022 IR 144", "ISO 2022 IR 144"])
def test_code_extensions_without_an_escape_sequence_are_judged(written_in: str, declared: str) -> None:
    texts = ["Щёголев^Пётр^Ёжикович", "Городская больница", "КТ головы"]
    found = detect([text.encode(written_in) for text in texts], declared)
    assert found is not None
    assert (found.codec, found.is_sure, found.declared) == (written_in, True, declared)
    assert detect([text.encode("iso8859_5") for text in texts], declared) is None


def test_sets_are_known_by_their_usual_names() -> None:
    assert [codec(name) for name in ("Windows-1251", "cp1251", "KOI8-R", "ISO_IR 144", "UTF-8")] == [
        "cp1251",
        "cp1251",
        "koi8_r",
        "iso8859_5",
        "utf_8",
    ]
    with pytest.raises(PermanentError, match="unknown-character-set"):
        codec("klingon")
