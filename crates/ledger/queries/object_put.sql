-- $1 uid, $2 revision it was read at, $3 metadata, $4 body, $5 status
WITH wanted AS (
    SELECT
        uid,
        $3::jsonb || jsonb_build_object(
            'creationTimestamp', metadata -> 'creationTimestamp',
            'generation', COALESCE((metadata ->> 'generation')::bigint, 0)
            + CASE WHEN body = $4 THEN 0 ELSE 1 END
        ) AS metadata
    FROM object
    WHERE uid = $1 AND revision = $2
)
UPDATE object
SET metadata = wanted.metadata, body = $4, status = $5
FROM wanted
WHERE
    object.uid = wanted.uid
    AND (object.metadata, object.body, object.status) IS DISTINCT FROM (wanted.metadata, $4, $5)
RETURNING
    object.uid, object.resource, object.namespace, object.name,
    object.metadata, object.body, object.status, object.revision
