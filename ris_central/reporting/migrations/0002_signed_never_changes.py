"""The database itself keeps signed reports and addenda as they were signed."""

from django.db import migrations

FORWARD = """
CREATE FUNCTION reporting_keep_signed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.status IN ('final', 'appended') THEN
        IF TG_OP = 'DELETE' THEN
            RAISE EXCEPTION 'a signed report is never deleted' USING ERRCODE = 'check_violation';
        END IF;
        IF ROW(NEW.study_id, NEW.author_id, NEW.findings, NEW.conclusion, NEW.version, NEW.signed_at, NEW.signed_by_id,
               NEW.content_sha256)
           IS DISTINCT FROM
           ROW(OLD.study_id, OLD.author_id, OLD.findings, OLD.conclusion, OLD.version, OLD.signed_at, OLD.signed_by_id,
               OLD.content_sha256)
           OR NEW.status NOT IN ('final', 'appended') OR (OLD.status = 'appended' AND NEW.status = 'final') THEN
            RAISE EXCEPTION 'a signed report never changes' USING ERRCODE = 'check_violation';
        END IF;
    END IF;
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER reporting_keep_signed BEFORE UPDATE OR DELETE ON reporting_report
    FOR EACH ROW EXECUTE FUNCTION reporting_keep_signed();

CREATE FUNCTION reporting_keep_addendum() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a signed addendum never changes' USING ERRCODE = 'check_violation';
END $$;
CREATE TRIGGER reporting_keep_addendum BEFORE UPDATE OR DELETE ON reporting_addendum
    FOR EACH ROW EXECUTE FUNCTION reporting_keep_addendum();
"""

BACKWARD = """
DROP TRIGGER reporting_keep_addendum ON reporting_addendum;
DROP FUNCTION reporting_keep_addendum();
DROP TRIGGER reporting_keep_signed ON reporting_report;
DROP FUNCTION reporting_keep_signed();
"""


class Migration(migrations.Migration):
    dependencies = [("reporting", "0001_initial")]

    operations = [migrations.RunSQL(FORWARD, BACKWARD)]
