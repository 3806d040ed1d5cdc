"""Django app study_index."""

from django.apps import AppConfig


class StudyIndexConfig(AppConfig):
    name = "pacs_node.study_index"
    label = "study_index"
