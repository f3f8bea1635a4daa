-- $1 nodes, $2 machines; both null for all open jobs
SELECT
    migration.id, migration.namespace, migration.name, machine, vmi_namespace, vmi_name, state,
    source, target, target_address, priority, created_at, state_since, finished_at, epoch, owner,
    cancel, failure, trace, history, switch_allowed,
    object.uid, object.resource, object.metadata, object.body, object.status, object.revision
FROM migration
LEFT JOIN object ON object.uid = migration.id
WHERE
    state NOT IN ('Succeeded', 'Failed')
    AND (
        ($1::text[] IS NULL AND $2::uuid[] IS NULL)
        OR source = ANY($1) OR target = ANY($1) OR machine = ANY($2)
        OR machine IN (SELECT instance.uid FROM instance WHERE node = ANY($1))
    )
ORDER BY priority DESC, created_at, migration.id
