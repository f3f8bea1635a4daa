-- $1 and $2 end and id of the last one that was read, $3 how many
SELECT
    id, machine, source, target, history, finished_at,
    (
        SELECT max(at) FROM migration_transition
        WHERE migration_id = migration.id AND to_state = 'Reserved'
    ) AS reserved_at
FROM migration
WHERE state = 'Succeeded' AND (finished_at, id) > ($1, $2)
ORDER BY finished_at, id
LIMIT $3
