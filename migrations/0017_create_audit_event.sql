CREATE TABLE audit_event (
    uid uuid NOT NULL,
    received_at timestamptz NOT NULL,
    completed_at timestamptz NOT NULL,
    audit_id text NOT NULL,
    username text NOT NULL,
    impersonated text NOT NULL,
    verb text NOT NULL,
    api_group text NOT NULL,
    resource text NOT NULL,
    subresource text NOT NULL,
    namespace text NOT NULL,
    name text NOT NULL,
    decision text NOT NULL,
    code integer,
    event jsonb NOT NULL,
    CONSTRAINT audit_event_pkey PRIMARY KEY (received_at, uid),
    CONSTRAINT audit_event_decision_known CHECK (decision IN ('', 'allow', 'forbid'))
) PARTITION BY RANGE (received_at);

COMMENT ON TABLE audit_event IS
'Changes that were asked of the API, and requests that it refused. Append-only, a partition a month; the owner forgets old ones by audit_forget().';
COMMENT ON COLUMN audit_event.uid IS 'Identifies the record.';
COMMENT ON COLUMN audit_event.received_at IS 'When the request came, by the gateway''s clock.';
COMMENT ON COLUMN audit_event.completed_at IS 'When it was answered.';
COMMENT ON COLUMN audit_event.audit_id IS 'The request''s Audit-Id. A client may choose it, also twice.';
COMMENT ON COLUMN audit_event.username IS 'Who sent it; empty when that is not known.';
COMMENT ON COLUMN audit_event.impersonated IS 'As whom it was carried out, if not as who sent it.';
COMMENT ON COLUMN audit_event.verb IS 'What was asked for.';
COMMENT ON COLUMN audit_event.api_group IS 'Group of the resource; empty for core.';
COMMENT ON COLUMN audit_event.resource IS 'Plural; empty for a path that is no resource.';
COMMENT ON COLUMN audit_event.subresource IS 'Subresource, if any.';
COMMENT ON COLUMN audit_event.namespace IS 'Namespace, if any.';
COMMENT ON COLUMN audit_event.name IS 'Name; empty for collections, and when it was refused before the name was known.';
COMMENT ON COLUMN audit_event.decision IS 'allow or forbid; empty when it did not get as far as authorization.';
COMMENT ON COLUMN audit_event.code IS 'HTTP status of the answer; null when the client was gone before it.';
COMMENT ON COLUMN audit_event.event IS 'The whole record, an audit.k8s.io/v1 Event of the level Metadata.';

CREATE INDEX audit_event_by_user ON audit_event (username, received_at);
CREATE INDEX audit_event_by_object ON audit_event (resource, namespace, name, received_at);

-- Takes what a clock that is far off says.
CREATE TABLE audit_event_other PARTITION OF audit_event DEFAULT;

CREATE FUNCTION audit_event_refuse() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only'
        USING ERRCODE = 'restrict_violation', CONSTRAINT = 'audit_event_append_only';
END
$$;

COMMENT ON FUNCTION audit_event_refuse() IS 'Refuses to change the audit log, whoever asks.';

-- For each row, so that the partitions have it too.
CREATE TRIGGER audit_event_append_only
BEFORE UPDATE OR DELETE ON audit_event
FOR EACH ROW EXECUTE FUNCTION audit_event_refuse();

CREATE TRIGGER audit_event_no_truncate
BEFORE TRUNCATE ON audit_event
FOR EACH STATEMENT EXECUTE FUNCTION audit_event_refuse();

CREATE TRIGGER audit_event_no_truncate
BEFORE TRUNCATE ON audit_event_other
FOR EACH STATEMENT EXECUTE FUNCTION audit_event_refuse();

CREATE FUNCTION audit_partitions_make() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
AS $$
DECLARE
    month timestamp;
    part text;
BEGIN
    FOR ahead IN 0..1 LOOP
        month := date_trunc('month', clock_timestamp() AT TIME ZONE 'UTC') + make_interval(months => ahead);
        part := 'audit_event_' || to_char(month, 'YYYY_MM');
        CONTINUE WHEN to_regclass(part) IS NOT NULL;
        -- Replicas take turns.
        PERFORM pg_advisory_xact_lock(hashtext('audit_partitions_make'));
        CONTINUE WHEN to_regclass(part) IS NOT NULL;
        BEGIN
            EXECUTE format(
                'CREATE TABLE %I PARTITION OF audit_event FOR VALUES FROM (%L) TO (%L)',
                part, month AT TIME ZONE 'UTC', (month + interval '1 month') AT TIME ZONE 'UTC'
            );
            EXECUTE format(
                'CREATE TRIGGER audit_event_no_truncate BEFORE TRUNCATE ON %I '
                'FOR EACH STATEMENT EXECUTE FUNCTION audit_event_refuse()', part
            );
        EXCEPTION
            -- Records of that month are among the others: they stay there, and so do those to come.
            WHEN check_violation THEN NULL;
        END;
    END LOOP;
END
$$;

COMMENT ON FUNCTION audit_partitions_make() IS 'Makes the partitions of this month and the next.';

CREATE FUNCTION audit_forget(before timestamptz) RETURNS integer
LANGUAGE plpgsql
AS $$
DECLARE
    part text;
    forgotten integer := 0;
BEGIN
    FOR part IN
        SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = 'audit_event'::regclass AND relname ~ '^audit_event_\d{4}_\d{2}$'
        ORDER BY relname
    LOOP
        CONTINUE WHEN (to_date(right(part, 7), 'YYYY_MM') + interval '1 month') AT TIME ZONE 'UTC' > before;
        EXECUTE format('DROP TABLE %I', part);
        forgotten := forgotten + 1;
    END LOOP;
    RETURN forgotten;
END
$$;

COMMENT ON FUNCTION audit_forget(timestamptz) IS
'Drops the months of the audit log that ended before. For the owner of the tables: no service may.';

CREATE FUNCTION audit_rights_grant() RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'godwit_gateway') THEN
        GRANT INSERT ON audit_event TO godwit_gateway;
    END IF;
END
$$;

COMMENT ON FUNCTION audit_rights_grant() IS 'Grants the gateway, if its role exists, the right to append.';

SELECT audit_partitions_make();
SELECT audit_rights_grant();
SELECT auditor_rights_grant();
