"""openshift-python-wrapper, with which OpenShift Virtualization is tested, against a running lab."""

import os
import unittest

import yaml
from ocp_resources.namespace import Namespace
from ocp_resources.node import Node
from ocp_resources.node_maintenance import NodeMaintenance
from ocp_resources.resource import get_client
from ocp_resources.virtual_machine import VirtualMachine
from ocp_resources.virtual_machine_instance import VirtualMachineInstance
from ocp_resources.virtual_machine_instance_migration import VirtualMachineInstanceMigration

# What the wrapper calls the machine's own status words.
RUNNING = VirtualMachine.Status.RUNNING
LAB = {"name": "rhel8-server-nfs", "namespace": "default"}


def machine(name):
    """The lab's machine under another name, with a disk and an address of its own."""
    with open(os.environ["MACHINE"], encoding="utf-8") as file:
        body = yaml.safe_load(file)
    body["metadata"]["name"] = name
    body["metadata"]["namespace"] = "default"
    return body


class Wrapper(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.client = get_client()

    def lab(self):
        return VirtualMachineInstance(client=self.client, **LAB)

    def test_a_migration_moves_the_machine(self):
        before = self.lab().get_node(privileged_client=self.client).name
        with VirtualMachineInstanceMigration(
                client=self.client, name="wrapper-move", namespace="default",
                vmi_name=LAB["name"]) as migration:
            migration.wait_for_status(status=migration.Status.SUCCEEDED, timeout=60)
            self.assertEqual(migration.vmi_name, LAB["name"])
        self.assertFalse(migration.exists)
        after = self.lab()
        self.assertNotEqual(after.get_node(privileged_client=self.client).name, before)
        self.assertEqual(after.status, RUNNING)

    def test_a_machine_is_made_stopped_started_and_restarted(self):
        with VirtualMachine(client=self.client, name="wrapped", namespace="default",
                            kind_dict=machine("wrapped")) as vm:
            vm.vmi.wait_until_running(timeout=60, logs=False)
            first = vm.vmi.instance.metadata.uid
            self.assertTrue(vm.ready)
            self.assertEqual(vm.printable_status, RUNNING)
            pod = vm.vmi.get_virt_launcher_pod(privileged_client=self.client)
            self.assertEqual(pod.instance.spec.nodeName, vm.vmi.get_node(privileged_client=self.client).name)
            vm.vmi.pause()
            vm.vmi.wait_for_vmi_condition_pause_status(pause=True, timeout=20)
            vm.vmi.unpause()
            vm.vmi.wait_for_vmi_condition_pause_status(pause=False, timeout=20)
            vm.restart(wait=True, timeout=60)
            self.assertNotEqual(vm.vmi.instance.metadata.uid, first)
            vm.stop(wait=True, timeout=60)
            self.assertFalse(vm.ready)
            vm.start(wait=True, timeout=60)
            vm.vmi.wait_until_running(timeout=60, logs=False)
        self.assertFalse(vm.exists)

    def test_maintenance_empties_the_node(self):
        node = Node(client=self.client, name=self.lab().get_node(privileged_client=self.client).name)
        with NodeMaintenance(client=self.client, name="wrapper-maintenance", node=node,
                             reason="the wrapper") as maintenance:
            maintenance.wait_for_status(status=maintenance.Status.SUCCEEDED, timeout=60)
            self.assertTrue(node.instance.spec.unschedulable)
            self.assertNotEqual(self.lab().get_node(privileged_client=self.client).name, node.name)
        self.assertFalse(node.instance.spec.get("unschedulable", False))
        self.assertTrue(node.kubelet_ready)

    def test_namespaces_come_and_go(self):
        with Namespace(client=self.client, name="wrapped") as namespace:
            namespace.wait_for_status(status=Namespace.Status.ACTIVE, timeout=10)
        self.assertFalse(namespace.exists)


if __name__ == "__main__":
    unittest.main(verbosity=2)
