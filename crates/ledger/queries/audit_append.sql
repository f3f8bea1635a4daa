-- $1 uids, $2 events of the same number
INSERT INTO audit_event (
    uid, received_at, completed_at, audit_id, username, impersonated, verb, api_group, resource,
    subresource, namespace, name, decision, code, event
)
SELECT
    given.uid,
    (given.event ->> 'requestReceivedTimestamp')::timestamptz,
    (given.event ->> 'stageTimestamp')::timestamptz,
    given.event ->> 'auditID',
    coalesce(given.event #>> '{user,username}', ''),
    coalesce(given.event #>> '{impersonatedUser,username}', ''),
    given.event ->> 'verb',
    coalesce(given.event #>> '{objectRef,apiGroup}', ''),
    coalesce(given.event #>> '{objectRef,resource}', ''),
    coalesce(given.event #>> '{objectRef,subresource}', ''),
    coalesce(given.event #>> '{objectRef,namespace}', ''),
    coalesce(given.event #>> '{objectRef,name}', ''),
    coalesce(given.event #>> '{annotations,authorization.k8s.io/decision}', ''),
    (given.event #>> '{responseStatus,code}')::integer,
    given.event
FROM unnest($1::uuid[], $2::jsonb[]) AS given (uid, event)
ON CONFLICT DO NOTHING
