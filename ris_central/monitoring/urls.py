"""Sites and their state."""

from django.urls import path

from ris_central.monitoring import fleet, foreign, mirror, region, views

urlpatterns = [
    path("", views.sites, name="sites"),
    path("new/", views.site_new, name="site_new"),
    path("<int:pk>/", views.site, name="site"),
    path("<int:pk>/mirror/", mirror.mirror, name="site_mirror"),
    path("<int:pk>/mirror/send/", mirror.send, name="site_mirror_send"),
    path("<int:pk>/mirror/hold/<int:study>/", mirror.hold, name="site_mirror_hold"),
    path("<int:pk>/mirror/compare/", mirror.compare, name="site_mirror_compare"),
    path("<int:pk>/mirror/differences/<int:difference>/", mirror.difference, name="site_difference"),
    path("<int:pk>/mirror/storage-model/", mirror.storage_model, name="site_storage_model"),
    path("<int:pk>/join-code/", views.join_code, name="join_code"),
    path("region/", region.region, name="region"),
    path("region.csv", region.region_csv, name="region_csv"),
    path("alerts/", region.alerts, name="alerts"),
    path("alerts/channels/new/", region.channel, name="alert_channel_new"),
    path("alerts/channels/<int:pk>/", region.channel, name="alert_channel"),
    path("alerts/channels/<int:pk>/test/", region.channel_test, name="alert_channel_test"),
    path("alerts/channels/<int:pk>/remove/", region.channel_remove, name="alert_channel_remove"),
    path("configuration/", fleet.region_configuration, name="region_configuration"),
    path("configuration/edit/", fleet.region_configuration_edit, name="region_configuration_edit"),
    path("configuration/text/", fleet.region_configuration_json, name="region_configuration_json"),
    path("configuration/versions/<int:pk>/restore/", fleet.configuration_restore, name="configuration_restore"),
    path("nodes/<int:pk>/", fleet.node, name="node"),
    path("nodes/<int:pk>/rotate/", fleet.node_rotate, name="node_rotate"),
    path("nodes/<int:pk>/revoke/", fleet.node_revoke, name="node_revoke"),
    path("nodes/<int:pk>/audit/", fleet.node_audit, name="node_audit"),
    path("nodes/<int:pk>/configuration/", fleet.configuration, name="node_configuration"),
    path("nodes/<int:pk>/configuration/edit/", fleet.configuration_edit, name="node_configuration_edit"),
    path("nodes/<int:pk>/configuration/text/", fleet.configuration_json, name="node_configuration_json"),
    path("nodes/<int:pk>/configuration/follow/", fleet.configuration_follow, name="node_configuration_follow"),
    path("nodes/<int:pk>/foreign/new/", foreign.source, name="foreign_source_new"),
    path("nodes/<int:pk>/foreign/<slug:name>/", foreign.source, name="foreign_source"),
    path("nodes/<int:pk>/foreign/<slug:name>/state/", foreign.state, name="foreign_source_state"),
    path("nodes/<int:pk>/foreign/<slug:name>/probe/", foreign.probe, name="foreign_source_probe"),
    path("nodes/<int:pk>/foreign/<slug:name>/remove/", foreign.remove, name="foreign_source_remove"),
    path("events/<int:pk>/retry/", fleet.event_retry, name="event_retry"),
    path("refused/<int:pk>/admit/", views.admit, name="admit"),
]
