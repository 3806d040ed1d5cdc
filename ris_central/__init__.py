"""The centre: a Django project, one app a concern."""
