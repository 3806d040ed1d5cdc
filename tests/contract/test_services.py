"""What a folder of tests gets from tests/services.py."""

import psycopg
import redis


def test_postgresql_speaks_unicode_and_folds_cyrillic(postgres_database: str) -> None:
    with psycopg.connect(postgres_database) as connection:
        row = connection.execute("SELECT lower('ЩЁГОЛЕВ'), current_setting('server_encoding')").fetchone()
    assert row == ("щёголев", "UTF8")


def test_extensions_that_search_needs_are_there(postgres_database: str) -> None:
    with psycopg.connect(postgres_database) as connection:
        for extension in ("pg_trgm", "unaccent"):
            connection.execute(f"CREATE EXTENSION {extension}")
        row = connection.execute("SELECT similarity('Щёголев', 'Щеголев')").fetchone()
    assert row
    assert row[0] > 0.4


def test_valkey_keeps_what_it_is_given(valkey_url: str) -> None:
    client = redis.Redis.from_url(valkey_url)
    client.set("regis-test", "да")
    assert client.getdel("regis-test") == "да".encode()
