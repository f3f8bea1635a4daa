//! What KubeVirt can do for a machine and plain hosts can't: refused as KubeVirt refuses it where the
//! feature, or what it needs of the guest, isn't there.

use godwit_apimachinery::{Status, Verb};

use crate::kinds::KUBEVIRT;

/// One path, and what is answered there.
pub(super) struct Refusal {
    /// Resource and subresource.
    pub(super) name: &'static str,
    pub(super) verb: Verb,
    why: Why,
}

enum Why {
    /// 400: the cluster, or the machine as it is described, doesn't have it.
    Absent(&'static str),
    /// 409: the guest would have to help.
    Guest(&'static str),
}

const NO_AGENT: Why = Why::Guest("VMI does not have guest agent connected");

const fn put(name: &'static str, why: Why) -> Refusal {
    Refusal {
        name,
        verb: Verb::Update,
        why,
    }
}

const fn get(name: &'static str, why: Why) -> Refusal {
    Refusal {
        name,
        verb: Verb::Get,
        why,
    }
}

/// In KubeVirt's order.
pub(super) static REFUSALS: [Refusal; 24] = [
    put("virtualmachines/addvolume", HOTPLUG_ADD),
    put("virtualmachines/removevolume", HOTPLUG_REMOVE),
    put("virtualmachines/memorydump", DUMP),
    put("virtualmachines/removememorydump", DUMP),
    get("virtualmachines/objectgraph", GRAPH),
    get("virtualmachines/portforward", PORTS),
    put("virtualmachineinstances/addvolume", HOTPLUG_ADD),
    put("virtualmachineinstances/removevolume", HOTPLUG_REMOVE),
    put("virtualmachineinstances/freeze", NO_AGENT),
    put("virtualmachineinstances/unfreeze", NO_AGENT),
    put(
        "virtualmachineinstances/softreboot",
        Why::Guest("VMI neither have the agent connected nor the ACPI feature enabled"),
    ),
    put(
        "virtualmachineinstances/reset",
        Why::Absent("reset is not supported on plain hosts"),
    ),
    put(
        "virtualmachineinstances/backup",
        Why::Absent("IncrementalBackup feature gate is not enabled"),
    ),
    get(
        "virtualmachineinstances/console",
        Why::Absent("No serial consoles are present."),
    ),
    get(
        "virtualmachineinstances/vnc",
        Why::Absent("No graphics devices are present."),
    ),
    get(
        "virtualmachineinstances/usbredir",
        Why::Absent("Not configured with USB Redirection"),
    ),
    get("virtualmachineinstances/portforward", PORTS),
    get(
        "virtualmachineinstances/vsock",
        Why::Absent("VSOCK feature gate is not enabled"),
    ),
    get("virtualmachineinstances/guestosinfo", NO_AGENT),
    get("virtualmachineinstances/userlist", NO_AGENT),
    get("virtualmachineinstances/filesystemlist", NO_AGENT),
    get("virtualmachineinstances/objectgraph", GRAPH),
    put("virtualmachineinstances/sev/setupsession", SEV),
    get("virtualmachineinstances/sev/fetchcertchain", SEV),
];

const HOTPLUG_ADD: Why =
    Why::Absent("Unable to Add Volume because HotplugVolumes feature gate is not enabled.");
const HOTPLUG_REMOVE: Why =
    Why::Absent("Unable to Remove Volume because HotplugVolumes feature gate is not enabled.");
const DUMP: Why =
    Why::Absent("Unable to memory dump because HotplugVolumes feature gate is not enabled.");
const GRAPH: Why = Why::Absent("ObjectGraph feature gate is not enabled");
const PORTS: Why = Why::Absent("port forwarding is not supported on plain hosts");
const SEV: Why = Why::Absent("WorkloadEncryptionSEV feature gate is not enabled");

impl Refusal {
    /// The answer about the machine `name`.
    pub(super) fn status(&self, name: &str) -> Status {
        match self.why {
            Why::Absent(text) => Status::bad_request(text),
            Why::Guest(text) => Status::conflict(KUBEVIRT, "virtualmachineinstance", name, text),
        }
    }
}
