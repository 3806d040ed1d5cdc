"""Text whose Specific Character Set lies: what Russian bytes are really written in, judged by letters and their order.

Devices in Russia declare ISO_IR 100, ISO_IR 144 or nothing and write Windows-1251, KOI8-R, code page 866 or UTF-8.
A guess is made for all texts of a data set together, as one device writes all of them alike.
"""

import codecs
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from standards import charsets
from standards.errors import PermanentError

CANDIDATES: Final = ("cp1251", "koi8_r", "utf_8", "iso8859_5", "cp866")
SURE: Final = 0.9
"""The least confidence on which texts are rewritten without a person's word."""

_SPELLINGS: Final = {
    "windows-1251": "cp1251", "cp1251": "cp1251", "1251": "cp1251", "koi8-r": "koi8_r", "koi8": "koi8_r",
    "cp866": "cp866", "866": "cp866", "ibm866": "cp866", "utf-8": "utf_8", "utf8": "utf_8", "iso_ir 192": "utf_8",
    "iso-8859-5": "iso8859_5", "iso_ir 144": "iso8859_5", "iso-8859-1": "latin_1", "iso_ir 100": "latin_1",
}  # fmt: skip
_SHOWN: Final = {
    "cp1251": "Windows-1251", "koi8_r": "KOI8-R", "cp866": "CP866", "utf_8": "UTF-8", "iso8859_5": "ISO 8859-5",
    "latin_1": "ISO 8859-1",
}  # fmt: skip
_JUDGED: Final = {
    "": "latin_1",
    "ISO_IR 6": "latin_1",
    "ISO_IR 100": "latin_1",
    "ISO_IR 144": "iso8859_5",
    "ISO_IR 192": "utf_8",
    "ISO 2022 IR 6": "latin_1",
    "ISO 2022 IR 100": "latin_1",
    "ISO 2022 IR 144": "iso8859_5",
}
"""Declared sets that may lie, and what they are read as. Others (Japanese, Greek) are believed, and so are texts with
escape sequences; code extensions without any say no more than the last of their sets."""

# What names and short descriptions look like: pairs of letters are counted in it.
_SAMPLE: Final = """
иванов смирнов кузнецов попов васильев петров соколов михайлов новиков федоров морозов волков алексеев лебедев семенов
егоров павлов козлов степанов николаев орлов андреев макаров никитин захаров зайцев соловьев борисов яковлев григорьев
романов воробьев сергеев кузьмин фролов александров дмитриев королев гусев киселев ильин максимов поляков сорокин
виноградов ковалев белов медведев антонов тарасов жуков баранов филиппов комаров давыдов беляев герасимов богданов
осипов сидоров матвеев титов марков миронов крылов куликов карпов власов мельников денисов гаврилов тихонов казаков
афанасьев данилов савельев тимофеев фомин чернов абрамов мартынов ефимов федотов щербаков назаров калинин исаев
чернышев быков маслов родионов коновалов лазарев воронин климов филатов пономарев голубев кудрявцев прохоров наумов
потапов журавлев овчинников трофимов леонов соболев ермаков колесников гончаров емельянов никифоров грачев котов
гришин ефремов архипов громов кириллов малышев панов моисеев румянцев акимов кондратьев бирюков горбунов анисимов
еремин тихомиров галкин лукьянов михеев скворцов юдин белоусов нестеров симонов прокофьев харитонов князев цветков
левин митрофанов воронов аксенов софронов мальцев логинов горшков савин краснов майоров демидов елисеев рыбаков
сафонов плотников хохлов фадеев молчанов игнатов литвинов ершов ушаков дементьев рябов мухин калашников леонтьев
лобанов кузин корнеев евдокимов бородин платонов некрасов балашов бобров жданов блинов игнатьев коротков муравьев
шевченко коваленко бондаренко ткаченко кравченко щёголев ящуржинский ёлкин королёв соловьёв воробьёв семёнов фёдоров
александр сергей владимир дмитрий андрей алексей максим евгений иван михаил николай артём пётр павел константин виктор
юрий олег игорь василий анатолий роман григорий станислав вячеслав геннадий борис леонид валерий фёдор эдуард руслан
елена ольга татьяна наталья анна мария ирина светлана екатерина анастасия юлия марина людмила галина надежда валентина
нина любовь вера лариса тамара зинаида раиса ксения дарья виктория алина софья полина яна эльвира жанна гузель айгуль
александрович сергеевич владимирович дмитриевич андреевич алексеевич иванович михайлович николаевич петрович павлович
викторович юрьевич анатольевич васильевич борисович евгеньевич олегович игоревич ильич фёдорович ёжикович
александровна сергеевна владимировна дмитриевна андреевна алексеевна ивановна михайловна николаевна петровна павловна
викторовна юрьевна анатольевна васильевна борисовна евгеньевна олеговна игоревна ильинична
голова головы головной мозг грудная клетка органы грудной клетки брюшная полость позвоночник шейный поясничный отдел
снимок исследование рентген рентгенография томография магнитно резонансная компьютерная ультразвуковое узи кт мрт огк
маммография прямая боковая проекция левая правая кисть стопа колено коленный сустав тазобедренный таз череп лёгкие
почки печень сердце сосуды контраст больница поликлиника городская областная центральная клиническая районная отделение
кабинет врач пациент женщина мужчина область город республика центр диагностический медицинский институт имени
"""  # fmt: skip
_WORD: Final = re.compile(r"[^\W\d_]+")
_KNOWN_LETTERS: Final = "абвгдеёжзийклмнопрстуфхцчшщъыьэюя"
_KNOWN_SIGNS: Final = frozenset("№«»–—°…’”“\xa0")
_STRANGE_SIGN: Final = -10.0
_STRANGE_LETTER: Final = -9.0
_INNER_CAPITAL: Final = -8.0
_MIXED: Final = -8.0
_ACCENTED: Final = -3.5
_SECOND_ACCENTED: Final = -3.0
_ENOUGH_LETTERS: Final = 3
_BELIEVED: Final = 2.0
"""What is declared needs less proof."""


@dataclass(frozen=True, slots=True)
class Detection:
    """What the texts of a data set are really written in. ``confidence``: 0 to 1; ``preview``: one value, read so."""

    declared: str
    codec: str
    confidence: float
    preview: str

    @property
    def is_sure(self) -> bool:
        """Whether it may be acted on."""
        return self.confidence >= SURE

    @property
    def name(self) -> str:
        """The codec as people call it."""
        return shown(self.codec)


def codec(name: str) -> str:
    """Python's codec for a character set by any of its usual names. Raises: PermanentError("unknown-character-set")."""
    found = _SPELLINGS.get(name.strip().lower().replace("_ir_", "_ir "))
    if found is None:
        raise PermanentError("unknown-character-set", f"{name!r} is none of {', '.join(sorted(set(_SHOWN.values())))}")
    return found


def shown(codec_name: str) -> str:
    """A codec as people call it."""
    return _SHOWN.get(codec_name, codec_name)


def detect(values: Iterable[bytes], declared: str | Sequence[str] | None) -> Detection | None:
    """Judge all texts of a data set (encoded); None where the declared set is believed, or nothing is beyond ASCII."""
    beyond = [bytes(value) for value in values if not bytes(value).isascii()]
    terms = charsets.terms(declared)
    if not beyond or not _JUDGED.keys() >= set(terms) or any(b"\x1b" in value for value in beyond):
        return None
    said = _JUDGED[terms[-1]]
    scores = {name: _score(beyond, name) for name in dict.fromkeys((*CANDIDATES, said))}
    possible = {
        name: score + (_BELIEVED if name == said else 0.0) for name, score in scores.items() if score is not None
    }
    if said == "utf_8" and said in possible:
        return None  # what decodes as UTF-8 by chance hardly exists
    if not possible:
        return None
    best = max(possible, key=lambda name: possible[name])
    is_declared = best == said and terms[-1] not in ("", "ISO_IR 6", "ISO 2022 IR 6")
    if is_declared or best == "latin_1":
        return None
    margin = possible[best] - max([score for name, score in possible.items() if name != best], default=-math.inf)
    confidence = 1 - math.exp(-max(margin, 0) / 2) if math.isfinite(margin) else 0.99
    if sum(map(str.isalpha, "".join(value.decode(best) for value in beyond))) < _ENOUGH_LETTERS:
        confidence /= 2
    return Detection("\\".join(terms), best, round(confidence, 3), beyond[0].decode(best).strip(" \0"))


def _score(values: list[bytes], name: str) -> float | None:
    """How likely the bytes are as text of this codec (natural logarithm); None when they are no such text."""
    total = 0.0
    for value in dict.fromkeys(values):
        try:
            text = codecs.decode(value, name)
        except UnicodeDecodeError:
            return None
        total += _text_score(text)
    return total


def _text_score(text: str) -> float:
    total = 0.0
    for before, char, after in zip(f" {text}", text, f"{text[1:]} ", strict=False):
        if char.isascii() or char.isalpha():
            continue
        within_word = after.isalpha() and (before.isalpha() or char == "№")
        total += 0.0 if char in _KNOWN_SIGNS and not within_word else _STRANGE_SIGN
    for word in _WORD.findall(text):
        if not word.isascii():
            total += _word_score(word)
    return total


def _word_score(word: str) -> float:
    cyrillic = [char for char in word if "Ѐ" <= char <= "ӿ"]
    if not cyrillic:
        return _latin_score(word)
    total = _MIXED * sum(("Ѐ" <= left <= "ӿ") != ("Ѐ" <= right <= "ӿ") for left, right in itertools.pairwise(word))
    total += _INNER_CAPITAL * sum(left.islower() and right.isupper() for left, right in itertools.pairwise(word))
    if len(word) > 2 and word[0].islower() and word[1:].isupper():
        total += _INNER_CAPITAL
    pairs, letters = _language()
    folded = f" {word.lower()} "
    for left, right in itertools.pairwise(folded):
        if right not in letters:
            total += _STRANGE_LETTER
        elif left in letters:
            total += pairs[left + right]
    return total


def _latin_score(word: str) -> float:
    """Western words have single accented letters among plain ones; runs of them are another alphabet misread."""
    total = 0.0
    for left, right in zip(f" {word}", word, strict=False):
        if not right.isascii():
            total += _ACCENTED + (0.0 if left.isascii() else _SECOND_ACCENTED)
            if right.isupper() and left.islower():
                total += _INNER_CAPITAL
    return total


@cache
def _language() -> tuple[dict[str, float], frozenset[str]]:
    """Logarithms of how likely a letter follows another in Russian names and findings; and the letters."""
    letters = frozenset(_KNOWN_LETTERS) | {" "}
    counted = Counter[str]()
    firsts = Counter[str]()
    for word in _SAMPLE.split():
        for left, right in zip(f" {word}", f"{word} ", strict=True):
            counted[left + right] += 1
            firsts[left] += 1
    pairs = {
        left + right: math.log((counted[left + right] + 0.3) / (firsts[left] + 0.3 * len(letters)))
        for left in letters
        for right in letters
    }
    return pairs, letters
