-- All API objects alike. Objects under "events" in the object table are those that clients made.
CREATE VIEW api_object AS
SELECT uid, resource, namespace, name, metadata, body, status, revision
FROM object
UNION ALL
SELECT
    event.uid,
    'events' AS resource,
    event.namespace,
    event.name,
    event_metadata(event) AS metadata,
    event_body(event) AS body,
    NULL AS status,
    event.revision
FROM event;

COMMENT ON VIEW api_object IS 'API objects, events included.';
