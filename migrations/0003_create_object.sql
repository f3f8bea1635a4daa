-- API objects. Opaque here: what the ledger reasons about has typed tables.
CREATE TABLE object (
    uid uuid NOT NULL,
    resource text NOT NULL,
    namespace text NOT NULL,
    name text NOT NULL,
    metadata jsonb NOT NULL,
    body jsonb NOT NULL,
    status jsonb,
    revision bigint NOT NULL,
    CONSTRAINT object_pkey PRIMARY KEY (uid),
    CONSTRAINT object_key_unique UNIQUE (resource, namespace, name),
    CONSTRAINT object_name_length CHECK (length(name) BETWEEN 1 AND 253),
    CONSTRAINT object_metadata_object CHECK (jsonb_typeof(metadata) = 'object'),
    CONSTRAINT object_body_object CHECK (jsonb_typeof(body) = 'object'),
    CONSTRAINT object_status_object CHECK (jsonb_typeof(status) = 'object')
);

COMMENT ON TABLE object IS 'API objects but events.';
COMMENT ON COLUMN object.uid IS 'UID.';
COMMENT ON COLUMN object.resource IS 'Plural, and the API group after a dot unless it is core.';
COMMENT ON COLUMN object.namespace IS 'Namespace; empty for a cluster-scoped object.';
COMMENT ON COLUMN object.name IS 'Name.';
COMMENT ON COLUMN object.metadata IS 'Metadata without resourceVersion, uid, name and namespace.';
COMMENT ON COLUMN object.body IS 'Top-level fields but apiVersion, kind, metadata and status.';
COMMENT ON COLUMN object.status IS 'Status; null when nothing was told yet.';
COMMENT ON COLUMN object.revision IS 'The change that made it what it is.';

CREATE FUNCTION object_revise() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
AS $$
BEGIN
    NEW.revision := revision_next();
    RETURN NEW;
END
$$;

COMMENT ON FUNCTION object_revise() IS 'Gives a written object its revision; no caller can choose one.';

CREATE TRIGGER object_revise BEFORE INSERT OR UPDATE ON object
FOR EACH ROW EXECUTE FUNCTION object_revise();

-- With the owner's rights, so that no service can write the change log but by changing an object.
CREATE FUNCTION object_log() RETURNS trigger
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
    INSERT INTO change (revision, kind, resource, namespace, name, uid, metadata, body, status)
    VALUES (
        NEW.revision, kind, NEW.resource, NEW.namespace, NEW.name, NEW.uid,
        NEW.metadata, NEW.body, NEW.status
    );
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION object_log() IS 'Writes the change log in the transaction of the change.';

CREATE TRIGGER object_log AFTER INSERT OR UPDATE OR DELETE ON object
FOR EACH ROW EXECUTE FUNCTION object_log();
