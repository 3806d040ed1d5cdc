"""Every text that people read is there in Russian, with its placeholders and all three plural forms."""

import io
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from babel.messages.catalog import Message
from babel.messages.extract import DEFAULT_KEYWORDS, extract
from babel.messages.pofile import read_po
from django.utils.translation.template import templatize

ROOT = Path(__file__).parent.parent.parent
PROJECTS = ("ris_central", "pacs_node")
KEYWORDS = {**DEFAULT_KEYWORDS, **{f"{name}_lazy": spec for name, spec in DEFAULT_KEYWORDS.items()}}
PLACEHOLDER = re.compile(r"%\(\w+\)[sdif]|%[sdif]")

Forms = tuple[str, ...]
Text = tuple[str | None, str]
"""Context and msgid."""


def forms(texts: object) -> Forms:
    """The forms of a message; Babel gives a bare string where there is one."""
    return texts if isinstance(texts, tuple) else (str(texts),)


def key(message: Message) -> Text:
    """What a message is looked up by."""
    return message.context, forms(message.id)[0]


@cache
def used(project: str) -> dict[Text, str]:
    """The texts that the project's modules and templates ask for, and a place of each."""
    found: dict[Text, str] = {}
    for path in sorted((ROOT / project).rglob("*")):
        if path.suffix not in (".py", ".html", ".txt") or "migrations" in path.parts:
            continue
        source = path.read_text(encoding="utf-8")
        if path.suffix != ".py":
            source = f"({templatize(source, origin=str(path))})"  # in brackets, indentation means nothing
        for line, text, _, context in extract("python", io.BytesIO(source.encode()), keywords=KEYWORDS):
            found.setdefault((context, forms(text)[0]), f"{path.relative_to(ROOT)}:{line}")
    return found


@cache
def translated(project: str) -> list[tuple[str, Message]]:
    """The project's Russian messages, each with its file."""

    def read() -> Iterator[tuple[str, Message]]:
        for path in sorted((ROOT / project).rglob("locale/ru/LC_MESSAGES/django.po")):
            with path.open("rb") as file:
                for message in read_po(file, locale="ru", abort_invalid=True):
                    if message.id:
                        yield str(path.relative_to(ROOT)), message

    return list(read())


@pytest.mark.parametrize("project", PROJECTS)
def test_every_text_has_a_russian_translation(project: str) -> None:
    known = {key(message) for _, message in translated(project) if all(forms(message.string))}
    assert len(used(project)) > 50, "the texts were not found"
    assert {text: place for text, place in used(project).items() if text not in known} == {}


@pytest.mark.parametrize("project", PROJECTS)
def test_a_plural_has_the_three_forms_of_russian(project: str) -> None:
    plurals = [(file, message) for file, message in translated(project) if isinstance(message.id, tuple)]
    assert plurals
    assert [(file, message.id) for file, message in plurals if len(forms(message.string)) != 3] == []


@pytest.mark.parametrize("project", PROJECTS)
def test_a_translation_keeps_the_placeholders(project: str) -> None:
    wrong = [
        (file, form)
        for file, message in translated(project)
        for form in forms(message.string)
        if set(PLACEHOLDER.findall(form)) != set(PLACEHOLDER.findall(forms(message.id)[-1]))
    ]
    assert wrong == []


@pytest.mark.parametrize("project", PROJECTS)
def test_one_text_has_one_translation_because_the_apps_share_them(project: str) -> None:
    translations = defaultdict[Text, dict[Forms, str]](dict)
    for file, message in translated(project):
        translations[key(message)][forms(message.string)] = file
    assert {text: found for text, found in translations.items() if len(found) > 1} == {}


@pytest.mark.parametrize("project", PROJECTS)
def test_no_translation_is_left_behind_by_a_text_that_is_gone(project: str) -> None:
    assert [(file, message.id) for file, message in translated(project) if key(message) not in used(project)] == []
