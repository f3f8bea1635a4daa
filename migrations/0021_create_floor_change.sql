-- What changed of the nodes and of what is held on them, so that who keeps that in memory reads only
-- what is new. Its order is that of the commits, since all that is told of here is written by one
-- transaction at a time: the one that has the revision's lock.
CREATE TABLE floor_change (
    seq bigint GENERATED ALWAYS AS IDENTITY,
    node text,
    machine uuid,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT floor_change_pkey PRIMARY KEY (seq),
    CONSTRAINT floor_change_one CHECK ((node IS NULL) <> (machine IS NULL))
);

COMMENT ON TABLE floor_change IS 'Which nodes, and which machines that hold room, are to be looked at anew.';
COMMENT ON COLUMN floor_change.seq IS 'Place in the order of all changes. May have gaps.';
COMMENT ON COLUMN floor_change.node IS 'A node that came, went or is different; null for a machine.';
COMMENT ON COLUMN floor_change.machine IS 'A machine that is different or holds other room; null for a node.';
COMMENT ON COLUMN floor_change.changed_at IS 'When it was written: tells it from another log of the same length.';

CREATE TABLE floor_horizon (
    singleton boolean NOT NULL DEFAULT true,
    seq bigint NOT NULL,
    CONSTRAINT floor_horizon_pkey PRIMARY KEY (singleton),
    CONSTRAINT floor_horizon_one_row CHECK (singleton)
);

COMMENT ON TABLE floor_horizon IS 'One row: how far floor_change is pruned.';
COMMENT ON COLUMN floor_horizon.singleton IS 'Always true, so that there is one row.';
COMMENT ON COLUMN floor_horizon.seq IS 'Newest change that may be pruned: reading on from an older one has gaps.';

INSERT INTO floor_horizon (seq) VALUES (0);

-- With the owner's rights, so that no service can write the log but by changing what it tells of.
CREATE FUNCTION floor_log_node() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
AS $$
BEGIN
    INSERT INTO floor_change (node) VALUES (COALESCE(NEW.name, OLD.name));
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION floor_log_node() IS 'Notes the node of a row that has it as its name.';

CREATE FUNCTION floor_log_machine() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
AS $$
BEGIN
    INSERT INTO floor_change (machine) VALUES (COALESCE(NEW.machine, OLD.machine));
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION floor_log_machine() IS 'Notes the machine of a row that names it.';

CREATE FUNCTION floor_log_uid() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
AS $$
BEGIN
    INSERT INTO floor_change (machine) VALUES (COALESCE(NEW.uid, OLD.uid));
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION floor_log_uid() IS 'Notes the machine of a row that has it as its UID.';

CREATE TRIGGER floor_log AFTER INSERT OR UPDATE OR DELETE ON node
FOR EACH ROW EXECUTE FUNCTION floor_log_node();

CREATE TRIGGER floor_log AFTER INSERT OR UPDATE OR DELETE ON reservation
FOR EACH ROW EXECUTE FUNCTION floor_log_machine();

CREATE TRIGGER floor_log AFTER UPDATE OF machine ON instance
FOR EACH ROW WHEN (NEW.machine IS DISTINCT FROM OLD.machine) EXECUTE FUNCTION floor_log_uid();

CREATE TRIGGER floor_log_come AFTER INSERT ON object
FOR EACH ROW WHEN (NEW.resource = 'nodes') EXECUTE FUNCTION floor_log_node();

CREATE TRIGGER floor_log_go AFTER DELETE ON object
FOR EACH ROW WHEN (OLD.resource = 'nodes') EXECUTE FUNCTION floor_log_node();

CREATE TRIGGER floor_log_change AFTER UPDATE ON object
FOR EACH ROW WHEN (NEW.resource = 'nodes') EXECUTE FUNCTION floor_log_node();

-- Labels say who is near whom. Those that name a machine's nodes change with each migration, and are
-- no part of that.
CREATE TRIGGER floor_log_labels AFTER UPDATE ON object
FOR EACH ROW WHEN (
    NEW.resource = 'virtualmachineinstances.kubevirt.io'
    AND (
        NEW.body IS DISTINCT FROM OLD.body
        OR (
            (NEW.metadata -> 'labels') - '{kubevirt.io/nodeName,kubevirt.io/migrationTargetNodeName}'::text[]
            IS DISTINCT FROM
            (OLD.metadata -> 'labels') - '{kubevirt.io/nodeName,kubevirt.io/migrationTargetNodeName}'::text[]
        )
    )
) EXECUTE FUNCTION floor_log_uid();

-- Forgets all changes but the newest.
CREATE FUNCTION floor_changes_prune(kept bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
AS $$
BEGIN
    UPDATE floor_horizon
    SET seq = GREATEST(seq, (SELECT COALESCE(max(floor_change.seq), 0) FROM floor_change) - kept);
    DELETE FROM floor_change WHERE seq <= (SELECT seq FROM floor_horizon);
END
$$;

COMMENT ON FUNCTION floor_changes_prune(bigint) IS 'Forgets all changes of nodes and of room but the newest.';

-- Not by service_rights_grant(): that would open the audit log to all services.
CREATE FUNCTION floor_rights_grant() RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    service text;
BEGIN
    FOR service IN
        SELECT rolname FROM pg_roles
        WHERE rolname IN ('godwit_gateway', 'godwit_scheduler', 'godwit_coordinator', 'godwit_maintenance')
    LOOP
        EXECUTE format('GRANT SELECT ON floor_change, floor_horizon TO %I', service);
    END LOOP;
END
$$;

COMMENT ON FUNCTION floor_rights_grant() IS 'Lets each service role that exists read the changes.';

SELECT floor_rights_grant();
SELECT auditor_rights_grant();
