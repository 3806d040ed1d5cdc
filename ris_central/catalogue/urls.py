"""Pages, DICOMweb, viewer and REST of the catalogue. Included at the root."""

from django.urls import include, path

from ris_central.accounts.api import ApiRouter
from ris_central.catalogue import api, foreign, viewer, views

router = ApiRouter()
router.register("studies", api.StudyViewSet, basename="api-studies")

urlpatterns = [
    path("", views.worklist, name="worklist"),
    path("studies/<int:pk>/", views.study, name="study"),
    path("studies/<int:pk>/proof/", views.study_proof, name="study_proof"),
    path("studies/<int:pk>/foreign/", foreign.part, name="study_foreign"),
    path("studies/<int:pk>/fetch/<int:holding>/", foreign.fetch, name="study_fetch"),
    path("studies/<int:pk>/opening/", views.study_opening, name="study_opening"),
    path("studies/<int:pk>/send/", views.study_send, name="study_send"),
    path("studies/<int:pk>/hold/", views.study_hold, name="study_hold"),
    path("studies/<int:pk>/beside/", views.study_opened_beside, name="study_beside"),
    path("dicom-web/", include("ris_central.catalogue.dicomweb.urls")),
    path("viewer/app-config.js", viewer.app_config, name="viewer_config"),
    path("viewer/", viewer.viewer_file, name="viewer"),
    path("viewer/<path:path>", viewer.viewer_file, name="viewer_file"),
    path("federation/v1/holdings", api.holdings, name="federation-holdings"),
    path("api/v1/image-tokens", api.ImageTokenView.as_view(), name="api-image-tokens"),
    path("api/v1/", include(router.urls)),
]
