-- $1 revision, $2 when its change was made if that is known, $3 resources, $4 most changes
-- Which objects of these resources changed after it. One row with a null revision when nothing did.
-- One statement, so that everything is of one moment.
SELECT
    $1 >= log.horizon AND log.newest >= $1 AND (
        $2::timestamptz IS NULL
        OR $1 = log.horizon
        OR EXISTS (SELECT FROM change WHERE revision = $1 AND changed_at = $2)
    ) AS known,
    change.revision,
    change.changed_at,
    CASE WHEN change.resource = ANY($3) THEN change.uid END AS uid
FROM (
    SELECT
        (SELECT revision FROM change_horizon) AS horizon,
        (SELECT value FROM revision_counter) AS newest
) AS log
LEFT JOIN LATERAL (
    SELECT revision, changed_at, resource, uid
    FROM change
    WHERE revision > $1
    ORDER BY revision
    LIMIT $4
) AS change ON true
ORDER BY change.revision
