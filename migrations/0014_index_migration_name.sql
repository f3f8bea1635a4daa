-- Histories are asked for by name, and of many migrations of one name for the newest.
CREATE INDEX migration_by_name ON migration (namespace, name, created_at DESC);

COMMENT ON INDEX migration_by_name IS 'Migrations of one name, newest first.';
