"""Looking over what a foreign PACS lists, however oddly it answers: windows of dates that are parted until whole."""

from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta

import structlog

from gateway.envelope import ForeignSource
from gateway.foreign import actions, queries
from gateway.foreign.models import ForeignPacs
from gateway.foreign.pacs import Answers, FoundStudy, Pacs, Window
from standards.errors import PermanentError, TransientError

log = structlog.get_logger(__name__)

SUSPICIOUS = frozenset(
    {50, 64, 99, 100, 101, 128, 150, 199, 200, 201, 250, 256, 300, 400, 499, 500, 501, 512, 600, 750, 800, 999}
    | {1000, 1001, 1024, 1500, 2000, 2001, 2048, 2500, 3000, 4096, 5000, 10_000}
)
"""Round numbers of answers at which PACS are known to stop without a word."""
NO_RANGES = "no-date-ranges"
IGNORES_DATES = "ignores-dates"
NO_COUNTS = "no-counts"
NO_SERIES = "no-series-queries"
CAPPED = "caps-answers"
NAMELESS = "answers-without-study-uid"
TWICE = "answers-twice"
UNDATED_UNSEEN = "too-many-to-find-undated"
MOST_COUNTED = 20
"""Of so many studies a poll the instances are counted one by one where the PACS does not say how many there are."""
_SHORTEST_SECONDS = 60
_BEFORE_ALL = date(1800, 1, 1)
_MODALITIES = ("CT", "MR", "CR", "DX", "MG", "US", "XA", "RF", "NM", "PT", "ES", "OT")


@dataclass
class Look:
    """What came of looking through a window. ``is_whole``: everything in it was seen."""

    studies: dict[str, FoundStudy] = field(default_factory=dict)
    is_whole: bool = True
    quirks: set[str] = field(default_factory=set)


def poll(source: ForeignSource, pacs: Pacs, *, now: datetime, sweep: bool) -> Look:
    """Ask for what is new: of yesterday and today, with ``sweep`` of all the days to look over; and write it down.

    Raises: TransientError, PermanentError as ``Pacs`` does; what was seen before is written down.
    """
    today = now.date()
    since = today - timedelta(days=source.window_days if sweep else min(1, source.window_days))
    until = today + timedelta(days=1)  # clocks differ
    known = set(queries.quirks_of(source.name)) - ({NO_SERIES} if sweep else set())
    look = Look(quirks=known & ({NO_RANGES, NO_SERIES} if sweep else {NO_RANGES, NO_SERIES, UNDATED_UNSEEN}))
    _Looking(source, pacs, look).through("StudyDate", since, until)
    by_date = dict(look.studies)
    if source.changes_by:
        last = ForeignPacs.objects.filter(name=source.name).values_list("polled_at", flat=True).first()
        began = since if sweep or last is None else last.astimezone(now.tzinfo).date() - timedelta(days=1)
        _Looking(source, pacs, look).through(source.changes_by, began, until)
    if look.studies and not any(found.instance_count is not None for found in look.studies.values()):
        look.quirks.add(NO_COUNTS)
        _count(pacs, look, [uid for uid, found in by_date.items() if found.study.study_date >= f"{since:%Y%m%d}"])
    actions.record_seen(source, list(look.studies.values()), now=now)
    if look.is_whole:
        actions.record_missed(source, f"{since:%Y%m%d}", f"{until:%Y%m%d}", set(by_date), now=now)
    if sweep and source.undated_at_most:
        _look_for_undated(source, pacs, look, now)
    return look


class _Looking:
    """One pass through a window by one date."""

    def __init__(self, source: ForeignSource, pacs: Pacs, look: Look) -> None:
        self._source, self._pacs, self._look = source, pacs, look

    def through(self, keyword: str, since: date, until: date) -> None:
        """Ask, and ask for less at a time where the answer is not whole or the PACS refuses so wide a question."""
        if since < until and NO_RANGES in self._look.quirks:
            self._days(keyword, since, until)
            return
        window = Window(keyword, since, until)
        try:
            answers = self._pacs.studies(window)
        except PermanentError as error:
            if error.code != "query-refused" or since == until:
                raise
            # It may dislike the range, or the number of answers: a day at a time is the least that can be asked.
            log.info("foreign-range-refused", source=self._source.name, error=str(error))
            self._days(keyword, since, until)
            self._look.quirks.add(NO_RANGES)
            return
        if not _is_capped(self._source, answers):
            self._take(answers, keyword, since, until)
            return
        self._look.quirks.add(CAPPED)
        self._take(answers, keyword, since, until)
        if since < until:
            middle = since + (until - since) // 2
            self.through(keyword, since, middle)
            self.through(keyword, middle + timedelta(days=1), until)
        elif keyword == "StudyDate":
            self._times(since, 0, 86_399)
        else:
            self._look.is_whole = False

    def _days(self, keyword: str, since: date, until: date) -> None:
        for number in range((until - since).days + 1):
            day = since + timedelta(days=number)
            self.through(keyword, day, day)

    def _times(self, day: date, first: int, last: int) -> None:
        """Halves of a span of a day's seconds, until they are whole; at last by modality."""
        middle = first + (last - first) // 2
        for begin, end in ((first, middle), (middle + 1, last)):
            answers = self._asked(Window("StudyDate", day, day, (_clock(begin), _clock(end))))
            if answers is None:
                return
            self._take(answers, "StudyDate", day, day)
            if not _is_capped(self._source, answers):
                continue
            if end - begin >= _SHORTEST_SECONDS:
                self._times(day, begin, end)
            else:
                self._by_modality(day, (_clock(begin), _clock(end)))

    def _by_modality(self, day: date, times: tuple[str, str]) -> None:
        for modality in _MODALITIES:
            answers = self._asked(Window("StudyDate", day, day, times, modality))
            if answers is None:
                return
            self._take(answers, "StudyDate", day, day)
            if _is_capped(self._source, answers):
                self._look.is_whole = False

    def _asked(self, window: Window) -> Answers | None:
        """None where a PACS does not match on the time: then no more than its cap is to be had."""
        try:
            return self._pacs.studies(window)
        except PermanentError as error:
            if error.code != "query-refused":
                raise
            log.warning("foreign-answers-capped", source=self._source.name, day=str(window.since), error=str(error))
            self._look.is_whole = False
            return None

    def _take(self, answers: Answers, keyword: str, since: date, until: date) -> None:
        first, last = f"{since:%Y%m%d}", f"{until:%Y%m%d}"
        self._look.quirks |= answers.quirks
        if answers.nameless:
            self._look.quirks.add(NAMELESS)
        seen = set()
        for found in answers.studies:
            uid = found.study.study_instance_uid
            if uid in seen:
                self._look.quirks.add(TWICE)
                continue
            seen.add(uid)
            if keyword == "StudyDate" and found.study.study_date and not first <= found.study.study_date <= last:
                self._look.quirks.add(IGNORES_DATES)
                continue
            self._look.studies[uid] = found


def _look_for_undated(source: ForeignSource, pacs: Pacs, look: Look, now: datetime) -> None:
    """Studies without a Study Date, which no window of dates shows.

    First the dates before all others: where an empty text is less than any date that is one small answer. Then a
    question that says nothing of dates, whose answers are counted: by modality where the PACS caps them or refuses so
    wide a question, and no more than the source allows. A PACS that has more than that, or takes none of these
    questions, is told of; what else it lists does not depend on it.
    """
    found: dict[str, FoundStudy] = {}
    left = source.undated_at_most

    def ask(window: Window) -> bool:
        """Whether all that fits came."""
        nonlocal left
        if left <= 0:
            return False
        try:
            answers = pacs.studies(replace(window, most=left))
        except PermanentError as error:
            if error.code != "query-refused":
                raise
            return False
        left -= len(answers.studies) + answers.nameless
        look.quirks |= answers.quirks
        found.update({one.study.study_instance_uid: one for one in answers.studies if not one.study.study_date})
        return not _is_capped(source, answers)

    try:
        if NO_RANGES not in look.quirks:
            ask(Window("StudyDate", None, _BEFORE_ALL))
        is_whole = ask(Window("StudyDate", None, None))
        if not is_whole:
            for modality in _MODALITIES:
                ask(Window("StudyDate", None, None, modality=modality))
    except TransientError as error:  # too wide a question for it, perhaps: the other answers count all the same
        log.warning("foreign-undated-not-answered", source=source.name, error=str(error))
        is_whole = False
    actions.record_seen(source, list(found.values()), now=now)
    look.studies |= found
    if is_whole:
        actions.record_missed(source, "", "", set(found), now=now)
    else:
        look.quirks.add(UNDATED_UNSEEN)


def _is_capped(source: ForeignSource, answers: Answers) -> bool:
    """Whether there are more answers, as the PACS says or as their number suggests."""
    if answers.is_whole:
        return False
    count = len(answers.studies) + answers.nameless
    if source.answers_at_most:
        return answers.is_capped or count >= source.answers_at_most
    return answers.is_capped or count in SUSPICIOUS


def _clock(second: int) -> str:
    return f"{second // 3600:02}{second // 60 % 60:02}{second % 60:02}"


def _count(pacs: Pacs, look: Look, wanted: list[str]) -> None:
    """Count instances by series, or one by one, of the latest studies of a PACS that does not say how many it has."""
    for uid in sorted(wanted, key=lambda one: look.studies[one].study.study_date, reverse=True)[:MOST_COUNTED]:
        if NO_SERIES in look.quirks:
            return
        found = look.studies[uid]
        try:
            series = pacs.series(uid)
            counts = [one.instance_count for one in series]
            told = sum(count for count in counts if count is not None)
            total = told if None not in counts else len(pacs.instances(uid))
        except PermanentError as error:
            if error.code != "query-refused":
                raise
            look.quirks.add(NO_SERIES)
            return
        look.studies[uid] = FoundStudy(found.patient, found.study, found.modalities, len(series), total)
