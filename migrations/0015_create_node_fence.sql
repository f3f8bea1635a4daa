CREATE TABLE node_fence (
    uid uuid NOT NULL,
    node text NOT NULL,
    boot_id text NOT NULL,
    statement text NOT NULL,
    "by" text NOT NULL,
    at timestamptz NOT NULL,
    CONSTRAINT node_fence_pkey PRIMARY KEY (uid),
    CONSTRAINT node_fence_stated CHECK (statement <> '')
);

COMMENT ON TABLE node_fence IS 'Nodes that were declared dead. Append-only, kept for ever.';
COMMENT ON COLUMN node_fence.uid IS 'UID of the NodeFence.';
COMMENT ON COLUMN node_fence.node IS 'Which node.';
COMMENT ON COLUMN node_fence.boot_id IS 'Boot that ended; empty when nobody said which.';
COMMENT ON COLUMN node_fence.statement IS 'What was done to be sure that it is dead.';
COMMENT ON COLUMN node_fence."by" IS 'Who says so.';
COMMENT ON COLUMN node_fence.at IS 'When it was recorded.';

CREATE INDEX node_fence_by_node ON node_fence (node, at);

CREATE TABLE instance_release (
    uid uuid NOT NULL,
    epoch bigint NOT NULL,
    node text,
    at timestamptz NOT NULL,
    CONSTRAINT instance_release_pkey PRIMARY KEY (uid, epoch)
);

COMMENT ON TABLE instance_release IS 'Machines that were taken from their hosts by a fence. Append-only, kept for ever.';
COMMENT ON COLUMN instance_release.uid IS 'UID of the VirtualMachineInstance, which may be gone by now.';
COMMENT ON COLUMN instance_release.epoch IS 'First epoch after the release: a process under an older one must end.';
COMMENT ON COLUMN instance_release.node IS 'Where it was.';
COMMENT ON COLUMN instance_release.at IS 'When.';

CREATE FUNCTION fence_history_refuse() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION 'the history of fences is append-only'
        USING ERRCODE = 'restrict_violation', CONSTRAINT = 'fence_history_append_only';
END
$$;

COMMENT ON FUNCTION fence_history_refuse() IS 'Refuses to change history, whoever asks.';

CREATE TRIGGER node_fence_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON node_fence
FOR EACH STATEMENT EXECUTE FUNCTION fence_history_refuse();

CREATE TRIGGER instance_release_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON instance_release
FOR EACH STATEMENT EXECUTE FUNCTION fence_history_refuse();

CREATE FUNCTION fence_rights_grant() RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    service text;
    thing text;
BEGIN
    FOR service, thing IN
        SELECT needed.service, needed.thing
        FROM (VALUES
            ('godwit_scheduler', 'node_fence'),
            ('godwit_scheduler', 'instance_release'),
            ('godwit_coordinator', 'instance_release')
        ) AS needed (service, thing)
        JOIN pg_roles ON pg_roles.rolname = needed.service
    LOOP
        EXECUTE format('GRANT INSERT ON %I TO %I', thing, service);
    END LOOP;
END
$$;

COMMENT ON FUNCTION fence_rights_grant() IS 'Grants each service role that exists its rights over fences.';

-- The first also grants the right to read tables that are new.
SELECT service_rights_grant();
SELECT fence_rights_grant();
SELECT auditor_rights_grant();
