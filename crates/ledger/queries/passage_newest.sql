-- $1 oldest age, $2 how many
SELECT
    id, machine, source, target, history, finished_at,
    (
        SELECT max(at) FROM migration_transition
        WHERE migration_id = migration.id AND to_state = 'Reserved'
    ) AS reserved_at
FROM migration
WHERE state = 'Succeeded' AND finished_at > clock_timestamp() - $1
ORDER BY finished_at DESC, id DESC
LIMIT $2
