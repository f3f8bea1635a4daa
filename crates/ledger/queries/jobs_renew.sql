-- $1 jobs, $2 their epochs, $3 owner, $4 time to live. Answers the jobs that are lost.
-- A job whose row somebody writes at this moment is left for the next time: one that hangs must not
-- hold up the others.
WITH mine AS (
    SELECT id, epoch FROM unnest($1::uuid[], $2::bigint[]) AS mine (id, epoch)
),
free AS (
    SELECT migration.id
    FROM migration
    JOIN mine ON mine.id = migration.id
    WHERE migration.epoch = mine.epoch AND migration.owner = $3
    FOR NO KEY UPDATE OF migration SKIP LOCKED
),
renewed AS (
    UPDATE migration
    SET lease_expires_at = clock_timestamp() + $4
    FROM free
    WHERE migration.id = free.id AND set_config('synchronous_commit', 'off', true) = 'off'
)
SELECT id
FROM mine
WHERE NOT EXISTS (
    SELECT FROM migration
    WHERE migration.id = mine.id AND migration.epoch = mine.epoch AND migration.owner = $3
)
