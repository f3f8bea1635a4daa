-- Under which trace each maintenance of a node goes, and the steps that its spans are written from, so
-- that whoever goes on with a maintenance can tell all of it.
CREATE TABLE maintenance_trace (
    maintenance uuid NOT NULL,
    name text NOT NULL,
    node text NOT NULL,
    trace text NOT NULL,
    began_at timestamptz NOT NULL,
    CONSTRAINT maintenance_trace_pkey PRIMARY KEY (maintenance)
);

COMMENT ON TABLE maintenance_trace IS 'Traces of the maintenances of nodes. Forgotten some time after the maintenance.';
COMMENT ON COLUMN maintenance_trace.maintenance IS 'UID of the NodeMaintenance.';
COMMENT ON COLUMN maintenance_trace.name IS 'Name of the NodeMaintenance.';
COMMENT ON COLUMN maintenance_trace.node IS 'Node that is to be emptied.';
COMMENT ON COLUMN maintenance_trace.trace IS 'W3C traceparent of the request; may be empty.';
COMMENT ON COLUMN maintenance_trace.began_at IS 'When it was asked for.';

CREATE TABLE maintenance_step (
    maintenance uuid NOT NULL,
    seq bigint NOT NULL,
    step text NOT NULL,
    began_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL,
    links text[] NOT NULL,
    failure text,
    CONSTRAINT maintenance_step_pkey PRIMARY KEY (maintenance, seq),
    CONSTRAINT maintenance_step_traced FOREIGN KEY (maintenance)
    REFERENCES maintenance_trace (maintenance) ON DELETE CASCADE
);

COMMENT ON TABLE maintenance_step IS 'Steps of the maintenances that are over. Forgotten with the trace.';
COMMENT ON COLUMN maintenance_step.maintenance IS 'UID of the NodeMaintenance.';
COMMENT ON COLUMN maintenance_step.seq IS 'Place among the steps of the maintenance, from 1.';
COMMENT ON COLUMN maintenance_step.step IS 'What was done.';
COMMENT ON COLUMN maintenance_step.began_at IS 'When it began.';
COMMENT ON COLUMN maintenance_step.ended_at IS 'When it ended.';
COMMENT ON COLUMN maintenance_step.links IS 'W3C traceparents of the migrations that it asked for.';
COMMENT ON COLUMN maintenance_step.failure IS 'Why it failed; null when it did not.';

-- Not by service_rights_grant(): that would open the audit log to all services.
CREATE FUNCTION maintenance_trace_rights_grant() RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'godwit_gateway') THEN
        GRANT INSERT ON maintenance_trace TO godwit_gateway;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'godwit_maintenance') THEN
        GRANT SELECT, INSERT, DELETE ON maintenance_trace TO godwit_maintenance;
        GRANT SELECT, INSERT ON maintenance_step TO godwit_maintenance;
    END IF;
END
$$;

COMMENT ON FUNCTION maintenance_trace_rights_grant() IS 'Lets the services whose roles exist keep the traces of maintenances.';

SELECT maintenance_trace_rights_grant();
SELECT auditor_rights_grant();
