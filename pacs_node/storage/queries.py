"""What the node's storage page shows. The staff of the site see it; it names no patient."""

from dataclasses import dataclass, field

from django.db.models import Count, F, Q, Sum

from pacs_node.config import NodeConfig, config
from pacs_node.storage.models import Finding, Holding, Recompression, StudyRetention, VerifyRound
from pacs_node.storage.stores import storage
from pacs_node.study_index.models import Instance

_MOST = 200


@dataclass(frozen=True)
class StorageState:
    """The disk, what verify found, where studies went, and how much recompression spared. Sizes in bytes."""

    total: int
    free: int
    refuses: bool
    refuse_below: int
    tier_below: int
    round: VerifyRound | None
    open_findings: list[Finding]
    closed_findings: list[Finding]
    open_count: int
    away: int
    at_institution: int
    pinned: list[StudyRetention]
    recompressed: int
    spared: int
    left_alone: list[tuple[str, int]] = field(default_factory=list)
    variants: list[Instance] = field(default_factory=list)
    """Other contents that came under a used SOP Instance UID, newest first."""
    node: NodeConfig = field(default_factory=config)


def storage_state() -> StorageState:
    """The state now."""
    store = storage()
    total, free = store.total_bytes(), store.free_bytes()
    found = Finding.objects.filter(resolved_at=None).order_by("-last_at")
    recompressed = Recompression.objects.filter(left_alone="").aggregate(
        count=Count("pk"), spared=Sum(F("original_size") - F("instance__size"))
    )
    reasons = Recompression.objects.exclude(left_alone="").values_list("left_alone").annotate(count=Count("pk"))
    held = Q(instance__released_at=None)
    return StorageState(
        total=total,
        free=free,
        refuses=store.watermarks.refuses(total, free),
        refuse_below=store.watermarks.refuse.of(total),
        tier_below=store.watermarks.tier.of(total),
        round=VerifyRound.objects.filter(started_at__isnull=False).first(),
        open_findings=list(found[:_MOST]),
        closed_findings=list(Finding.objects.filter(resolved_at__isnull=False).order_by("-resolved_at")[:50]),
        open_count=found.count(),
        away=Holding.objects.filter(held, away_at__isnull=False).count(),
        at_institution=Holding.objects.filter(held, institution_verified_at__isnull=False).count(),
        pinned=list(StudyRetention.objects.filter(pinned=True).order_by("study_instance_uid")[:_MOST]),
        recompressed=recompressed["count"],
        spared=recompressed["spared"] or 0,
        left_alone=list(reasons.order_by("-count")[:20]),
        variants=list(
            Instance.objects.filter(is_variant=True, released_at=None)
            .select_related("series__study")
            .order_by("-created_at")[:50]
        ),
    )
