-- $1 revision, $2 most rows. One row with a null revision when there is no change.
-- One statement, so that the horizon and the changes are of one moment.
SELECT
    horizon.revision AS horizon,
    change.revision,
    change.kind,
    change.resource,
    change.namespace,
    change.name,
    change.uid,
    change.metadata,
    change.body,
    change.status
FROM change_horizon AS horizon
LEFT JOIN LATERAL (
    SELECT revision, kind, resource, namespace, name, uid, metadata, body, status
    FROM change
    WHERE revision > $1 AND $1 >= horizon.revision
    ORDER BY revision
    LIMIT $2
) AS change ON true
ORDER BY change.revision
