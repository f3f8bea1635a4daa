-- A target on which a machine's migration failed is avoided for a while.
CREATE INDEX migration_failed ON migration (machine, finished_at) WHERE state = 'Failed';

COMMENT ON INDEX migration_failed IS 'Migrations that failed, by machine.';
