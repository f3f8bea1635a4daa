-- Who checks the invariants may read everything and write nothing. Logs in as a member of the role.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'godwit_auditor') THEN
        CREATE ROLE godwit_auditor NOLOGIN;
    END IF;
EXCEPTION
    -- Roles belong to the cluster: another database's migration made it at this moment.
    WHEN duplicate_object OR unique_violation THEN NULL;
    WHEN insufficient_privilege THEN
        RAISE NOTICE 'role godwit_auditor is missing: create it and call auditor_rights_grant()';
END
$$;

CREATE FUNCTION auditor_rights_grant() RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'godwit_auditor') THEN
        EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA %I TO godwit_auditor', current_schema());
        -- Tables of later migrations.
        EXECUTE format(
            'ALTER DEFAULT PRIVILEGES IN SCHEMA %I GRANT SELECT ON TABLES TO godwit_auditor',
            current_schema()
        );
    END IF;
END
$$;

COMMENT ON FUNCTION auditor_rights_grant() IS 'Grants the auditor, if the role exists, the right to read everything.';

SELECT auditor_rights_grant();
