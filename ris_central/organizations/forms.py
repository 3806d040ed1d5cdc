"""Forms of people and sites."""

from typing import Any
from zoneinfo import available_timezones

from django import forms
from django.conf import settings
from django.utils.translation import gettext_lazy as _

from ris_central.accounts.models import Role, User
from ris_central.organizations.models import Site


class Styled(forms.Form):
    """Fields with the classes of the design system."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for field in self.fields.values():
            select = isinstance(field.widget, forms.Select)
            if not isinstance(field.widget, forms.CheckboxInput | forms.CheckboxSelectMultiple):
                field.widget.attrs.setdefault("class", "form-select" if select else "form-control")


class PersonForm(Styled):
    """A person: name, role, sites."""

    username = forms.RegexField(
        r"^[A-Za-z0-9_.@+-]+$",
        max_length=150,
        label=_("User name"),
        error_messages={"invalid": _("Latin letters, digits and . _ @ + - only.")},
    )
    full_name = forms.CharField(max_length=200, label=_("Family name, given name, patronymic"))
    role = forms.ChoiceField(choices=Role.choices, label=_("Role"))
    position = forms.CharField(max_length=128, required=False, label=_("Position"))
    language = forms.ChoiceField(choices=settings.LANGUAGES, label=_("Language"))
    sites = forms.ModelMultipleChoiceField(
        Site.objects.all(), required=False, label=_("Sites"), widget=forms.CheckboxSelectMultiple
    )

    def __init__(self, *args: Any, person: User | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if person is not None:
            del self.fields["username"]


class SiteForm(Styled):
    """A site of the region."""

    code = forms.SlugField(label=_("Code (Latin, in addresses)"), max_length=50)
    name = forms.CharField(max_length=128, label=_("Name"))
    kind = forms.ChoiceField(choices=Site.Kind.choices, label=_("Kind"))
    storage_model = forms.ChoiceField(
        choices=Site.StorageModel.choices,
        initial=Site.StorageModel.CENTRALISED,
        required=False,
        label=_("Where its images lie"),
    )
    accession_prefix = forms.RegexField(
        r"^[A-Za-z0-9]{1,4}$",
        label=_("Prefix of accession numbers"),
        error_messages={"invalid": _("One to four Latin letters or digits.")},
    )
    issuer_of_patient_id = forms.CharField(max_length=64, required=False, label=_("Issuer of its patient numbers"))
    time_zone = forms.ChoiceField(
        choices=lambda: [(zone, zone) for zone in sorted(available_timezones())],
        initial="Europe/Moscow",
        label=_("Time zone"),
    )
    address = forms.CharField(max_length=255, required=False, label=_("Address"))
    phone = forms.CharField(max_length=64, required=False, label=_("Phone"))
