"""Why images are not where they should be, and what to do: the codes that nodes tell, in words for people."""

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

Text = str | Promise

HELD: dict[str, Text] = {
    "night": _("waits for the night by rule"),
    "on-demand": _("stays at the clinic by rule, until somebody asks"),
    "rate": _("waits for an hour with more bandwidth"),
    "checkpoint": _("waits for a network in which images may leave"),
    "held": _("held by a person"),
}
FOREIGN_ERRORS: dict[str, tuple[Text, Text]] = {
    "connection-failed": (
        _("the PACS cannot be reached"),
        _("Check its power, its network, and host and port in the node's configuration."),
    ),
    "association-rejected": (
        _("the PACS turns the node away"),
        _("Have the node's AE title admitted there, and check the AE titles in the configuration."),
    ),
    "timed-out": (
        _("the PACS does not answer in time"),
        _("It is asked again by itself, with longer and longer pauses."),
    ),
    "echo-refused": (
        _("the PACS refuses even to say that it is there"),
        _("Look whether it is being started or serviced."),
    ),
    "query-refused": (_("the PACS refuses the question"), _("Check which queries it allows this node.")),
    "move-destination-unknown": (
        _("the PACS does not know where to send the images"),
        _("Have the node's AE title, host and port entered there, or choose C-GET or WADO-RS."),
    ),
    "retrieve-refused": (_("the PACS refuses to send the images"), _("Check there what it allows this node.")),
    "retrieve-failed": (_("the PACS could not send the images"), _("It is asked again by itself.")),
    "access-refused": (
        _("the credentials are refused"),
        _("Put right ones into the credentials file in the node's secrets folder."),
    ),
    "invalid-setting": (_("the configuration is not complete"), _("Correct it on the node's configuration page.")),
    "source-removed": (_("this PACS was taken out of the configuration"), _("Nothing is fetched from it any more.")),
}
_FILE_REFUSED = (_("the destination refuses the file"), _("Look at the file at the clinic."))
_ERRORS: dict[str, tuple[Text, Text]] = {
    "unreachable": (
        _("the destination does not answer"),
        _("It goes on by itself when the line is back. If it stays: check the network between the two."),
    ),
    "bad-certificate": (
        _("the certificate of the destination is not trusted"),
        _("Check the certificate there and the authorities that this node trusts."),
    ),
    "storage-full": (_("the destination has no room left"), _("Free or add storage there; it goes on by itself.")),
    "signature-expired": (_("the clocks of the two differ too much"), _("Set the clock of the node.")),
    "unknown-key": (_("the destination does not know this node yet"), _("If it stays: join the node again.")),
    "unknown-destination": (_("the destination has not joined"), _("Join it, or change the rules.")),
    "source-damaged": (
        _("the file at the clinic is damaged"),
        _("The node mends it from another copy; without one the device must send it again."),
    ),
    "instance-gone": (_("the clinic no longer has the file"), _("The device must send it again.")),
    "digest-mismatch": (
        _("what arrived is not what was recorded"),
        _("Try again; if it stays, the clinic's disk is damaged."),
    ),
    "receipt-forged": (_("a receipt was not signed by the destination"), _("Check who answers at its address.")),
    "receipt-mismatch": (_("a receipt was for something else"), _("Check who answers at its address.")),
    "body-damaged": (_("bytes were damaged on the way"), _("It goes on by itself.")),
    "still-checking": (
        _("the destination is checking what came"),
        _("Of a very large image that takes minutes; it is asked again every few seconds."),
    ),
    "chunks-missing": (_("parts of a large image are missing there"), _("They are sent again by themselves.")),
    "no-upload": (_("the destination has let go of what came in part"), _("It is sent again by itself.")),
    "not-restored": (_("the destination cannot restore what was encoded"), _("It is sent as it is by itself.")),
    "body-cut-short": (_("the connection broke off"), _("It goes on by itself.")),
    "not-joined": (_("the destination has not joined"), _("Join it, or change the rules.")),
    "receipt-unreadable": (_("a receipt cannot be read"), _("Check who answers at its address.")),
    "answer-unreadable": (_("an answer cannot be read"), _("Check who answers at its address.")),
    "signature-invalid": (_("the destination does not accept the node's signature"), _("Join the node again.")),
    "signature-missing": (_("the destination does not accept the node's signature"), _("Join the node again.")),
    "other-receiver": (_("another node answers at its address"), _("Check the address of the destination.")),
    "database-busy": (_("the database there is busy"), _("It goes on by itself.")),
    "instance-invalid": _FILE_REFUSED,
    "commitment-refused": (
        _("the destination refuses to answer for the image"),
        _("It is sent again by itself; if it stays, ask who runs the destination."),
    ),
    "stow-refused": (_("the destination refuses the file"), _("Ask who runs the destination, with these words.")),
    "store-refused": (_("the destination refuses the file"), _("Ask who runs the destination, with these words.")),
    "other-content-there": (
        _("another image lies there under the same number"),
        _("Compare the two; the destination does not replace it."),
    ),
    **dict.fromkeys(
        ("bad-upload", "body-too-long", "unknown-encoding", "digests-missing", "length-missing"),
        (_("the two do not understand each other"), _("Bring the older of the two up to date, then try again.")),
    ),
    **dict.fromkeys(
        (
            *("not-dicom", "truncated", "invalid-vr", "invalid-deflate", "length-out-of-bounds", "missing-uid"),
            *("invalid-uid", "nesting-too-deep", "too-many-elements", "unknown-transfer-syntax", "uid-in-use"),
            *("sop-class-mismatch", "sop-class-not-supported", "sop-instance-mismatch", "transfer-syntax-mismatch"),
        ),
        _FILE_REFUSED,
    ),
    "busy": (_("the destination is busy"), _("It goes on by itself.")),
    **dict.fromkeys(
        ("store-failed", "stow-failed"),
        (_("the destination could not take the image"), _("It is sent again by itself.")),
    ),
    "protocol-error": (
        _("the destination does not keep to the protocol"),
        _("It is sent again by itself; if it stays, ask who runs the destination."),
    ),
    "read-back-failed": (_("it was taken there and cannot be read back"), _("It is sent again by itself.")),
    "syntax-refused": (
        _("the destination takes the image in no encoding that can be made of it"),
        _("Ask who runs the destination, with these words."),
    ),
    **dict.fromkeys(
        ("storage-damaged", "recall-failed"),
        (_("the clinic cannot read the file now"), _("Look at the storage on the node's own page.")),
    ),
    "tls-authority-unreadable": (
        _("the node cannot read the authorities that it trusts"),
        _("Check the file that REGIS_NODE_TLS_CA names."),
    ),
    "not-found-there": (_("it was taken there and is not listed"), _("It is sent again by itself.")),
    **FOREIGN_ERRORS,
}
NODE_AWAY: Text = _("the clinic's node is away")
NODE_AWAY_ADVICE: Text = _("It sends by itself when it is back. Check its power and network.")


def reason(error: str) -> tuple[Text, Text]:
    """What an error (``code`` or ``code: detail``) says and what to do; an unknown one is said as it is."""
    code = error.partition(":")[0].strip()
    return _ERRORS.get(code, (error, _("Try again; if it stays, tell the administrator these words.")))
