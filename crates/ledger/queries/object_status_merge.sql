-- $1 resource, $2 namespace, $3 name, $4 keys to set, $5 names of keys to remove
UPDATE object
SET status = (COALESCE(status, '{}') || $4) - $5::text[]
WHERE
    resource = $1 AND namespace = $2 AND name = $3
    AND (COALESCE(status, '{}') || $4) - $5::text[] IS DISTINCT FROM status
RETURNING uid, resource, namespace, name, metadata, body, status, revision
