"""The database itself keeps signed opinions as they were signed."""

from django.db import migrations

FORWARD = """
CREATE FUNCTION consults_keep_signed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.status = 'completed' THEN
        IF TG_OP = 'DELETE' OR ROW(NEW.*) IS DISTINCT FROM ROW(OLD.*) THEN
            RAISE EXCEPTION 'a signed opinion never changes' USING ERRCODE = 'check_violation';
        END IF;
    END IF;
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER consults_keep_signed BEFORE UPDATE OR DELETE ON consults_consult
    FOR EACH ROW EXECUTE FUNCTION consults_keep_signed();
"""

BACKWARD = """
DROP TRIGGER consults_keep_signed ON consults_consult;
DROP FUNCTION consults_keep_signed();
"""


class Migration(migrations.Migration):
    dependencies = [("consults", "0001_initial")]

    operations = [migrations.RunSQL(FORWARD, BACKWARD)]
