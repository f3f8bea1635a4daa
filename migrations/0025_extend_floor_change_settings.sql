-- How far nodes are overcommitted is a setting of the cluster: whoever keeps the floor in memory has
-- to hear of it in the order of all other changes.
ALTER TABLE floor_change
DROP CONSTRAINT floor_change_one,
ADD CONSTRAINT floor_change_at_most_one CHECK (node IS NULL OR machine IS NULL);

COMMENT ON TABLE floor_change IS 'Which nodes, and which machines that hold room, are to be looked at anew; one that names neither is of the cluster''s settings.';
COMMENT ON COLUMN floor_change.node IS 'A node that came, went or is different; null for anything else.';
COMMENT ON COLUMN floor_change.machine IS 'A machine that is different or holds other room; null for anything else.';

CREATE FUNCTION floor_log_settings() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
AS $$
BEGIN
    INSERT INTO floor_change DEFAULT VALUES;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION floor_log_settings() IS 'Notes that the cluster''s settings changed.';

CREATE TRIGGER floor_log_settings_come AFTER INSERT ON object
FOR EACH ROW WHEN (
    NEW.resource = 'kubevirts.kubevirt.io'
    OR (NEW.resource = 'configmaps' AND NEW.name = 'kubevirt-config')
) EXECUTE FUNCTION floor_log_settings();

CREATE TRIGGER floor_log_settings_go AFTER DELETE ON object
FOR EACH ROW WHEN (
    OLD.resource = 'kubevirts.kubevirt.io'
    OR (OLD.resource = 'configmaps' AND OLD.name = 'kubevirt-config')
) EXECUTE FUNCTION floor_log_settings();

CREATE TRIGGER floor_log_settings_change AFTER UPDATE ON object
FOR EACH ROW WHEN (
    NEW.body IS DISTINCT FROM OLD.body
    AND (
        NEW.resource = 'kubevirts.kubevirt.io'
        OR (NEW.resource = 'configmaps' AND NEW.name = 'kubevirt-config')
    )
) EXECUTE FUNCTION floor_log_settings();
