"""The Python client of Kubernetes against a running lab: typed, custom and dynamic objects."""

import base64
import threading
import time
import unittest

from kubernetes import client, config, dynamic, watch
from kubernetes.client.rest import ApiException

GROUP, VERSION = "kubevirt.io", "v1"
VMI = "rhel8-server-nfs"


class Typed(unittest.TestCase):
    def setUp(self):
        self.core = client.CoreV1Api()

    def test_nodes_and_namespaces_are_read(self):
        nodes = self.core.list_node().items
        self.assertGreaterEqual(len(nodes), 2)
        ready = [c for c in nodes[0].status.conditions if c.type == "Ready"]
        self.assertEqual(ready[0].status, "True")
        self.assertIn("default", [n.metadata.name for n in self.core.list_namespace().items])

    def test_config_maps_are_made_patched_replaced_and_deleted(self):
        body = client.V1ConfigMap(metadata=client.V1ObjectMeta(generate_name="py-"), data={"a": "1"})
        made = self.core.create_namespaced_config_map("default", body)
        name = made.metadata.name
        self.assertTrue(name.startswith("py-"))
        patched = self.core.patch_namespaced_config_map(name, "default", {"data": {"b": "2"}})
        self.assertEqual(patched.data, {"a": "1", "b": "2"})
        made.data = {"c": "3"}
        with self.assertRaises(ApiException) as lost:
            self.core.replace_namespaced_config_map(name, "default", made)
        self.assertEqual(lost.exception.status, 409)
        patched.data = {"c": "3"}
        self.core.replace_namespaced_config_map(name, "default", patched)
        dry = self.core.delete_namespaced_config_map(name, "default", dry_run="All")
        self.assertEqual(dry.status, "Success")
        self.assertEqual(self.core.read_namespaced_config_map(name, "default").data, {"c": "3"})
        self.core.delete_namespaced_config_map(name, "default")
        with self.assertRaises(ApiException) as gone:
            self.core.read_namespaced_config_map(name, "default")
        self.assertEqual(gone.exception.status, 404)

    def test_secrets_come_back_in_base64(self):
        body = client.V1Secret(metadata=client.V1ObjectMeta(name="py-s"), string_data={"k": "v"})
        self.core.create_namespaced_secret("default", body)
        data = self.core.read_namespaced_secret("py-s", "default").data
        self.assertEqual(base64.b64decode(data["k"]), b"v")
        self.core.delete_namespaced_secret("py-s", "default")

    def test_lists_come_in_pages(self):
        for number in range(7):
            meta = client.V1ObjectMeta(name=f"page-{number}", labels={"page": "yes"})
            self.core.create_namespaced_config_map("default", client.V1ConfigMap(metadata=meta))
        seen, token = [], None
        while True:
            page = self.core.list_namespaced_config_map(
                "default", limit=3, _continue=token, label_selector="page=yes")
            seen += [item.metadata.name for item in page.items]
            token = page.metadata._continue
            if not token:
                break
        self.assertEqual(seen, [f"page-{n}" for n in range(7)])
        gone = self.core.delete_collection_namespaced_config_map("default", label_selector="page=yes")
        self.assertIsNotNone(gone)
        left = self.core.list_namespaced_config_map("default", label_selector="page=yes")
        self.assertEqual(left.items, [])

    def test_who_may_what_is_told(self):
        review = client.AuthorizationV1Api().create_self_subject_access_review(
            client.V1SelfSubjectAccessReview(spec=client.V1SelfSubjectAccessReviewSpec(
                resource_attributes=client.V1ResourceAttributes(
                    group=GROUP, resource="virtualmachineinstancemigrations",
                    verb="create", namespace="default"))))
        self.assertTrue(review.status.allowed)
        me = client.AuthenticationV1Api().create_self_subject_review(client.V1SelfSubjectReview())
        self.assertIn("system:authenticated", me.status.user_info.groups)

    def test_roles_are_made_and_read(self):
        rbac = client.RbacAuthorizationV1Api()
        rule = client.V1PolicyRule(api_groups=[GROUP], resources=["virtualmachines"], verbs=["get"])
        role = client.V1Role(metadata=client.V1ObjectMeta(name="py-role"), rules=[rule])
        rbac.create_namespaced_role("default", role)
        self.assertEqual(rbac.read_namespaced_role("py-role", "default").rules[0].verbs, ["get"])
        rbac.delete_namespaced_role("py-role", "default")
        self.assertIn("cluster-admin", [r.metadata.name for r in rbac.list_cluster_role().items])

    def test_a_watch_goes_on_after_the_server_ended_it(self):
        meta = client.V1ObjectMeta(name="watched", labels={"watched": "yes"})
        made = self.core.create_namespaced_config_map("default", client.V1ConfigMap(metadata=meta))
        seen, stop = [], threading.Event()

        def follow():
            revision = made.metadata.resource_version
            while not stop.is_set():
                stream = watch.Watch()
                for event in stream.stream(
                        self.core.list_namespaced_config_map, "default",
                        label_selector="watched=yes", resource_version=revision,
                        timeout_seconds=1):
                    seen.append((event["type"], (event["object"].data or {}).get("n")))
                    revision = event["object"].metadata.resource_version
                    if event["type"] == "DELETED":
                        stop.set()

        thread = threading.Thread(target=follow)
        thread.start()
        for number in range(8):
            self.core.patch_namespaced_config_map("watched", "default", {"data": {"n": str(number)}})
            time.sleep(0.4)  # the watch ends and begins again in between
        self.core.delete_namespaced_config_map("watched", "default")
        thread.join(20)
        self.assertFalse(thread.is_alive(), seen)
        expected = [("MODIFIED", str(n)) for n in range(8)] + [("DELETED", "7")]
        self.assertEqual(seen, expected)

    def test_an_old_revision_is_gone(self):
        with self.assertRaises(ApiException) as old:
            for _ in watch.Watch().stream(self.core.list_node, resource_version="1", timeout_seconds=2):
                pass
        self.assertEqual(old.exception.status, 410)


class Custom(unittest.TestCase):
    def setUp(self):
        self.api = client.CustomObjectsApi()

    def at(self, plural="virtualmachineinstances"):
        return GROUP, VERSION, "default", plural

    def test_an_instance_is_read_in_both_versions(self):
        found = self.api.get_namespaced_custom_object(*self.at(), VMI)
        self.assertEqual(found["status"]["phase"], "Running")
        old = self.api.get_namespaced_custom_object(GROUP, "v1alpha3", "default", self.at()[3], VMI)
        self.assertEqual(old["metadata"]["resourceVersion"], found["metadata"]["resourceVersion"])
        self.assertEqual(old["apiVersion"], "kubevirt.io/v1alpha3")

    def test_a_machine_moves_and_a_watch_sees_every_phase(self):
        before = self.api.get_namespaced_custom_object(*self.at(), VMI)["status"]["nodeName"]
        body = {
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
            "metadata": {"name": "py-move"}, "spec": {"vmiName": VMI},
        }
        plural = "virtualmachineinstancemigrations"
        made = self.api.create_namespaced_custom_object(*self.at(plural), body)
        phases = []
        for event in watch.Watch().stream(
                self.api.list_namespaced_custom_object, *self.at(plural),
                field_selector="metadata.name=py-move", timeout_seconds=60,
                resource_version=made["metadata"]["resourceVersion"]):
            phase = event["object"].get("status", {}).get("phase")
            if phase and phase not in phases:
                phases.append(phase)
            if phase in ("Succeeded", "Failed"):
                break
        self.assertEqual(phases[-1], "Succeeded", phases)
        self.assertEqual(phases[-4:-1], ["PreparingTarget", "TargetReady", "Running"], phases)
        after = self.api.get_namespaced_custom_object(*self.at(), VMI)
        self.assertNotEqual(after["status"]["nodeName"], before)
        self.assertTrue(after["status"]["migrationState"]["completed"])
        with self.assertRaises(ApiException) as again:
            self.api.create_namespaced_custom_object(*self.at(plural), body)
        self.assertEqual(again.exception.status, 409)
        self.api.delete_namespaced_custom_object(*self.at(plural), "py-move")

    def test_what_is_wrong_is_told_by_field(self):
        body = {
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
            "metadata": {"name": "py-nobody"}, "spec": {"vmiName": "nobody"},
        }
        with self.assertRaises(ApiException) as refused:
            self.api.create_namespaced_custom_object(
                *self.at("virtualmachineinstancemigrations"), body)
        self.assertIn('the VMI \\"default/nobody\\" does not exist', refused.exception.body)
        with self.assertRaises(ApiException) as unknown:
            self.api.create_namespaced_custom_object(
                *self.at("virtualmachines"), {
                    "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
                    "metadata": {"name": "py"},
                    "spec": {"runStrategy": "Sometimes",
                             "template": {"spec": {"domain": {"devices": {}}}}}})
        self.assertEqual(unknown.exception.status, 422)
        self.assertIn("spec.runStrategy", unknown.exception.body)

    def test_patches_of_both_types(self):
        self.api.patch_namespaced_custom_object(
            *self.at(), VMI, {"metadata": {"labels": {"py": "yes"}}})
        # This client sends merge patches of custom objects, unless it is told otherwise.
        path = "/apis/{}/{}/namespaces/{}/{}/{}".format(*self.at(), VMI)
        self.api.api_client.call_api(
            path, "PATCH", body=[{"op": "remove", "path": "/metadata/labels/py"}],
            header_params={"Content-Type": "application/json-patch+json"})
        found = self.api.get_namespaced_custom_object(*self.at(), VMI)
        self.assertNotIn("py", found["metadata"].get("labels", {}))


class Dynamic(unittest.TestCase):
    def setUp(self):
        self.client = dynamic.DynamicClient(client.ApiClient())

    def test_discovery_finds_every_kind(self):
        for kind, version in [
                ("VirtualMachine", "kubevirt.io/v1"),
                ("VirtualMachineInstanceMigration", "kubevirt.io/v1alpha3"),
                ("NodeMaintenance", "nodemaintenance.medik8s.io/v1beta1"),
                ("MigrationPolicy", "migrations.kubevirt.io/v1alpha1"),
                ("Pod", "v1")]:
            found = self.client.resources.get(api_version=version, kind=kind)
            self.assertEqual(found.kind, kind)

    def test_server_side_apply_has_owners_and_conflicts(self):
        maps = self.client.resources.get(api_version="v1", kind="ConfigMap")
        body = {"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": "py-applied", "namespace": "default"}, "data": {"k": "1"}}
        maps.server_side_apply(body=body, name="py-applied", field_manager="one")
        other = {**body, "data": {"k": "2"}}
        with self.assertRaises(ApiException) as conflict:
            maps.server_side_apply(body=other, name="py-applied", field_manager="two")
        self.assertEqual(conflict.exception.status, 409)
        maps.server_side_apply(
            body=other, name="py-applied", field_manager="two", force_conflicts=True)
        found = maps.get(name="py-applied", namespace="default")
        self.assertEqual(found.data.k, "2")
        maps.delete(name="py-applied", namespace="default")

    def test_a_watch_by_the_dynamic_client(self):
        nodes = self.client.resources.get(api_version="v1", kind="Node")
        names = [event["object"].metadata.name for event in nodes.watch(timeout=1)]
        self.assertIn("worker1", names)

    def test_a_subresource_pauses_and_continues(self):
        path = f"/apis/subresources.kubevirt.io/v1/namespaces/default/virtualmachineinstances/{VMI}"
        for verb, paused in (("pause", True), ("unpause", False)):
            answer = client.ApiClient().call_api(
                f"{path}/{verb}", "PUT", body={},
                header_params={"Content-Type": "application/json"}, _preload_content=False)
            self.assertEqual(answer[1], 200, verb)
            self.until_paused(paused)

    def until_paused(self, wanted):
        for _ in range(100):
            found = client.CustomObjectsApi().get_namespaced_custom_object(
                GROUP, VERSION, "default", "virtualmachineinstances", VMI)
            conditions = {c["type"]: c["status"] for c in found["status"]["conditions"]}
            if (conditions.get("Paused") == "True") == wanted:
                return
            time.sleep(0.1)
        self.fail(f"Paused doesn't become {wanted}")


if __name__ == "__main__":
    config.load_kube_config()
    unittest.main(verbosity=2)
