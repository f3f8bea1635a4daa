-- $1 uid, $2 resource, $3 namespace, $4 name, $5 metadata, $6 body, $7 status, $8 machine,
-- $9 namespace of instance, $10 name of instance, $11 priority, $12 trace
-- One row: the job in progress, and the revision of the object when it was created.
WITH busy AS (
    SELECT id FROM migration WHERE machine = $8 AND state NOT IN ('Succeeded', 'Failed')
),
written AS (
    INSERT INTO object (uid, resource, namespace, name, metadata, body, status)
    SELECT $1::uuid, $2, $3, $4, $5, $6, $7
    WHERE NOT EXISTS (SELECT FROM busy)
    ON CONFLICT DO NOTHING
    RETURNING uid, revision
),
job AS (
    INSERT INTO migration (
        id, namespace, name, machine, vmi_namespace, vmi_name, priority, trace, source
    )
    SELECT uid, $3, $4, $8, $9, $10, $11, $12, (SELECT node FROM instance WHERE uid = $8)
    FROM written
    RETURNING id, created_at
),
recorded AS (
    INSERT INTO migration_transition (migration_id, seq, to_state, epoch, actor, reason, at)
    SELECT id, 1, 'Pending', 0, 'request', 'requested', created_at
    FROM job
)
SELECT (SELECT id FROM busy) AS busy, (SELECT revision FROM written) AS revision
