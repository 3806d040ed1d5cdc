"""Forms of patients."""

from datetime import date

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

from ris_central.organizations.forms import Styled
from ris_central.patients.actions import person_name_of
from standards.person_names import fold

SEXES = [("", "—"), ("F", _("female")), ("M", _("male")), ("O", _("other"))]


class PatientForm(Styled):
    """Who the patient is."""

    name = forms.CharField(max_length=200, label=_("Family name, given name, patronymic"))
    birth_date = forms.DateField(
        required=False, label=_("Birth date"), widget=forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d")
    )
    sex = forms.ChoiceField(choices=SEXES, required=False, label=_("Sex"))
    phone = forms.CharField(max_length=64, required=False, label=_("Phone"))

    def clean_name(self) -> str:
        """The PN of the name."""
        name: str = self.cleaned_data["name"]
        if not fold(name):
            raise ValidationError(_("A patient needs a name."))
        return person_name_of(name)

    def clean_birth_date(self) -> date | None:
        """Nobody is born tomorrow."""
        born: date | None = self.cleaned_data["birth_date"]
        if born is not None and not date(1850, 1, 1) <= born <= date.today():
            raise ValidationError(_("This cannot be a birth date."))
        return born
