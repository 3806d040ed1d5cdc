"""Joining, commands and trust at the centre."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.db import connection, transaction
from django.utils import timezone

from gateway.envelope import Directory, JoinRequest, SendStudy
from gateway.keys import public_text
from ris_central.accounts.models import Role, User
from ris_central.audit.models import AuditEvent
from ris_central.federation import actions, keys, queries
from ris_central.federation.models import Command, JoinCode, Node
from ris_central.organizations.models import Membership, Site
from standards.errors import PermanentError
from standards.tokens import public_key_from_text, verify_image_token

pytestmark = pytest.mark.django_db


@pytest.fixture
def site() -> Site:
    return Site.objects.create(code="a", name="Clinic A", kind=Site.Kind.OWN_PACS, accession_prefix="A")


def asked(code: str, kind: str = "clinic", key: str = "") -> JoinRequest:
    return JoinRequest(
        code=code,
        public_key=key or public_text(Ed25519PrivateKey.generate()),
        ae_title="CLINIC",
        kind=kind,  # type: ignore[arg-type]
        url="https://127.0.0.1:8443",
        browser_url="http://127.0.0.1:8042",
        host="127.0.0.1",
        dicom_port=11112,
    )


def joined(site: Site, name: str, kind: str = "clinic") -> Node:
    _, code = actions.create_join_code(site, kind, name)
    actions.join(asked(code, kind))
    return Node.objects.get(name=name)


def drain(node: Node) -> list[str]:
    """The types of what waits for the node; afterwards nothing does."""
    taken = actions.take_commands(node.pk, 0)
    return [str(command.body["type"]) for command in taken]


def test_nodes_that_join_at_the_same_moment_are_all_in_what_each_is_told_last(transactional_db: None) -> None:
    site = Site.objects.create(code="a", name="Clinic A", kind=Site.Kind.OWN_PACS, accession_prefix="A")
    archive = joined(site, "archive", "archive")
    names = [f"clinic-{number}" for number in range(4)]
    codes = [actions.create_join_code(site, "clinic", name)[1] for name in names]
    together = Barrier(len(codes))

    def join(code: str) -> None:
        try:
            together.wait()
            actions.join(asked(code))
        finally:
            connection.close()

    with ThreadPoolExecutor(len(codes)) as pool:
        list(pool.map(join, codes))
    for node in (archive, *Node.objects.filter(name__in=names)):
        told = Command.objects.filter(node=node, type="directory").latest("pk").body
        assert [peer["name"] for peer in told["peers"]] == ["archive", *names], node.name


def test_a_code_makes_a_node_known_and_tells_the_region(site: Site) -> None:
    archive = joined(site, "archive", "archive")
    clinic = joined(site, "clinic")
    directory = actions.directory_of(clinic)
    assert [peer.name for peer in directory.peers] == ["archive", "clinic"]
    assert directory.mirror_to == ["archive"]
    assert actions.directory_of(archive).mirror_to == []
    told = Directory.model_validate(actions.take_commands(archive.pk, 0)[-1].body)
    assert [peer.name for peer in told.peers] == ["archive", "clinic"]
    assert AuditEvent.objects.filter(action="node.joined").count() == 2


@pytest.mark.parametrize("spoil", [str.lower, lambda code: code.replace("-", " "), lambda code: f"  {code}\n"])
def test_a_code_may_be_typed_carelessly(site: Site, spoil: Callable[[str], str]) -> None:
    _, code = actions.create_join_code(site, "clinic", "clinic")
    assert actions.join(asked(spoil(code))).name == "clinic"


def test_a_wrong_code_is_refused(site: Site) -> None:
    actions.create_join_code(site, "clinic", "clinic")
    with pytest.raises(PermanentError, match="join-code-wrong"):
        actions.join(asked("AAAA-BBBB-CCCC-DDDD"))


def test_a_code_serves_one_node_but_an_answer_that_was_lost_may_be_asked_again(site: Site) -> None:
    _, code = actions.create_join_code(site, "clinic", "clinic")
    first = asked(code)
    actions.join(first)
    assert actions.join(first).name == "clinic"
    with pytest.raises(PermanentError, match="join-code-spent"):
        actions.join(asked(code))


def test_a_code_past_its_time_is_refused(site: Site) -> None:
    _, code = actions.create_join_code(site, "clinic", "clinic")
    JoinCode.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    with pytest.raises(PermanentError, match="join-code-expired"):
        actions.join(asked(code))


def test_a_code_for_a_clinic_makes_no_archive(site: Site) -> None:
    _, code = actions.create_join_code(site, "clinic", "clinic")
    with pytest.raises(PermanentError, match="join-kind-mismatch"):
        actions.join(asked(code, "archive"))
    assert Node.objects.get().joined_at is None


def test_a_key_of_another_node_is_refused(site: Site) -> None:
    first = joined(site, "first")
    _, code = actions.create_join_code(site, "clinic", "second")
    with pytest.raises(PermanentError, match="key-taken"):
        actions.join(asked(code, key=first.public_key))


def test_what_is_no_key_is_refused(site: Site) -> None:
    _, code = actions.create_join_code(site, "clinic", "clinic")
    with pytest.raises(PermanentError, match="invalid-key"):
        actions.join(asked(code, key="abc"))


def test_codes_are_kept_only_as_hashes(site: Site) -> None:
    _, code = actions.create_join_code(site, "clinic", "clinic")
    kept = JoinCode.objects.get().digest
    assert code not in kept
    assert len(kept) == 64


def test_a_prepared_code_may_be_given_again_and_must_be_long(site: Site) -> None:
    for _ in range(2):
        actions.create_join_code(site, "clinic", "clinic", code="prepared-code-12")
    assert JoinCode.objects.count() == 1
    with pytest.raises(PermanentError, match="join-code-weak"):
        actions.create_join_code(site, "clinic", "clinic", code="short")


def test_a_revoked_node_leaves_every_directory(site: Site) -> None:
    clinic, other = joined(site, "clinic"), joined(site, "other")
    actions.revoke(clinic)
    assert [peer.name for peer in actions.directory_of(other).peers] == ["other"]
    told = Directory.model_validate(actions.take_commands(other.pk, 0)[-1].body)
    assert [peer.name for peer in told.peers] == ["other"]


def test_commands_come_in_order_until_they_are_applied(site: Site) -> None:
    node = joined(site, "clinic")
    for study in ("1.1", "1.2", "1.3"):
        actions.send_command(node, SendStudy(study_instance_uid=study))
    taken = [item for item in actions.take_commands(node.pk, 0) if item.body["type"] == "study.send"]
    assert [item.body["study_instance_uid"] for item in taken] == ["1.1", "1.2", "1.3"]
    assert [item.seq for item in taken] == sorted(item.seq for item in taken)
    again = actions.take_commands(node.pk, taken[0].seq)
    assert [item.seq for item in again] == [item.seq for item in taken[1:]]
    assert actions.take_commands(node.pk, taken[-1].seq) == []
    node.refresh_from_db()
    assert node.applied_command_seq == taken[-1].seq


def test_a_command_goes_with_the_transaction_it_was_written_in(site: Site) -> None:
    node = joined(site, "clinic")
    drain(node)
    before = Command.objects.count()
    with transaction.atomic():
        actions.send_command(node, SendStudy(study_instance_uid="1.1"))
        transaction.set_rollback(True)
    assert Command.objects.count() == before


def test_numbers_rise_over_a_restore_of_the_centre(site: Site) -> None:
    """The node applied commands that the restored database never heard of."""
    node = joined(site, "clinic")
    after = actions.take_commands(node.pk, 0)[-1].seq + 3
    actions.send_command(node, SendStudy(study_instance_uid="1.1"))
    told = actions.take_commands(node.pk, after)
    assert min(command.seq for command in told) > after
    assert [command.body["type"] for command in told] == ["study.send", "directory", "devices", "roster", "schedule"]
    node.refresh_from_db()
    assert node.restored_at is not None
    assert actions.take_commands(node.pk, told[-1].seq) == []


def test_people_see_the_nodes_of_their_sites(site: Site) -> None:
    other = Site.objects.create(code="b", name="B", kind=Site.Kind.OWN_PACS, accession_prefix="B")
    joined(site, "clinic-a")
    joined(other, "clinic-b")
    people = {role: User.objects.create(username=role, role=role) for role in Role.values}
    for role in (Role.ENGINEER, Role.RADIOLOGIST, Role.REGISTRAR):
        Membership.objects.create(user=people[role], site=site)
    seen = {role: sorted(queries.visible_to(user).values_list("name", flat=True)) for role, user in people.items()}
    assert seen == {
        Role.ADMINISTRATOR: ["clinic-a", "clinic-b"],
        Role.ENGINEER: ["clinic-a"],
        Role.RADIOLOGIST: ["clinic-a"],
        Role.REGISTRAR: [],
        Role.CLERK: [],
        Role.EXPERT: [],
    }


def test_an_image_token_is_good_at_its_node_for_its_studies(site: Site) -> None:
    joined(site, "clinic")
    token, expires = keys.image_token("radiologist", ["1.2.3"], ["read"], "clinic")
    told = actions.directory_of(Node.objects.get()).token_keys
    public = {kid: public_key_from_text(text) for kid, text in told.items()}
    claims = verify_image_token(token, public, "clinic")
    assert claims.allows("read", "1.2.3")
    assert not claims.allows("read", "1.2.4")
    assert timedelta(minutes=4) < expires - timezone.now() <= timedelta(minutes=5)
    with pytest.raises(PermanentError, match="token-wrong-audience"):
        verify_image_token(token, public, "archive")
