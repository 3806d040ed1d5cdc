"""When a study began, from its DA and TM strings."""

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo


def started_at(study_date: str, study_time: str, offset: str, zone: str) -> datetime | None:
    """UTC of DA and TM as received; ``offset`` is Timezone Offset From UTC (``+0300``), else ``zone`` (IANA) holds.

    None when there is no date or it is none. A missing or wrong time counts as midnight.
    """
    date = study_date.replace(".", "").strip()
    digits = study_time.replace(":", "").partition(".")[0].strip()
    try:
        day = datetime.strptime(date, "%Y%m%d")
    except ValueError:
        return None
    try:
        moment = datetime.strptime(date + digits[:6].ljust(6, "0"), "%Y%m%d%H%M%S")
    except ValueError:
        moment = day
    return moment.replace(tzinfo=_zone_of(offset) or ZoneInfo(zone)).astimezone(UTC)


def _zone_of(offset: str) -> timezone | None:
    text = offset.strip()
    if len(text) != 5 or text[0] not in "+-" or not text[1:].isdigit():
        return None
    minutes = int(text[1:3]) * 60 + int(text[3:])
    return timezone(timedelta(minutes=minutes if text[0] == "+" else -minutes))
