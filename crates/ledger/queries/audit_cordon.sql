-- When each node was closed and opened again, as far back as the change log goes.
SELECT name, changed_at, cordoned
FROM (
    SELECT
        name, revision, changed_at, cordoned,
        lag(cordoned) OVER (PARTITION BY name ORDER BY revision) AS before
    FROM (
        SELECT
            name, revision, changed_at,
            kind <> 'Deleted'
            AND COALESCE(body #> '{spec,unschedulable}' = 'true', false) AS cordoned
        FROM change
        WHERE resource = 'nodes'
    ) AS seen
) AS step
WHERE cordoned <> COALESCE(before, false)
ORDER BY name, revision
