"""Logging in, being locked out, one-time passwords, tokens, and the administrator's pages."""

from collections.abc import Callable

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from ris_central.accounts import actions
from ris_central.accounts.models import ApiToken, Role, User
from ris_central.audit.models import AuditEvent
from standards.errors import PermanentError
from tests.factories import centre

pytestmark = pytest.mark.django_db
Browser = Callable[[User | None], Client]


def log_in(client: Client, username: str, password: str, address: str = "192.0.2.7") -> int:
    return client.post("/login/", {"username": username, "password": password}, REMOTE_ADDR=address).status_code


def test_a_person_logs_in_and_out_and_both_are_recorded(client: Client) -> None:
    user = centre.user(Role.REGISTRAR, centre.site())
    assert log_in(client, user.username, centre.PASSWORD) == 302
    assert client.post("/logout/").status_code == 302
    actions_seen = list(AuditEvent.objects.filter(actor=user).order_by("pk").values_list("action", "address"))
    assert actions_seen[0] == ("session.login", "192.0.2.7")
    assert actions_seen[-1][0] == "session.logout"


def test_ten_wrong_guesses_lock_the_account_and_say_what_to_do(client: Client) -> None:
    user = centre.user(Role.REGISTRAR)
    for _ in range(9):
        assert log_in(client, user.username, "wrong") == 200
    tenth = {"username": user.username, "password": "wrong"}
    locked = client.post("/login/", tenth, REMOTE_ADDR="192.0.2.7", HTTP_ACCEPT_LANGUAGE="en")
    assert locked.status_code == 403
    assert "one-time password" in locked.content.decode()
    assert "15 minutes" in locked.content.decode()
    assert log_in(Client(), user.username, centre.PASSWORD) == 403
    assert AuditEvent.objects.filter(action="session.login-failed", actor_name=user.username).count() >= 10
    assert log_in(Client(), centre.user(Role.CLERK).username, centre.PASSWORD) == 302


def test_guesses_from_many_addresses_count_together_and_a_neighbour_behind_the_same_one_is_not_shut_out() -> None:
    guessed, neighbour = centre.user(Role.REGISTRAR), centre.user(Role.CLERK)
    for number in range(10):
        log_in(Client(), guessed.username, "wrong", f"192.0.2.{number}")
    assert log_in(Client(), guessed.username, centre.PASSWORD, "198.51.100.1") == 403
    for _ in range(12):  # more from one address than an account allows
        log_in(Client(), guessed.username, "wrong", "192.0.2.0")
    assert log_in(Client(), neighbour.username, centre.PASSWORD, "192.0.2.0") == 302


def test_a_password_reset_by_the_administrator_opens_a_locked_account(client: Client) -> None:
    user = centre.user(Role.REGISTRAR)
    for _ in range(10):
        log_in(client, user.username, "wrong")
    password = actions.reset_password(user)
    assert log_in(Client(), user.username, password) == 302


def test_a_wrong_password_is_never_written_down(client: Client) -> None:
    log_in(client, "somebody", "my-secret-typo")
    rows = AuditEvent.objects.all()
    assert rows.exists()
    assert "my-secret-typo" not in str(list(rows.values()))


def test_a_one_time_password_opens_nothing_but_the_password_page(browser_of: Browser) -> None:
    user = centre.user(Role.REGISTRAR, centre.site())
    actions.reset_password(user)
    user.refresh_from_db()
    browser = browser_of(user)
    assert browser.get("/patients/")["Location"] == "/password/"
    assert browser.get("/api/v1/patients").json()["code"] == "password-change-required"


def test_the_forced_change_refuses_weak_equal_and_mistyped_passwords(browser_of: Browser) -> None:
    user = centre.user(Role.REGISTRAR, centre.site())
    old = actions.reset_password(user)
    user.refresh_from_db()
    browser = browser_of(user)

    def change(new: str, again: str, current: str = old) -> int:
        form = {"old_password": current, "new_password": new, "new_password_again": again}
        return browser.post("/password/", form).status_code

    assert change("short", "short") == 422
    assert change("password1", "password1") == 422
    assert change(old, old) == 422
    assert change("a-good-one-7", "a-good-one-8") == 422
    assert change("a-good-one-7", "a-good-one-7", current="wrong") == 422
    assert change("a-good-one-7", "a-good-one-7") == 302
    assert browser.get("/patients/").status_code == 200
    assert AuditEvent.objects.filter(action="user.password-changed").count() == 1


def test_the_administrator_makes_a_person_and_sees_the_password_once(browser_of: Browser) -> None:
    site = centre.site()
    browser = browser_of(centre.user(Role.ADMINISTRATOR))
    form = {"username": "new", "full_name": "Снимков Лев Рентгенович", "role": "radiologist", "language": "ru"}
    made = browser.post("/people/new/", {**form, "sites": [site.pk]})
    person = User.objects.get(username="new")
    assert person.full_name == "Снимков Лев Рентгенович"
    page = browser.get(made["Location"]).content.decode()
    password = page.partition('id="one-time-password">')[2].partition("<")[0]
    assert person.check_password(password)
    assert "one-time-password" not in browser.get(made["Location"]).content.decode()
    assert person.memberships.get().site == site
    assert browser.post("/people/new/", form).status_code == 422


def test_nobody_closes_or_demotes_themselves(browser_of: Browser) -> None:
    admin = centre.user(Role.ADMINISTRATOR)
    browser = browser_of(admin)
    browser.post(f"/people/{admin.pk}/active/", {"active": "0"})
    browser.post(f"/people/{admin.pk}/", {"full_name": "A", "role": "clerk", "language": "ru"})
    admin.refresh_from_db()
    assert admin.is_active
    assert admin.role == Role.ADMINISTRATOR


def test_a_closed_account_ends_its_sessions_and_tokens(browser_of: Browser) -> None:
    user = centre.user(Role.REGISTRAR, centre.site())
    token = actions.issue_token(user, "t")
    browser = browser_of(user)
    actions.set_active(user, False)
    assert browser.get("/patients/")["Location"].startswith("/login/")
    assert Client(headers={"Authorization": f"Token {token}"}).get("/api/v1/me").status_code == 401


@pytest.mark.parametrize("scheme", ["Token", "Bearer", "bearer"])
def test_a_token_opens_the_api_and_only_its_digest_is_kept(scheme: str) -> None:
    user = centre.user(Role.REGISTRAR, centre.site())
    token = actions.issue_token(user, "t")
    answer = Client(headers={"Authorization": f"{scheme} {token}"}).get("/api/v1/me")
    assert answer.json()["username"] == user.username
    assert token not in str(list(ApiToken.objects.values()))


def test_a_wrong_or_revoked_token_is_refused_by_name() -> None:
    user = centre.user(Role.REGISTRAR)
    token = actions.issue_token(user, "t")
    actions.revoke_token(ApiToken.objects.get())
    for wrong in (token, "regis_nonsense", ""):
        answer = Client(headers={"Authorization": f"Token {wrong}"}).get("/api/v1/me")
        assert (answer.status_code, answer.json()["code"]) == (401, "token-invalid")


def test_the_language_switch_is_remembered_and_never_leads_elsewhere(browser_of: Browser) -> None:
    user = centre.user(Role.REGISTRAR)
    browser = browser_of(user)
    answer = browser.post("/language/", {"language": "en", "next": "https://evil.example/"})
    assert answer["Location"] == "/"
    user.refresh_from_db()
    assert user.language == "en"
    assert browser.post("/language/", {"language": "xx", "next": "/patients/"})["Location"] == "/patients/"


def test_a_form_from_elsewhere_is_refused_with_a_page(settings: object) -> None:
    answer = Client(enforce_csrf_checks=True, HTTP_ACCEPT_LANGUAGE="en").post("/login/", {"username": "a"})
    assert answer.status_code == 403
    assert "out of date" in answer.content.decode()


def test_the_first_administrator_is_made_by_command(capsys: pytest.CaptureFixture[str], client: Client) -> None:
    call_command("adduser", "chief")
    password = capsys.readouterr().out.strip()
    assert User.objects.get(username="chief").role == Role.ADMINISTRATOR
    assert log_in(client, "chief", password) == 302
    with pytest.raises(CommandError, match="There is a user chief already"):
        call_command("adduser", "chief")
    with pytest.raises(CommandError, match="There is no site nowhere"):
        call_command("adduser", "second", "--site", "nowhere")


def test_a_password_is_reset_by_command(capsys: pytest.CaptureFixture[str], client: Client) -> None:
    user = centre.user(Role.ADMINISTRATOR)
    call_command("resetpassword", user.username)
    assert log_in(client, user.username, capsys.readouterr().out.strip()) == 302
    actions.set_active(user, False)
    with pytest.raises(CommandError, match="--reopen"):
        call_command("resetpassword", user.username)


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(PermanentError, match="unknown-role"):
        actions.create_user(username="x", role="king")
