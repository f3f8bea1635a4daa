-- $1 namespace, or null for all; $2 how many
SELECT
    id, namespace, name, machine, vmi_namespace, vmi_name, state, source, target,
    target_address, priority, created_at, state_since, finished_at, epoch, owner, cancel, failure,
    trace, history, switch_allowed
FROM (
    SELECT DISTINCT ON (namespace, name) *
    FROM migration
    WHERE namespace = COALESCE($1, namespace)
    ORDER BY namespace, name, created_at DESC
) AS newest
ORDER BY created_at DESC, id
LIMIT $2
