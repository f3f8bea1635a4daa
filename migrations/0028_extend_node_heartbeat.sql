-- A heartbeat that says nothing new is no change of the node: it is written past the revision's lock,
-- and the log of changes of nodes hears nothing of it.
DROP TRIGGER floor_log ON node;

CREATE TRIGGER floor_log AFTER INSERT OR DELETE ON node
FOR EACH ROW EXECUTE FUNCTION floor_log_node();

CREATE TRIGGER floor_log_change AFTER UPDATE ON node
FOR EACH ROW WHEN (to_jsonb(NEW) - 'heartbeat_at' IS DISTINCT FROM to_jsonb(OLD) - 'heartbeat_at')
EXECUTE FUNCTION floor_log_node();

COMMENT ON COLUMN node.heartbeat_at IS 'When its state was last known to be so. Heartbeats without news are written now and then.';
