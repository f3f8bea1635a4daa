-- $1 owner, $2 time to live
-- A lease that ends much later than any can was given before the clock was put back.
WITH next AS (
    SELECT id
    FROM migration
    WHERE
        state NOT IN ('Succeeded', 'Failed')
        AND (
            lease_expires_at IS NULL
            OR lease_expires_at < clock_timestamp()
            OR lease_expires_at > clock_timestamp() + $2 * 10
        )
    ORDER BY priority DESC, created_at, id
    LIMIT 1
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE migration
SET owner = $1, epoch = migration.epoch + 1, lease_expires_at = clock_timestamp() + $2
FROM next
WHERE migration.id = next.id
RETURNING
    migration.id, namespace, name, machine, vmi_namespace, vmi_name, state, source, target,
    target_address, priority, created_at, state_since, finished_at, epoch, owner, cancel, failure,
    trace, history, switch_allowed
