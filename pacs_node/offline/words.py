"""What people read for the codes of orders."""

from django.utils.translation import gettext_lazy, pgettext_lazy

PRIORITIES = {
    "ROUTINE": pgettext_lazy("urgency", "Routine"),
    "HIGH": pgettext_lazy("urgency", "Urgent"),
    "STAT": pgettext_lazy("urgency", "Emergency"),
}
SEXES = {"": "—", "M": gettext_lazy("male"), "F": gettext_lazy("female"), "O": gettext_lazy("other")}
MODALITIES = ("CR", "DX", "MG", "CT", "MR", "US", "XA", "RF", "ES", "PX", "ECG", "OT")
