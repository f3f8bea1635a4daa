//! What kubectl is asked, and what it has to answer: for each kind, and of the cluster.
//!
//! The number before a command is the minor version of kubectl that it needs.

/// What must come of a command.
#[derive(Debug, Clone)]
pub(crate) enum Want {
    Ok,
    /// Success, and exactly this on standard output.
    Is(&'static str),
    /// Success, and this somewhere in what it says.
    Has(&'static str),
    /// Success, and not this.
    Lacks(&'static str),
    /// A failure that says this.
    Fails(&'static str),
}

impl Want {
    /// The same with names filled in.
    pub(crate) fn map(&self, fill: impl Fn(&str) -> String) -> Self {
        // A test's texts are few and live as long as it does.
        let keep = |text: &str| -> &'static str { fill(text).leak() };
        match self {
            Self::Ok => Self::Ok,
            Self::Is(text) => Self::Is(keep(text)),
            Self::Has(text) => Self::Has(keep(text)),
            Self::Lacks(text) => Self::Lacks(keep(text)),
            Self::Fails(text) => Self::Fails(keep(text)),
        }
    }
}

use Want::{Fails, Has, Is, Lacks, Ok};

/// A kind and an object of it, with an annotation `note: one`.
pub(crate) struct Sample {
    /// What kubectl is asked for.
    pub(crate) kind: &'static str,
    /// What it calls the kind in its answers.
    pub(crate) full: &'static str,
    pub(crate) manifest: &'static str,
    /// Whether strategic merge patches are for it.
    pub(crate) built_in: bool,
}

impl Sample {
    pub(crate) fn file_name(&self) -> String {
        self.kind.to_owned()
    }

    /// Whether cases of this part are for it.
    pub(crate) fn can(&self, part: &str) -> bool {
        match part {
            "built-in" => self.built_in,
            "custom" => !self.built_in,
            // kubectl explain takes what follows a dot for a field.
            "short" => !self.kind.contains('.'),
            // A second one is refused for its node before it is for its name.
            "plain" => !self.full.starts_with("nodemaintenance"),
            _ => true,
        }
    }
}

const fn built_in(kind: &'static str, full: &'static str, manifest: &'static str) -> Sample {
    Sample {
        kind,
        full,
        manifest,
        built_in: true,
    }
}

const fn custom(kind: &'static str, full: &'static str, manifest: &'static str) -> Sample {
    Sample {
        kind,
        full,
        manifest,
        built_in: false,
    }
}

/// The kinds whose objects users make, change and delete.
pub(crate) static KINDS: [Sample; 16] = [
    built_in(
        "ns",
        "namespace",
        "{apiVersion: v1, kind: Namespace, metadata: {name: one, annotations: {note: one}}}",
    ),
    built_in(
        "cm",
        "configmap",
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: one, annotations: {note: one}}, data: {k: v}}",
    ),
    built_in(
        "secrets",
        "secret",
        "{apiVersion: v1, kind: Secret, metadata: {name: one, annotations: {note: one}}, data: {k: dg==}}",
    ),
    built_in(
        "leases",
        "lease.coordination.k8s.io",
        "{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: one, annotations: {note: one}}}",
    ),
    built_in(
        "roles",
        "role.rbac.authorization.k8s.io",
        "{apiVersion: rbac.authorization.k8s.io/v1, kind: Role,
          metadata: {name: one, annotations: {note: one}}, rules: []}",
    ),
    built_in(
        "clusterroles",
        "clusterrole.rbac.authorization.k8s.io",
        "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole,
          metadata: {name: one, annotations: {note: one}}, rules: []}",
    ),
    built_in(
        "rolebindings",
        "rolebinding.rbac.authorization.k8s.io",
        "{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding,
          metadata: {name: one, annotations: {note: one}},
          roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view},
          subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: u}]}",
    ),
    built_in(
        "clusterrolebindings",
        "clusterrolebinding.rbac.authorization.k8s.io",
        "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding,
          metadata: {name: one, annotations: {note: one}},
          roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view},
          subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: u}]}",
    ),
    custom(
        "vm",
        "virtualmachine.kubevirt.io",
        "{apiVersion: kubevirt.io/v1, kind: VirtualMachine,
          metadata: {name: one, annotations: {note: one}},
          spec: {runStrategy: Halted, template: {spec: {
            domain: {memory: {guest: 64Mi}, devices: {disks: [{name: d, disk: {bus: virtio}}]}},
            volumes: [{name: d, hostDisk: {path: /srv/d.img, type: Disk, shared: true}}]}}}}",
    ),
    custom(
        "virtualmachines.v1alpha3.kubevirt.io",
        "virtualmachine.kubevirt.io",
        "{apiVersion: kubevirt.io/v1alpha3, kind: VirtualMachine,
          metadata: {name: old, annotations: {note: one}},
          spec: {runStrategy: Halted, template: {spec: {
            domain: {memory: {guest: 64Mi}, devices: {disks: [{name: d, disk: {bus: virtio}}]}},
            volumes: [{name: d, hostDisk: {path: /srv/d.img, type: Disk, shared: true}}]}}}}",
    ),
    custom(
        "kv",
        "kubevirt.kubevirt.io",
        "{apiVersion: kubevirt.io/v1, kind: KubeVirt,
          metadata: {name: one, annotations: {note: one}}, spec: {}}",
    ),
    custom(
        "migrationpolicies",
        "migrationpolicy.migrations.kubevirt.io",
        "{apiVersion: migrations.kubevirt.io/v1alpha1, kind: MigrationPolicy,
          metadata: {name: one, annotations: {note: one}}, spec: {selectors: {}}}",
    ),
    custom(
        "nodemaintenances.nodemaintenance.kubevirt.io",
        "nodemaintenance.nodemaintenance.kubevirt.io",
        "{apiVersion: nodemaintenance.kubevirt.io/v1beta1, kind: NodeMaintenance,
          metadata: {name: one, annotations: {note: one}}, spec: {nodeName: worker1}}",
    ),
    custom(
        "nodemaintenances.nodemaintenance.medik8s.io",
        "nodemaintenance.nodemaintenance.medik8s.io",
        "{apiVersion: nodemaintenance.medik8s.io/v1beta1, kind: NodeMaintenance,
          metadata: {name: other, annotations: {note: one}}, spec: {nodeName: worker2}}",
    ),
    custom(
        "rm",
        "rollingmaintenance.godwit.io",
        "{apiVersion: godwit.io/v1alpha1, kind: RollingMaintenance,
          metadata: {name: one, annotations: {note: one}}, spec: {nodeSelector: {}}}",
    ),
    built_in(
        "events",
        "event",
        "{apiVersion: v1, kind: Event, metadata: {name: one, annotations: {note: one}},
          involvedObject: {kind: Node, name: worker1, namespace: default}, reason: R, message: m,
          type: Normal}",
    ),
];

/// What is done with an object of each kind, in this order. Which objects a case is for, from
/// which kubectl on, the command, what must come of it.
pub(crate) static EACH: &[(&str, u32, &str, Want)] = &[
    (
        "all",
        20,
        "kubectl create -f FILE --dry-run=server -o name",
        Has("FULL/"),
    ),
    ("all", 20, "kubectl get -f FILE", Fails("NotFound")),
    ("all", 20, "kubectl get -f FILE --ignore-not-found", Is("")),
    ("all", 20, "kubectl diff -f FILE", Fails("+")),
    ("all", 20, "kubectl create -f FILE", Has("created")),
    (
        "plain",
        20,
        "kubectl create -f FILE",
        Fails("AlreadyExists"),
    ),
    ("all", 20, "kubectl get -f FILE -o name", Has("FULL/")),
    ("all", 20, "kubectl get KIND -o name", Has("FULL/")),
    (
        "all",
        20,
        "kubectl get KIND --chunk-size=1 -o name",
        Has("FULL/"),
    ),
    ("all", 20, "kubectl get -f FILE", Ok),
    ("all", 20, "kubectl get KIND", Has("")),
    (
        "all",
        20,
        "kubectl get KIND -o wide --show-labels",
        Has("LABELS"),
    ),
    (
        "all",
        20,
        "kubectl get KIND -o wide --sort-by=.metadata.name --no-headers",
        Lacks("NAME "),
    ),
    (
        "all",
        20,
        "kubectl get KIND --show-kind --no-headers -o wide",
        Ok,
    ),
    (
        "all",
        20,
        "kubectl get KIND --server-print=false",
        Has("AGE"),
    ),
    (
        "all",
        20,
        "kubectl get -f FILE -o json",
        Has("\"note\": \"one\""),
    ),
    ("all", 20, "kubectl get -f FILE -o yaml", Has("note: one")),
    (
        "all",
        20,
        "kubectl get -f FILE -o jsonpath='{.metadata.annotations.note}'",
        Is("one"),
    ),
    (
        "all",
        20,
        "kubectl get -f FILE -o go-template='{{.metadata.annotations.note}}'",
        Is("one"),
    ),
    (
        "all",
        20,
        "kubectl get -f FILE --no-headers -o custom-columns=N:.metadata.annotations.note",
        Is("one"),
    ),
    ("all", 20, "kubectl describe -f FILE", Has("Name:")),
    ("short", 20, "kubectl explain KIND", Has("VERSION:")),
    (
        "short",
        20,
        "kubectl explain KIND.metadata.name",
        Has("name"),
    ),
    (
        "short",
        20,
        "kubectl explain KIND --recursive",
        Has("metadata"),
    ),
    (
        "all",
        20,
        "kubectl label -f FILE SHAPE=round",
        Has("labeled"),
    ),
    (
        "all",
        20,
        "kubectl label -f FILE SHAPE=flat",
        Fails("already has a value (round)"),
    ),
    (
        "all",
        20,
        "kubectl label -f FILE SHAPE=flat --overwrite",
        Has("labeled"),
    ),
    (
        "all",
        20,
        "kubectl get KIND -l SHAPE=flat -o name",
        Has("FULL/"),
    ),
    (
        "all",
        20,
        "kubectl get KIND -l 'SHAPE in (flat),!absent' -L SHAPE --no-headers -o wide",
        Ok,
    ),
    ("all", 20, "kubectl get KIND -l SHAPE=round -o name", Is("")),
    (
        "all",
        20,
        "kubectl get KIND -l 'shape=='', =' -o name",
        Fails(""),
    ),
    ("all", 20, "kubectl label -f FILE SHAPE-", Ok),
    (
        "all",
        20,
        "kubectl annotate -f FILE more=1",
        Has("annotated"),
    ),
    // A watch shows the object, and then each change of it.
    (
        "all",
        20,
        "kubectl get -f FILE -w -o name > FILE.seen & \
         until [ -s FILE.seen ]; do sleep 0.1; done; kubectl annotate -f FILE watched=1; \
         until [ $(wc -l < FILE.seen) -ge 2 ]; do sleep 0.1; done; kill $!; sort -u FILE.seen",
        Has("FULL/"),
    ),
    (
        "all",
        20,
        "kubectl annotate -f FILE more-",
        Has("annotated"),
    ),
    (
        "all",
        20,
        "kubectl patch -f FILE --type=merge -p '{\"metadata\":{\"annotations\":{\"m\":\"1\"}}}'",
        Has("patched"),
    ),
    (
        "all",
        20,
        "kubectl patch -f FILE --type=json -p '[{\"op\":\"remove\",\"path\":\"/metadata/annotations/m\"}]'",
        Has("patched"),
    ),
    (
        "all",
        20,
        "kubectl patch -f FILE --type=json -p '[{\"op\":\"test\",\"path\":\"/kind\",\"value\":\"x\"}]'",
        Fails(""),
    ),
    (
        "built-in",
        20,
        "kubectl patch -f FILE -p '{\"metadata\":{\"annotations\":{\"s\":\"1\"}}}'",
        Has("patched"),
    ),
    (
        "custom",
        20,
        "kubectl patch -f FILE -p '{\"metadata\":{\"annotations\":{\"s\":\"1\"}}}'",
        Fails(
            "the body of the request was in an unknown format - accepted media types include: \
               application/json-patch+json, application/merge-patch+json",
        ),
    ),
    ("all", 20, "kubectl apply -f FILE", Has("configured")),
    ("all", 20, "kubectl apply -f FILE", Has("unchanged")),
    (
        "all",
        20,
        "kubectl apply view-last-applied -f FILE",
        Has("note: one"),
    ),
    ("all", 20, "kubectl diff -f FILE", Is("")),
    (
        "all",
        20,
        "kubectl diff -f CHANGED",
        Fails("+    note: two"),
    ),
    (
        "all",
        20,
        "kubectl apply -f CHANGED --dry-run=server",
        Has("(server dry run)"),
    ),
    ("all", 20, "kubectl apply -f CHANGED", Has("configured")),
    (
        "all",
        20,
        "kubectl get -f FILE -o jsonpath='{.metadata.annotations.note}'",
        Is("two"),
    ),
    (
        "all",
        20,
        "kubectl apply --server-side --field-manager=other -f FILE",
        Fails("conflict"),
    ),
    (
        "all",
        20,
        "kubectl apply --server-side --field-manager=other --force-conflicts -f FILE",
        Has("serverside-applied"),
    ),
    ("all", 20, "kubectl replace -f CHANGED", Has("replaced")),
    (
        "all",
        20,
        "EDITOR='sed -i s/two/three/' kubectl edit -f FILE",
        Has("edited"),
    ),
    (
        "all",
        20,
        "EDITOR=true kubectl edit -f FILE",
        Has("no changes made"),
    ),
    (
        "all",
        20,
        "kubectl get -f FILE -o jsonpath='{.metadata.annotations.note}'",
        Is("three"),
    ),
    ("all", 20, "kubectl auth can-i delete KIND", Has("yes")),
    (
        "all",
        21,
        "kubectl get -f FILE -o jsonpath-as-json='{.metadata.annotations.note}'",
        Has("three"),
    ),
    (
        "all",
        23,
        "kubectl wait -f FILE --for=jsonpath='{.metadata.annotations.note}'=three --timeout=10s",
        Has("condition met"),
    ),
    (
        "all",
        20,
        "kubectl delete -f FILE --dry-run=server",
        Has("(server dry run)"),
    ),
    (
        "all",
        20,
        "kubectl delete -f FILE --wait=false",
        Has("deleted"),
    ),
    (
        "all",
        20,
        "kubectl wait -f FILE --for=delete --timeout=20s >/dev/null || kubectl get -f FILE --ignore-not-found -o name",
        Lacks("FULL/"),
    ),
    (
        "all",
        20,
        "kubectl delete -f FILE --ignore-not-found",
        Is(""),
    ),
    ("all", 20, "kubectl delete -f FILE", Fails("NotFound")),
    (
        "all",
        20,
        "kubectl apply --server-side -f FILE",
        Has("serverside-applied"),
    ),
    (
        "all",
        20,
        "kubectl replace --force -f FILE",
        Has("replaced"),
    ),
    ("all", 20, "kubectl delete -f FILE --now", Has("deleted")),
];

/// What is asked of the whole cluster.
pub(crate) static CLUSTER: &[(u32, &str, Want)] = &[
    (20, "kubectl version", Has("+godwit.")),
    (20, "kubectl cluster-info", Has("is running at")),
    (
        20,
        "kubectl api-versions",
        Has("nodemaintenance.medik8s.io/v1beta1"),
    ),
    (
        20,
        "kubectl api-resources",
        Has("virtualmachineinstancemigrations"),
    ),
    (20, "kubectl api-resources -o wide", Has("deletecollection")),
    (
        20,
        "kubectl api-resources --api-group=kubevirt.io -o name",
        Has("kubevirts.kubevirt.io"),
    ),
    (
        20,
        "kubectl api-resources --namespaced=false -o name",
        Lacks("secrets"),
    ),
    (
        20,
        "kubectl api-resources --verbs=list,get -o name",
        Lacks("selfsubjectaccessreviews"),
    ),
    (20, "kubectl get --raw /healthz", Is("ok")),
    (20, "kubectl get --raw /readyz", Is("ok")),
    (20, "kubectl get --raw /version", Has("\"gitVersion\"")),
    (
        20,
        "kubectl get --raw /api/v1/nodes",
        Has("\"kind\":\"NodeList\""),
    ),
    (20, "kubectl get --raw /nonsense", Fails("NotFound")),
    (
        20,
        "kubectl get nonsense",
        Fails("the server doesn't have a resource type \"nonsense\""),
    ),
    (20, "kubectl auth can-i create vmim", Has("yes")),
    (20, "kubectl auth can-i '*' '*'", Has("yes")),
    (20, "kubectl auth can-i --list", Has("*.*")),
    (
        20,
        "kubectl auth can-i create vmim --as nobody",
        Fails("no"),
    ),
    (
        28,
        "kubectl auth whoami -o jsonpath='{.status.userInfo.username}'",
        Is("admin"),
    ),
    (20, "kubectl get all -A", Ok),
    (
        20,
        "kubectl get events -A --field-selector type=Warning",
        Ok,
    ),
    (
        20,
        "kubectl get vmi --field-selector spec.nonsense=1",
        Fails("field label not supported"),
    ),
    (20, "kubectl get pods,vm,vmi,vmim,pdb -A -o name", Ok),
    (
        20,
        "kubectl get projects -o name",
        Has("project.project.openshift.io/default"),
    ),
    (26, "kubectl events -A", Ok),
    (20, "kubectl __complete get nod ''", Ok),
    (22, "kubectl __complete get node ''", Has("worker1")),
    (
        20,
        "kubectl config view --minify",
        Has("certificate-authority"),
    ),
    (20, "kubectl top nodes", Fails("Metrics API not available")),
    (20, "kubectl logs nobody", Fails("NotFound")),
    (20, "kubectl exec nobody -- true", Fails("NotFound")),
    (20, "kubectl port-forward pod/nobody 1:1", Fails("NotFound")),
    (20, "kubectl scale vm/nobody --replicas=1", Fails("")),
    (20, "kubectl rollout status vm/nobody", Fails("")),
    (
        20,
        "kubectl explain vmi.spec.domain.cpu.cores",
        Has("cores"),
    ),
    (
        20,
        "kubectl explain vmim.spec --api-version=kubevirt.io/v1alpha3",
        Has("vmiName"),
    ),
    (
        27,
        "kubectl explain vm --output=plaintext-openapiv2",
        Has("VirtualMachine"),
    ),
];

/// What kubectl makes itself.
pub(crate) static GENERATED: &[(u32, &str, Want)] = &[
    (
        20,
        "kubectl create namespace made",
        Is("namespace/made created"),
    ),
    (
        20,
        "kubectl create configmap made --from-literal=a=b -n made",
        Has("created"),
    ),
    (
        20,
        "kubectl create secret generic made --from-literal=a=b -n made",
        Has("created"),
    ),
    (
        20,
        "kubectl create role made --verb=get --resource=vms -n made",
        Has("created"),
    ),
    (
        20,
        "kubectl create clusterrole made --verb=get,list --resource=nodes",
        Has("created"),
    ),
    (
        20,
        "kubectl create rolebinding made --role=made --user=u -n made",
        Has("created"),
    ),
    (
        20,
        "kubectl create clusterrolebinding made --clusterrole=made --group=g",
        Has("created"),
    ),
    (20, "kubectl auth can-i get vm -n made --as u", Has("yes")),
    (
        20,
        "kubectl auth can-i get vm -n default --as u",
        Fails("no"),
    ),
    (
        20,
        "kubectl auth can-i list nodes --as x --as-group g",
        Has("yes"),
    ),
    (
        20,
        "kubectl label cm,secret --all -n made pick=me",
        Has("labeled"),
    ),
    (
        20,
        "kubectl get cm,secret -n made -l pick=me -o name",
        Is("configmap/made\nsecret/made"),
    ),
    (
        20,
        "kubectl delete cm -l pick=me -n made",
        Has("configmap \"made\" deleted"),
    ),
    (
        20,
        "kubectl delete role,rolebinding --all -n made",
        Has("deleted"),
    ),
    (
        20,
        "kubectl delete clusterrole,clusterrolebinding made",
        Has("deleted"),
    ),
    (
        20,
        "printf 'configMapGenerator: [{name: kust, literals: [a=b]}]' > FOLDER/kustomization.yaml \
         && kubectl apply -k FOLDER -n made",
        Has("created"),
    ),
    (20, "kubectl delete -k FOLDER -n made", Has("deleted")),
    (
        20,
        "printf '# a map\n{apiVersion: v1, kind: ConfigMap, metadata: {generateName: many-}}' \
         | kubectl create -n made -f - -o name",
        Has("configmap/many-"),
    ),
    (
        20,
        "printf '# a map\n{apiVersion: v1, kind: ConfigMap, metadata: {name: typo}, daat: {}}' \
         | kubectl create -n made -f -",
        Fails("daat"),
    ),
    (20, "kubectl delete namespace made", Has("deleted")),
    (20, "kubectl get cm -n made -o name", Is("")),
];

/// What is done to nodes.
pub(crate) static TO_NODES: &[(u32, &str, Want)] = &[
    (20, "kubectl get node worker1 -o wide", Has("OS-IMAGE")),
    (20, "kubectl describe node worker1", Has("Conditions:")),
    (20, "kubectl cordon worker1", Is("node/worker1 cordoned")),
    (
        20,
        "kubectl cordon worker1",
        Is("node/worker1 already cordoned"),
    ),
    (20, "kubectl get node worker1", Has("SchedulingDisabled")),
    (
        20,
        "kubectl get nodes --field-selector spec.unschedulable=true -o name",
        Is("node/worker1"),
    ),
    (
        20,
        "kubectl uncordon worker1",
        Is("node/worker1 uncordoned"),
    ),
    (
        20,
        "kubectl taint node worker1 k=v:NoSchedule",
        Has("node/worker1 tainted"),
    ),
    (
        20,
        "kubectl taint node worker1 k=v:NoSchedule",
        Fails("already has k taint(s)"),
    ),
    (
        20,
        "kubectl taint node worker1 k-",
        Has("node/worker1 untainted"),
    ),
    (
        20,
        "kubectl label node worker1 disk=fast",
        Has("node/worker1 labeled"),
    ),
    (
        20,
        "kubectl get nodes -l disk=fast -o name",
        Is("node/worker1"),
    ),
    (
        20,
        "kubectl drain worker1 --ignore-daemonsets --timeout=20s",
        Has("node/worker1 drained"),
    ),
    (
        20,
        "kubectl uncordon worker1",
        Is("node/worker1 uncordoned"),
    ),
];
