"""People who log in: users, roles, API tokens."""
