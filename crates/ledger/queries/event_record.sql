-- $1 namespace, $2 API version, $3 kind of object, $4 resource, $5 namespace of object, $6 name,
-- $7 uid, $8 kind of event, $9 reason, $10 note, $11 component, $12 host, $13 name of event
INSERT INTO event (
    namespace, regarding_api_version, regarding_kind, regarding_resource, regarding_namespace,
    regarding_name, regarding_uid, kind, reason, note, component, host, name
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
ON CONFLICT ON CONSTRAINT event_once
DO UPDATE SET count = event.count + 1, last_at = clock_timestamp()
RETURNING revision
