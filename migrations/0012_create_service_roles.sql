-- A role for each service, with just its rights. A service logs in as a member of its role.
DO $$
DECLARE
    service text;
BEGIN
    FOREACH service IN ARRAY ARRAY[
        'godwit_gateway', 'godwit_scheduler', 'godwit_coordinator', 'godwit_maintenance'
    ]
    LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = service) THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN', service);
            END IF;
        EXCEPTION
            -- Roles belong to the cluster: another database's migration made it at this moment.
            WHEN duplicate_object OR unique_violation THEN NULL;
            WHEN insufficient_privilege THEN
                RAISE NOTICE 'role % is missing: create it and call service_rights_grant()', service;
        END;
    END LOOP;
END
$$;

CREATE FUNCTION service_rights_grant() RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    service text;
    rights text;
    thing text;
BEGIN
    FOR service, rights, thing IN
        SELECT role.name, needed.rights, needed.thing
        FROM (VALUES
            ('godwit_gateway'), ('godwit_scheduler'), ('godwit_coordinator'), ('godwit_maintenance')
        ) AS role (name)
        JOIN (VALUES
            ('*', 'SELECT', 'ALL TABLES IN SCHEMA ' || quote_ident(current_schema())),
            ('*', 'INSERT, UPDATE, DELETE', 'object'),
            ('*', 'INSERT, UPDATE, DELETE', 'event'),
            ('*', 'UPDATE (cancel)', 'migration'),
            ('godwit_gateway', 'INSERT', 'migration'),
            ('godwit_gateway', 'INSERT', 'migration_transition'),
            ('godwit_gateway', 'DELETE', 'change'),
            ('godwit_gateway', 'UPDATE', 'change_horizon'),
            ('godwit_scheduler', 'INSERT, UPDATE, DELETE', 'node'),
            ('godwit_scheduler', 'INSERT, UPDATE, DELETE', 'instance'),
            ('godwit_scheduler', 'INSERT, UPDATE, DELETE', 'reservation'),
            ('godwit_coordinator', 'UPDATE', 'migration'),
            ('godwit_coordinator', 'INSERT', 'migration_transition'),
            ('godwit_coordinator', 'UPDATE', 'instance'),
            ('godwit_coordinator', 'UPDATE, DELETE', 'reservation'),
            ('godwit_maintenance', 'INSERT', 'migration'),
            ('godwit_maintenance', 'INSERT', 'migration_transition'),
            ('godwit_maintenance', 'DELETE', 'change'),
            ('godwit_maintenance', 'UPDATE', 'change_horizon')
        ) AS needed (service, rights, thing) ON needed.service IN ('*', role.name)
        JOIN pg_roles ON pg_roles.rolname = role.name
    LOOP
        EXECUTE format('GRANT %s ON %s TO %I', rights, thing, service);
    END LOOP;
END
$$;

COMMENT ON FUNCTION service_rights_grant() IS 'Grants each service role that exists its rights.';

SELECT service_rights_grant();
