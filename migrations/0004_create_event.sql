-- Events, typed, because the same event again is counted and not repeated.
CREATE TABLE event (
    uid uuid NOT NULL DEFAULT gen_random_uuid(),
    namespace text NOT NULL,
    name text NOT NULL,
    regarding_api_version text NOT NULL,
    regarding_kind text NOT NULL,
    regarding_resource text NOT NULL,
    regarding_namespace text NOT NULL,
    regarding_name text NOT NULL,
    regarding_uid text NOT NULL,
    kind text NOT NULL,
    reason text NOT NULL,
    note text NOT NULL,
    component text NOT NULL,
    host text NOT NULL,
    count integer NOT NULL DEFAULT 1,
    first_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    revision bigint NOT NULL,
    CONSTRAINT event_pkey PRIMARY KEY (uid),
    CONSTRAINT event_name_unique UNIQUE (namespace, name),
    CONSTRAINT event_once UNIQUE (
        namespace, regarding_uid, regarding_resource, regarding_name, reason, note, component, host
    ),
    CONSTRAINT event_kind_known CHECK (kind IN ('Normal', 'Warning')),
    CONSTRAINT event_reason_length CHECK (length(reason) BETWEEN 1 AND 128),
    CONSTRAINT event_note_length CHECK (octet_length(note) <= 1024),
    CONSTRAINT event_component_length CHECK (length(component) BETWEEN 1 AND 128),
    CONSTRAINT event_count_positive CHECK (count > 0)
);

COMMENT ON TABLE event IS 'What happened to objects, in words for people.';
COMMENT ON COLUMN event.uid IS 'UID of the event.';
COMMENT ON COLUMN event.namespace IS 'Namespace of the event: the object''s, or default for a cluster-scoped object.';
COMMENT ON COLUMN event.name IS 'Name of the object, a dot, and 16 hexadecimal digits that say what event it is.';
COMMENT ON COLUMN event.regarding_api_version IS 'API version of the object.';
COMMENT ON COLUMN event.regarding_kind IS 'Kind of the object.';
COMMENT ON COLUMN event.regarding_resource IS 'Resource key of the object.';
COMMENT ON COLUMN event.regarding_namespace IS 'Namespace of the object; empty for a cluster-scoped one.';
COMMENT ON COLUMN event.regarding_name IS 'Name of the object.';
COMMENT ON COLUMN event.regarding_uid IS 'UID of the object; empty when it wasn''t known.';
COMMENT ON COLUMN event.kind IS 'Normal or Warning.';
COMMENT ON COLUMN event.reason IS 'One CamelCase word for machines.';
COMMENT ON COLUMN event.note IS 'A sentence for people.';
COMMENT ON COLUMN event.component IS 'Who saw it.';
COMMENT ON COLUMN event.host IS 'On which node; empty when it is about none.';
COMMENT ON COLUMN event.count IS 'How often it was seen.';
COMMENT ON COLUMN event.first_at IS 'When it was seen first.';
COMMENT ON COLUMN event.last_at IS 'When it was seen last.';
COMMENT ON COLUMN event.revision IS 'The change that made it what it is.';

CREATE INDEX event_by_last ON event (last_at);

CREATE FUNCTION rfc3339(at timestamptz) RETURNS text
LANGUAGE sql STABLE
AS $$ SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') $$;

COMMENT ON FUNCTION rfc3339(timestamptz) IS 'A time as Kubernetes writes it, in whole seconds.';

CREATE FUNCTION event_metadata(seen event) RETURNS jsonb
LANGUAGE sql STABLE
AS $$ SELECT jsonb_build_object('creationTimestamp', rfc3339(seen.first_at)) $$;

COMMENT ON FUNCTION event_metadata(event) IS 'Metadata of an event as an API object.';

CREATE FUNCTION event_body(seen event) RETURNS jsonb
LANGUAGE sql STABLE
AS $$
    SELECT jsonb_strip_nulls(jsonb_build_object(
        'involvedObject', jsonb_build_object(
            'apiVersion', seen.regarding_api_version,
            'kind', seen.regarding_kind,
            'namespace', NULLIF(seen.regarding_namespace, ''),
            'name', seen.regarding_name,
            'uid', NULLIF(seen.regarding_uid, '')
        ),
        'reason', seen.reason,
        'message', seen.note,
        'source', jsonb_build_object('component', seen.component, 'host', NULLIF(seen.host, '')),
        'type', seen.kind,
        'count', seen.count,
        'firstTimestamp', rfc3339(seen.first_at),
        'lastTimestamp', rfc3339(seen.last_at),
        'reportingComponent', seen.component,
        'reportingInstance', seen.host
    ))
$$;

COMMENT ON FUNCTION event_body(event) IS 'Top-level fields of a core/v1 Event.';

CREATE FUNCTION event_log() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
AS $$
DECLARE
    kind text := 'Modified';
BEGIN
    IF TG_OP = 'DELETE' THEN
        NEW := OLD;
        NEW.revision := revision_next();
        kind := 'Deleted';
    ELSIF TG_OP = 'INSERT' THEN
        kind := 'Added';
    END IF;
    INSERT INTO change (revision, kind, resource, namespace, name, uid, metadata, body)
    VALUES (
        NEW.revision, kind, 'events', NEW.namespace, NEW.name, NEW.uid,
        event_metadata(NEW), event_body(NEW)
    );
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION event_log() IS 'Writes the change log in the transaction of the event.';

CREATE TRIGGER event_revise BEFORE INSERT OR UPDATE ON event
FOR EACH ROW EXECUTE FUNCTION object_revise();

CREATE TRIGGER event_log AFTER INSERT OR UPDATE OR DELETE ON event
FOR EACH ROW EXECUTE FUNCTION event_log();
