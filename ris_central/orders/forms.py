"""Forms of booking and of devices."""

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from django import forms
from django.utils.translation import gettext_lazy as _

from ris_central.federation.models import Node
from ris_central.orders.models import Device, ServiceRequest
from ris_central.organizations.forms import Styled
from ris_central.organizations.models import Site

CHARACTER_SETS = [
    ("ISO_IR 192", _("Unicode (ISO_IR 192)")),
    ("ISO_IR 144", _("Cyrillic (ISO_IR 144)")),
    ("ISO_IR 100", _("Latin 1 (ISO_IR 100)")),
    ("", _("Plain Latin letters only")),
]
MODALITIES = ["", "CT", "MR", "CR", "DX", "MG", "US", "XA", "RF", "NM", "PT", "ES", "IO", "PX", "OT"]


class SlotForm(Styled):
    """When and on which device, in the site's zone."""

    device = forms.ModelChoiceField(Device.objects.none(), label=_("Device"), empty_label=None)
    day = forms.DateField(label=_("Day"), widget=forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d"))
    time = forms.TimeField(label=_("Time"), widget=forms.TimeInput(attrs={"type": "time"}, format="%H:%M"))
    minutes = forms.IntegerField(label=_("Minutes"), min_value=5, max_value=600)

    def __init__(self, *args: Any, devices: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["device"].queryset = devices  # type: ignore[attr-defined]

    def starts_at(self) -> datetime:
        """The moment that was chosen."""
        zone = ZoneInfo(self.cleaned_data["device"].site.time_zone)
        return datetime.combine(self.cleaned_data["day"], self.cleaned_data["time"], zone)


class BookingForm(SlotForm):
    """An examination to book."""

    description = forms.CharField(max_length=64, label=_("Examination"))
    priority = forms.ChoiceField(choices=ServiceRequest.Priority.choices, label=_("Priority"))
    referring_physician_name = forms.CharField(max_length=128, required=False, label=_("Referring physician"))
    reason = forms.CharField(
        required=False, max_length=1000, label=_("Reason"), widget=forms.Textarea(attrs={"rows": 2})
    )


class DeviceForm(forms.ModelForm):  # type: ignore[type-arg]
    """A device as the node must know it."""

    modality = forms.ChoiceField(choices=[(m, m or "—") for m in MODALITIES], required=False, label=_("Modality"))
    character_set = forms.ChoiceField(choices=CHARACTER_SETS, required=False, label=_("Character set"))
    ae_title = forms.RegexField(
        r"^[\x20-\x5b\x5d-\x7e]{1,16}$",
        label=_("AE title"),
        max_length=16,
        error_messages={"invalid": _("One to sixteen Latin characters, no backslash.")},
    )

    class Meta:
        model = Device
        fields = [
            "site",
            "node",
            "name",
            "ae_title",
            "modality",
            "character_set",
            "address",
            "host",
            "port",
            "slot_minutes",
            "is_active",
        ]
        labels = {
            "site": _("Site"),
            "node": _("Node"),
            "name": _("Name"),
            "address": _("Calls from address"),
            "host": _("Receives at host"),
            "port": _("Receives at port"),
            "slot_minutes": _("Minutes of a slot"),
            "is_active": _("In use"),
        }

    def __init__(self, *args: Any, sites: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["site"].queryset = sites  # type: ignore[attr-defined]
        self.fields["node"].queryset = Node.objects.filter(site__in=sites, revoked_at=None)  # type: ignore[attr-defined]
        for field in self.fields.values():
            if not isinstance(field.widget, forms.CheckboxInput):
                select = isinstance(field.widget, forms.Select)
                field.widget.attrs.setdefault("class", "form-select" if select else "form-control")

    def clean(self) -> dict[str, Any]:
        """A device calls a node of its own site."""
        cleaned: dict[str, Any] = super().clean() or {}
        node, site = cleaned.get("node"), cleaned.get("site")
        if node is not None and isinstance(site, Site) and node.site_id != site.pk:
            self.add_error("node", _("This node is of another site."))
        return cleaned
