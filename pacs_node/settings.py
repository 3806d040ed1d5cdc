"""Django settings of a node, derived from NodeConfig."""

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pacs_node.config import config
from standards.secrets import secret_file

CONFIG = config()
CONFIG.data_dir.mkdir(parents=True, exist_ok=True)

SECRET_KEY = secret_file(CONFIG.data_dir / "secrets" / "django.key")
DEBUG = CONFIG.debug
ALLOWED_HOSTS = ["*"]  # a node is reached by whatever name its LAN gives it; no link is ever built from Host
USE_TZ = True
TIME_ZONE = CONFIG.time_zone
LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("ru", "Русский")]
USE_I18N = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ROOT_URLCONF = "pacs_node.urls"
WSGI_APPLICATION = "pacs_node.wsgi.application"

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "pacs_node.study_index",
    "pacs_node.storage",
    "gateway",
    "gateway.foreign",
    "pacs_node.dimse",
    "pacs_node.dicomweb",
    "pacs_node.clinic",
    "pacs_node.offline",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]


def database(url: str, data_dir: Path) -> dict[str, Any]:
    """The Django database for ``url``; empty means SQLite in ``data_dir``, written so that a commit is durable."""
    if not url:
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": data_dir / "node.sqlite3",
            "CONN_MAX_AGE": None,  # threads close theirs when they end; opening one costs more than a query
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "timeout": 30,
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;",
            },
        }
    parts = urlsplit(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": str(parts.port or ""),
        "CONN_MAX_AGE": 60,
        "CONN_HEALTH_CHECKS": True,
    }


DATABASES = {"default": database(CONFIG.database_url, CONFIG.data_dir)}

PORT_IN_COOKIE = CONFIG.url.rsplit(":", 1)[-1].strip("/")  # cookies know hosts, not ports: neighbours must not meet
SESSION_COOKIE_NAME = f"regis_node_session_{PORT_IN_COOKIE}"
CSRF_COOKIE_NAME = f"regis_node_csrf_{PORT_IN_COOKIE}"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = CONFIG.url.startswith("https://")
SESSION_COOKIE_AGE = 12 * 3600
AUTHENTICATION_BACKENDS = ["pacs_node.clinic.logins.ClinicBackend"]
LOGIN_URL = "/login/"
LOGIN_REDIRECT_URL = "/"
STATIC_URL = "/static/"
STATIC_ROOT = CONFIG.data_dir / "static"
STATIC_ROOT.mkdir(exist_ok=True)
STATICFILES_DIRS = [("vendor", CONFIG.vendor_dir)] if CONFIG.vendor_dir.is_dir() else []
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = False
DATA_UPLOAD_MAX_MEMORY_SIZE = None  # instances are streamed, never held
LOGGING_CONFIG = None
