-- Who keeps machines in memory has to hear of all that changes of them: also of those that hold no
-- room, and of their state, node and epoch.
DROP TRIGGER floor_log ON instance;

CREATE TRIGGER floor_log AFTER INSERT OR DELETE ON instance
FOR EACH ROW EXECUTE FUNCTION floor_log_uid();

CREATE TRIGGER floor_log_change AFTER UPDATE ON instance
FOR EACH ROW WHEN (NEW IS DISTINCT FROM OLD) EXECUTE FUNCTION floor_log_uid();
