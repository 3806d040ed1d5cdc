"""DICOMweb at ``/dicom-web/``. Source: PS3.18 10.1"""

from django.urls import path, re_path, register_converter

from pacs_node.dicomweb import bulkdata, metadata, qido, rendered, views, wado, wado_uri


class UidConverter:
    """A UID as a path segment; others are no address here."""

    regex = r"[0-9]+(?:\.[0-9]+)*"

    def to_python(self, value: str) -> str:
        """Too long is no UID."""
        if len(value) > 64:
            raise ValueError("a UID has at most 64 characters")
        return value

    def to_url(self, value: str) -> str:
        """As it is."""
        return value


register_converter(UidConverter, "uid")

STUDY = "studies/<uid:study>"
SERIES = f"{STUDY}/series/<uid:series>"
INSTANCE = f"{SERIES}/instances/<uid:instance>"

urlpatterns = [
    path("studies", views.studies, name="dicomweb-studies"),
    path("series", qido.series),
    path("instances", qido.instances),
    path(STUDY, views.study),
    path(f"{STUDY}/series", qido.series),
    path(f"{STUDY}/instances", qido.instances),
    path(f"{SERIES}/instances", qido.instances),
    path(SERIES, views.below),
    path(INSTANCE, views.below),
    path(f"{STUDY}/metadata", metadata.metadata),
    path(f"{SERIES}/metadata", metadata.metadata),
    path(f"{INSTANCE}/metadata", metadata.metadata),
    path(f"{INSTANCE}/frames/<str:frames>", wado.frames),
    path(f"{INSTANCE}/frames/<str:frames>/rendered", rendered.rendered_frame),
    path(f"{INSTANCE}/frames/<str:frames>/thumbnail", rendered.thumbnail),
    path(f"{INSTANCE}/bulkdata/<path:path>", bulkdata.bulkdata),
    *(path(f"{place}/rendered", rendered.rendered) for place in (STUDY, SERIES, INSTANCE)),
    *(path(f"{place}/thumbnail", rendered.thumbnail) for place in (STUDY, SERIES, INSTANCE)),
    path("wado", wado_uri.wado_uri),
    re_path(".*", views.nothing),
]
