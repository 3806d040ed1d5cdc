"""The database itself refuses to change or delete what was recorded; only the sealer may fill the chain, once."""

from django.db import migrations

FORBID = """
CREATE FUNCTION audit_event_is_immutable() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'UPDATE' THEN
        RAISE EXCEPTION 'The audit trail cannot be deleted.';
    END IF;
    IF OLD.sequence IS NOT NULL
        OR (NEW.id, NEW.occurred_at, NEW.actor_id, NEW.actor_name, NEW.action, NEW.outcome, NEW.entity_type,
            NEW.entity_id, NEW.patient_key, NEW.address, NEW.detail)
        IS DISTINCT FROM
           (OLD.id, OLD.occurred_at, OLD.actor_id, OLD.actor_name, OLD.action, OLD.outcome, OLD.entity_type,
            OLD.entity_id, OLD.patient_key, OLD.address, OLD.detail)
    THEN
        RAISE EXCEPTION 'The audit trail cannot be changed.';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER audit_event_immutable BEFORE UPDATE OR DELETE ON audit_auditevent
    FOR EACH ROW EXECUTE FUNCTION audit_event_is_immutable();
CREATE TRIGGER audit_event_not_emptied BEFORE TRUNCATE ON audit_auditevent
    FOR EACH STATEMENT EXECUTE FUNCTION audit_event_is_immutable();
"""
ALLOW = """
DROP TRIGGER audit_event_not_emptied ON audit_auditevent;
DROP TRIGGER audit_event_immutable ON audit_auditevent;
DROP FUNCTION audit_event_is_immutable();
"""


class Migration(migrations.Migration):
    dependencies = [("audit", "0001_initial")]
    operations = [migrations.RunSQL(FORBID, ALLOW)]
