"""Addresses of the region's DICOMweb; included at ``/dicom-web/``."""

from django.urls import path, re_path

from ris_central.catalogue.dicomweb import proxy, searches

_UID = r"[0-9.]{1,64}"

urlpatterns = [
    path("studies", searches.studies, name="dicomweb_studies"),
    path("series", searches.series, name="dicomweb_series"),
    re_path(rf"^studies/(?P<study>{_UID})/series/?\Z", searches.series, name="dicomweb_study_series"),
    re_path(r"^(?P<path>studies/.+)\Z", proxy.images, name="dicomweb_images"),
]
