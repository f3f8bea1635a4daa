-- Forecasts are learned from what came to a good end, in the order of the ends.
CREATE INDEX migration_succeeded ON migration (finished_at, id) WHERE state = 'Succeeded';

COMMENT ON INDEX migration_succeeded IS 'Migrations that came to a good end, oldest end first.';
