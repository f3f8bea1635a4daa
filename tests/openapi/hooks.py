"""Makes what schemathesis sends useful: half of all names exist, most objects are of the right kind
and may be stored, patches are made of objects that were sent before, and nothing is watched."""

import copy
import zlib

import schemathesis
from hypothesis import strategies as st

# What the suite makes before each document, and names that a rule knows.
NAMES = {
    "namespaces": ["default", "fuzz", "kube-system", "kubevirt"],
    "nodes": ["worker1", "worker2"],
    "virtualmachines": ["rhel8-server-nfs", "vm-stays"],
    "virtualmachineinstances": ["rhel8-server-nfs"],
    "virtualmachineinstancemigrations": ["migration-job"],
    "migrationhistories": ["migration-job"],
    "nodemaintenances": ["worker2-maintenance"],
    "configmaps": ["kubevirt-config", "settings"],
    "secrets": ["password"],
    "kubevirts": ["kubevirt"],
    "nodefences": ["worker2-is-dead"],
    "drainplans": ["monday"],
    "rollingmaintenances": ["new-kernel"],
}
NAMESPACES = ["default", "fuzz"]
# Names of what requests make.
MADE = ["made-1", "made-2", "made-3"]
# Metadata that a client may set; the rest is the server's, or must fit the path.
METADATA = ["labels", "annotations", "finalizers", "ownerReferences", "managedFields"]

# Last object sent, by kind.
sent = {}
# Last revision seen, by path.
revisions = {}


def plural(path):
    """The resource that a path of the document is about."""
    return path.split("/{name}")[0].split("/")[-1]


@schemathesis.hook
def flatmap_path_parameters(context, path_parameters):
    if not path_parameters:
        return st.just(path_parameters)
    names = NAMES.get(plural(context.operation.path), []) + MADE
    known = {"name": st.sampled_from(names), "namespace": st.sampled_from(NAMESPACES)}
    chosen = {
        key: st.one_of(st.just(value), known[key]) if key in known else st.just(value)
        for key, value in path_parameters.items()
    }
    return st.fixed_dictionaries(chosen)


def mended(body, kind, name, revision):
    """The object with the words that any server wants to see."""
    group = kind["group"] + "/" if kind["group"] else ""
    metadata = body.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    metadata = {key: metadata[key] for key in METADATA if key in metadata}
    metadata["name"] = name
    if revision:
        metadata["resourceVersion"] = revision
    words = {"apiVersion": group + kind["version"], "kind": kind["kind"], "metadata": metadata}
    return {**body, **words}


@schemathesis.hook
def before_call(context, case, **kwargs):
    # A watch answers a stream of events, which no schema of a list describes.
    if case.query and "watch" in case.query:
        case.query["watch"] = "false"
    kind = case.operation.definition.raw.get("x-kubernetes-group-version-kind")
    body = case.body
    if not kind or not isinstance(body, dict) or case.method not in ("POST", "PUT", "PATCH"):
        return
    # By chance, but by the same for the same request.
    chance = zlib.crc32(repr((case.path_parameters, case.query, body)).encode("utf-8", "replace"))
    if chance % 8 == 0:
        return
    if case.method == "PATCH":
        if case.media_type == "application/json-patch+json":
            case.body = [{"op": "add", "path": f"/{key}", "value": body[key]} for key in body]
            return
        body = {**copy.deepcopy(sent.get(kind["kind"], {})), **body}
    else:
        sent[kind["kind"]] = copy.deepcopy(body)
    name = (case.path_parameters or {}).get("name", MADE[chance % len(MADE)])
    revision = revisions.get(case.formatted_path) if case.method == "PUT" else None
    case.body = mended(body, kind, name, revision)


@schemathesis.hook
def after_call(context, case, response):
    if response.status_code not in (200, 201) or case.method == "DELETE":
        return
    try:
        metadata = response.json().get("metadata", {})
    except ValueError:
        return
    path = case.formatted_path
    path = path if case.method != "POST" else f"{path}/{metadata.get('name')}"
    revisions[path] = metadata.get("resourceVersion")
