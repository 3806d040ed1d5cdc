"""Forms for the configuration of nodes and for where alerts go."""

import secrets
from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from ris_central.monitoring.models import AlertChannel

WHEN = [("now", _("At once")), ("night", _("At night")), ("on-demand", _("On demand"))]
PRIORITY = [(0, _("Emergency")), (10, _("Consult")), (50, _("Routine")), (90, _("Last"))]
KIND = [("stow", "DICOMweb (STOW-RS)"), ("dicom", "DICOM (C-STORE)")]


def words(text: str) -> list[str]:
    return [word for word in text.replace(",", " ").split() if word]


class _Clock(forms.TimeInput):
    input_type = "time"

    def __init__(self) -> None:
        super().__init__(format="%H:%M", attrs={"class": "form-control"})


class Line(forms.Form):
    """A row of a table; an empty one counts for nothing, ``remove`` takes it away."""

    remove = forms.BooleanField(required=False, label=_("Remove"))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, one in self.fields.items():
            if name != "remove" and not isinstance(one.widget, forms.CheckboxInput):
                kind = "form-select" if isinstance(one.widget, forms.Select) else "form-control"
                width = "5rem" if isinstance(one, forms.IntegerField) else "6.5rem"
                one.widget.attrs.update(
                    {"class": kind, "aria-label": str(one.label or name), "style": f"min-width:{width}"}
                )


class RuleForm(Line):
    """A rule of the mirror."""

    modalities = forms.CharField(required=False, label=_("Modalities (empty: all)"))
    when = forms.ChoiceField(choices=[("", "—"), *WHEN], required=False, label=_("When"))
    destinations = forms.CharField(required=False, label=_("Where to (empty: everywhere)"))
    priority = forms.TypedChoiceField(choices=PRIORITY, coerce=int, required=False, initial=50, label=_("Priority"))

    def value(self) -> dict[str, Any]:
        """What the configuration has of it."""
        data = self.cleaned_data
        return {
            "modalities": [word.upper() for word in words(data["modalities"])],
            "when": data["when"],
            "destinations": words(data["destinations"]),
            "priority": data["priority"] if data["priority"] != "" else 50,
        }


class RateForm(Line):
    """A limit of the rate by the clock."""

    since = forms.TimeField(required=False, widget=_Clock(), label=_("Begins"))
    until = forms.TimeField(required=False, widget=_Clock(), label=_("Ends"))
    kilobits_per_second = forms.IntegerField(
        required=False, min_value=0, label=_("kbit/s (0: nothing but what is urgent)")
    )

    def clean(self) -> dict[str, Any]:
        """A limit has all three."""
        data = dict(super().clean() or {})
        given = [data.get(name) is not None for name in ("since", "until", "kilobits_per_second")]
        if any(given) and not all(given) and not data.get("remove"):
            raise forms.ValidationError(_("A limit needs its beginning, its end and its rate."))
        return data

    def value(self) -> dict[str, Any]:
        """What the configuration has of it."""
        data = self.cleaned_data
        return {
            "since": data["since"].strftime("%H:%M"),
            "until": data["until"].strftime("%H:%M"),
            "kilobits_per_second": data["kilobits_per_second"],
        }


class OutsideForm(Line):
    """A place outside the region."""

    name = forms.SlugField(required=False, label=_("Name"))
    kind = forms.ChoiceField(choices=KIND, required=False, label=_("Kind"))
    url = forms.CharField(required=False, label=_("Web address (DICOMweb)"))
    host = forms.CharField(required=False, label=_("Host (DICOM)"))
    port = forms.IntegerField(required=False, min_value=0, max_value=65535, label=_("Port"))
    ae_title = forms.CharField(required=False, max_length=16, label=_("AE title"))
    use_tls = forms.BooleanField(required=False, label="TLS")
    commitment = forms.BooleanField(required=False, initial=True, label=_("Ask it to answer for each image"))
    read_back = forms.BooleanField(required=False, initial=True, label=_("Fetch each image back and compare"))

    def value(self) -> dict[str, Any]:
        """What the configuration has of it."""
        data = {name: one for name, one in self.cleaned_data.items() if name != "remove"}
        return {**data, "port": data["port"] or 0}


RuleForms = forms.formset_factory(RuleForm, extra=2)
RateForms = forms.formset_factory(RateForm, extra=1)
OutsideForms = forms.formset_factory(OutsideForm, extra=1)


class PolicyForm(forms.Form):
    """The rest of the mirror policy, and why it is changed."""

    night_since = forms.TimeField(widget=_Clock(), label=_("Night begins"))
    night_until = forms.TimeField(widget=_Clock(), label=_("Night ends"))
    encode = forms.ChoiceField(
        choices=[("auto", _("Where it was measured to pay")), ("always", _("Always")), ("never", _("Never"))],
        widget=forms.Select(attrs={"class": "form-select"}),
        label=_("Encode losslessly for the line"),
    )
    checkpoints = forms.CharField(
        required=False,
        widget=forms.Textarea(attrs={"rows": 2, "class": "form-control"}),
        label=_("Networks in which images may leave"),
        help_text=_("For mobile units: one network a line, such as 10.20.0.0/16; empty: everywhere."),
    )
    rotate_after_days = forms.IntegerField(
        min_value=0,
        max_value=3650,
        widget=forms.NumberInput(attrs={"class": "form-control"}),
        label=_("New key after, days (0: only when asked)"),
    )
    reason = forms.CharField(
        required=False, max_length=255, widget=forms.TextInput(attrs={"class": "form-control"}), label=_("Why")
    )
    based_on = forms.IntegerField(widget=forms.HiddenInput)


class ConfigurationForms:
    """All forms of one configuration together; ``body`` is what they stand on and what they do not touch stays."""

    def __init__(self, body: dict[str, Any], version: int, data: Any = None) -> None:
        mirror = body["mirror"]
        self._body = body
        listed = [
            {**rule, **{name: " ".join(rule[name]) for name in ("modalities", "destinations")}}
            for rule in mirror["rules"]
        ]
        self.rules = RuleForms(data, prefix="rules", initial=listed)
        self.rates = RateForms(data, prefix="rates", initial=mirror["rates"])
        self.outside = OutsideForms(data, prefix="outside", initial=mirror["outside"])
        self.policy = PolicyForm(
            data,
            initial={
                **{name: mirror[name] for name in ("night_since", "night_until")},
                "encode": mirror.get("encode", "auto") if mirror["compress"] else "never",
                "checkpoints": "\n".join(mirror["checkpoints"]),
                "rotate_after_days": body["keys"]["rotate_after_days"],
                "based_on": version,
            },
        )

    def is_valid(self) -> bool:
        """Whether every form is."""
        valid = [one.is_valid() for one in (self.rules, self.rates, self.outside, self.policy)]  # each shows its faults
        return all(valid)

    def body(self) -> dict[str, Any]:
        """The body as the forms have it now."""
        said = self.policy.cleaned_data
        mirror = {
            **self._body["mirror"],
            "rules": self._values(self.rules, "when", "rules"),
            "rates": self._values(self.rates, "since", "rates"),
            "outside": self._values(self.outside, "name", "outside"),
            "night_since": said["night_since"].strftime("%H:%M"),
            "night_until": said["night_until"].strftime("%H:%M"),
            "compress": said["encode"] != "never",  # older nodes know nothing else
            "encode": said["encode"],
            "checkpoints": words(said["checkpoints"]),
        }
        return {
            **self._body,
            "mirror": mirror,
            "keys": {**self._body["keys"], "rotate_after_days": said["rotate_after_days"]},
        }

    def _values(self, lines: Any, needed: str, name: str) -> list[dict[str, Any]]:
        """The rows that say something; settings of a row that have no field here stay as they were."""
        before = self._body["mirror"][name]
        found = []
        for number, line in enumerate(lines):
            if line.cleaned_data.get("remove") or line.cleaned_data.get(needed) in (None, ""):
                continue
            found.append({**(before[number] if number < len(before) else {}), **line.value()})
        return found


class ChannelForm(forms.ModelForm):  # type: ignore[type-arg]  # not generic at run time
    """Where alerts go."""

    class Meta:
        model = AlertChannel
        fields = ["kind", "target", "only_critical", "site", "language", "is_active"]
        labels = {
            "kind": _("Kind"),
            "target": _("Mail address or web address"),
            "only_critical": _("Only critical ones"),
            "site": _("Only of the site"),
            "language": _("Language"),
            "is_active": _("In use"),
        }
        widgets = {
            "kind": forms.Select(attrs={"class": "form-select"}),
            "target": forms.TextInput(attrs={"class": "form-control"}),
            "site": forms.Select(attrs={"class": "form-select"}),
            "language": forms.Select(choices=[("ru", "Русский"), ("en", "English")], attrs={"class": "form-select"}),
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["site"].required = False

    def clean(self) -> dict[str, Any]:
        """The target fits the kind."""
        data = dict(super().clean() or {})
        target = str(data.get("target") or "").strip()
        if data.get("kind") == AlertChannel.Kind.MAIL:
            forms.EmailField().run_validators(target)
        elif not target.startswith(("https://", "http://")):
            self.add_error("target", _("A web address begins with https:// or http://."))
        data["target"] = target
        return data

    def save(self, commit: bool = True) -> AlertChannel:
        """Keep it; a webhook gets a secret of its own at first."""
        channel: AlertChannel = super().save(commit=False)
        if channel.kind == AlertChannel.Kind.WEBHOOK and not channel.secret:
            channel.secret = secrets.token_urlsafe(32)
        if commit:
            channel.save()
        return channel
