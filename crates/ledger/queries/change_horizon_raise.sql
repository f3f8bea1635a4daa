-- $1 how long changes are kept, $2 how many of the newest are kept in any case
UPDATE change_horizon
SET revision = GREATEST(
    revision,
    (
        SELECT max(revision)
        FROM change
        WHERE
            changed_at < clock_timestamp() - $1
            AND revision <= (SELECT revision FROM change ORDER BY revision DESC OFFSET $2 LIMIT 1)
    )
)
RETURNING revision
