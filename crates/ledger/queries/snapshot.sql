-- At least one row; its uid is null when there is no object.
-- One statement, so that everything is of one moment.
SELECT
    log.newest,
    log.newest_at,
    seen.uid,
    seen.resource,
    seen.namespace,
    seen.name,
    seen.metadata,
    seen.body,
    seen.status,
    seen.revision
FROM (
    SELECT
        value AS newest,
        (SELECT changed_at FROM change WHERE revision = value) AS newest_at
    FROM revision_counter
    LIMIT 1
) AS log
LEFT JOIN api_object AS seen ON true
