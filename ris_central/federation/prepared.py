"""Statements that a busy centre executes many times a second: planned once a connection, not each time.

Django binds values into the text of a statement, so that the database must read and plan it again each time; for what
nodes tell, that was most of the database's work.
"""

from collections.abc import Mapping
from typing import Any

from django.db import connection
from psycopg import Cursor


def execute(statement: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Execute a statement within the transaction of Django's connection; the rows that it returns.

    Raises: django.db.Error as the ORM does.
    """
    connection.ensure_connection()
    with connection.wrap_database_errors, Cursor(connection.connection) as cursor:
        cursor.execute(statement.encode(), values, prepare=True)
        return cursor.fetchall() if cursor.description else []
