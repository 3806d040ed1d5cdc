"""Names: displayed, found and sorted as a person expects."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from standards.charsets import transliterate
from standards.person_names import display, fold, fold_pattern, latin_key, parse, sort_key

ALPHABET = "абвгдежзийклмнопрстуфхцчшщъыьэюя"
WORD = st.text(ALPHABET + "ё", min_size=1, max_size=12)
ANY = st.text(max_size=40)


def test_components_and_groups_are_parted() -> None:
    name = parse("Yamada^Tarou^^Dr.=山田^太郎=やまだ^たろう")
    assert (name.alphabetic.family, name.alphabetic.given, name.alphabetic.prefix) == ("Yamada", "Tarou", "Dr.")
    assert name.ideographic.family == "山田"
    assert name.phonetic.given == "たろう"
    assert not parse("").alphabetic
    assert not parse(None).phonetic


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("Щёголев-Ящуржинский^Пётр^Ёжикович", "Щёголев-Ящуржинский Пётр Ёжикович"),
        ("Doe^Jane^^Dr.^PhD", "Dr. Doe Jane, PhD"),
        ("^^^^", ""),
        ("=山田^太郎", "山田 太郎"),
        ("Adams^A^B^C^D^E", "C Adams A B, D E"),
        (" Ёж  иков ^ Пётр ", "Ёж иков Пётр"),
    ],
)
def test_a_name_is_displayed_as_people_write_it(value: str, shown: str) -> None:
    assert display(value) == shown


@given(ANY)
def test_folding_twice_is_folding_once(text: str) -> None:
    assert fold(fold(text)) == fold(text)


@given(WORD, WORD)
def test_case_yo_and_punctuation_make_no_difference(family: str, given_name: str) -> None:
    plain = fold(f"{family}^{given_name}")
    assert fold(f"{family.upper()} - {given_name.title()}") == plain
    assert fold(f"{family}^{given_name}".replace("ё", "е")) == plain
    assert fold_pattern(f"{family}*^{given_name[0]}?") == f"{fold(family)}* {fold(given_name[0])}?"


def test_short_i_is_a_letter_of_its_own() -> None:
    assert fold("Андрей") != fold("Андреи")
    assert fold("И\u0306од") == fold("Йод") == "йод"


@given(st.lists(WORD, max_size=8))
def test_binary_order_of_keys_is_the_alphabets(words: list[str]) -> None:
    def by_alphabet(word: str) -> list[int]:
        return [ALPHABET.index(letter.replace("ё", "е")) for letter in word]

    ordered = sorted(words, key=lambda word: sort_key(word).encode())
    assert [by_alphabet(word) for word in ordered] == sorted(by_alphabet(word) for word in words)


def test_yo_sorts_beside_ye_and_short_names_first() -> None:
    names = ["Жуков^А", "Ёлкин^Б", "Елкин^А", "Ежов^В", "Яшин", "Елкин", "Ivanov^I", "Абрамов"]
    ordered = sorted(names, key=sort_key)
    assert ordered == ["Ivanov^I", "Абрамов", "Ежов^В", "Елкин", "Елкин^А", "Ёлкин^Б", "Жуков^А", "Яшин"]


@pytest.mark.parametrize(
    "spellings",
    [
        ["Щёголев", "Shchegolev", "SHEGOLEV", "Schegolev", "Ščëgolev", "Shchyogolev", "ЩЕГОЛЕВ"],
        ["Чайковский", "Tchaikovsky", "Chaykovskiy", "Chaikovski"],
        ["Юлия", "Yulia", "Iuliia", "Julija", "YULIYA"],
        ["Хрущёв", "Khrushchev", "Hruschev", "Khrushchyov"],
        ["Пётр", "Petr", "Pyotr"],
        ["Цветаева", "Tsvetaeva", "Cvetaeva"],
        ["Александр", "Aleksandr", "Alexandr"],
    ],
)
def test_latin_spellings_of_a_name_meet_in_one_key(spellings: list[str]) -> None:
    assert len({latin_key(spelling) for spelling in spellings}) == 1


def test_different_people_keep_different_keys() -> None:
    names = ["Иванов", "Петров", "Щёголев", "Соколов", "Кузнецов", "Попов", "Лебедев", "Новиков"]
    assert len({latin_key(name) for name in names}) == len(names)


@given(WORD)
def test_our_own_transliteration_leads_back_to_the_name(word: str) -> None:
    assert latin_key(transliterate(word)) == latin_key(word)
