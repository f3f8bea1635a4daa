-- $1 revision, $2 when its change was made if that is known, $3 most rows.
-- One row with a null revision when there is no change after it.
-- One statement, so that everything is of one moment. Sub-selects, because a join of tables that
-- the planner believes to be large would be compiled.
SELECT
    log.horizon,
    log.newest,
    log.newest >= $1 AND (
        $2::timestamptz IS NULL
        OR $1 <= log.horizon
        OR EXISTS (SELECT FROM change WHERE revision = $1 AND changed_at = $2)
    ) AS known,
    change.revision,
    change.kind,
    change.resource,
    change.namespace,
    change.name,
    change.uid,
    change.metadata,
    change.body,
    change.status,
    change.changed_at
FROM (
    SELECT
        (SELECT revision FROM change_horizon) AS horizon,
        (SELECT value FROM revision_counter) AS newest
) AS log
LEFT JOIN LATERAL (
    SELECT revision, kind, resource, namespace, name, uid, metadata, body, status, changed_at
    FROM change
    WHERE revision > $1 AND $1 >= log.horizon
    ORDER BY revision
    LIMIT $3
) AS change ON true
ORDER BY change.revision
