//! What a host has for guests beside KVM: huge pages, interfaces, devices, limits.

use std::io;
use std::path::Path;

use super::{Finding, Grade, Host};

pub(super) fn check(host: &Host) -> Vec<Finding> {
    let mut findings = vec![huge_pages(host)];
    findings.extend(NODES.iter().map(|node| node.check(host)));
    findings.extend([userfaultfd(host), iommu(host), vfio(host), locked_memory(host)]);
    findings
}

fn missing(topic: &'static str, found: impl Into<String>) -> Finding {
    Finding::new(topic, Grade::Missing, found)
}

/// A guest's memory is a memfd: whether huge pages back it is for shmem_enabled to say
/// (Linux, Documentation/admin-guide/mm/transhuge.rst).
fn huge_pages(host: &Host) -> Finding {
    const FILE: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
    let count = |what: &str| host.number(&format!("{POOL}/{what}")).unwrap_or(0);
    let pool = format!(
        "{} of {} reserved 2 MiB pages are free",
        count("free_hugepages"),
        count("nr_hugepages")
    );
    let Some(modes) = host.text(FILE) else {
        return missing("huge-pages", format!("this kernel has none for shared memory; {pool}"));
    };
    let chosen =
        modes.split_whitespace().find_map(|mode| mode.strip_prefix('[')?.strip_suffix(']'));
    match chosen.unwrap_or("unknown") {
        mode @ ("always" | "within_size" | "force") => {
            Finding::good("huge-pages", format!("{FILE} is {mode}; {pool}"))
        }
        mode => missing(
            "huge-pages",
            format!("{FILE} is {mode}: a guest's memory is touched 4 KiB at a time; {pool}"),
        )
        .advise(format!("for guests that touch much memory: echo within_size | sudo tee {FILE}")),
    }
}

/// A device node that a kernel module makes.
struct Node {
    topic: &'static str,
    path: &'static str,
    module: &'static str,
    gives: &'static str,
}

const NODES: &[Node] = &[
    Node { topic: "tun", path: "/dev/net/tun", module: "tun", gives: "tap network interfaces" },
    Node {
        topic: "vhost-net",
        path: "/dev/vhost-net",
        module: "vhost_net",
        gives: "network queues that the kernel serves",
    },
    Node {
        topic: "vhost-vsock",
        path: "/dev/vhost-vsock",
        module: "vhost_vsock",
        gives: "sockets between host and guest",
    },
];

impl Node {
    fn check(&self, host: &Host) -> Finding {
        let Self { topic, path, module, gives } = *self;
        match host.open(path) {
            Ok(()) => Finding::good(topic, format!("{path} can be opened: {gives}")),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                let kept = host.kept(&e, Path::new(path)).map(|(_, advice)| advice);
                missing(topic, format!("you may not open {path}: no {gives}"))
                    .advise(kept.unwrap_or_else(|| format!("sudo setfacl -m u:$USER:rw {path}")))
            }
            // Without a driver the node may be there all the same (ENODEV, ENXIO).
            Err(_) if host.is_container() => missing(topic, format!("no {path}: no {gives}"))
                .advise(format!(
                    "sudo modprobe {module} on the host, and start the container with --device {path}"
                )),
            Err(_) => missing(topic, format!("no {path}: no {gives}"))
                .advise(format!("sudo modprobe {module}")),
        }
    }
}

/// Three ways to serve a guest's page faults (userfaultfd(2)): the device node, the
/// setting, CAP_SYS_PTRACE.
fn userfaultfd(host: &Host) -> Finding {
    const SETTING: &str = "vm.unprivileged_userfaultfd";
    const CAP_SYS_PTRACE: u32 = 19;
    let effective = host.status("CapEff").and_then(|text| u64::from_str_radix(&text, 16).ok());
    let by = if host.open("/dev/userfaultfd").is_ok() {
        "/dev/userfaultfd can be opened".to_owned()
    } else if host.number("/proc/sys/vm/unprivileged_userfaultfd") == Some(1) {
        format!("{SETTING} is 1")
    } else if effective.is_some_and(|set| set >> CAP_SYS_PTRACE & 1 == 1) {
        "CAP_SYS_PTRACE is there".to_owned()
    } else {
        return missing(
            "userfaultfd",
            "not allowed: page faults of guests in kernel code cannot be served",
        )
        .advise(format!(
            "sudo setfacl -m u:$USER:rw /dev/userfaultfd, or sudo sysctl {SETTING}=1"
        ));
    };
    Finding::good("userfaultfd", format!("allowed: {by}"))
}

/// Linux, Documentation/driver-api/vfio.rst: a device is passed through by its group.
fn iommu(host: &Host) -> Finding {
    let groups = host.entries("/sys/kernel/iommu_groups").len();
    if groups > 0 {
        return Finding::good("iommu", format!("on, with {groups} groups"));
    }
    let finding = missing("iommu", "off: no device can be passed through to a guest");
    if host.cpu_has("hypervisor") {
        return finding.advise("this is a VM: its hypervisor would have to give it one");
    }
    finding.advise("turn it on in the firmware (VT-d, AMD-Vi), and boot with intel_iommu=on where the processor is Intel's")
}

fn vfio(host: &Host) -> Finding {
    if !host.exists("/dev/vfio/vfio") {
        return missing("vfio", "no /dev/vfio/vfio").advise("sudo modprobe vfio-pci");
    }
    let groups = host.entries("/dev/vfio");
    let groups = groups.iter().filter_map(|path| path.file_name()?.to_str()?.parse::<u32>().ok());
    let (mut open, mut used, mut closed) = (vec![], vec![], vec![]);
    for group in groups {
        match host.open(format!("/dev/vfio/{group}")) {
            Ok(()) => open.push(group),
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => used.push(group),
            Err(_) => closed.push(group),
        }
    }
    match (&*open, &*used, &*closed) {
        ([], [], []) => missing("vfio", "no device is bound to vfio-pci").advise(
            "echo vfio-pci | sudo tee /sys/bus/pci/devices/ADDRESS/driver_override, and rebind it",
        ),
        ([], [], closed) => missing("vfio", format!("you may not open the groups {closed:?}"))
            .advise("sudo chown $USER /dev/vfio/GROUP"),
        // A group is one program's at a time.
        ([], used, _) => missing("vfio", format!("the groups {used:?} are in use")),
        (open, ..) => Finding::good("vfio", format!("the groups {open:?} can be opened")),
    }
}

/// Devices that are passed through need all of the guest's memory locked; nothing else does.
fn locked_memory(host: &Host) -> Finding {
    const ENOUGH: u64 = 1 << 30;
    let text = host.text("/proc/self/limits").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    match line.and_then(|line| line.split_whitespace().next()) {
        Some("unlimited") => Finding::good("memlock", "no limit on locked memory"),
        Some(soft) => match soft.parse::<u64>() {
            Ok(bytes) if bytes >= ENOUGH => {
                Finding::good("memlock", format!("{} MiB may be locked", bytes >> 20))
            }
            _ => missing("memlock", format!("{soft} bytes may be locked: too few for a guest with a device passed through, which locks all of its memory"))
                .advise("ulimit -l unlimited as root, or a line in /etc/security/limits.conf: USER - memlock unlimited"),
        },
        None => missing("memlock", "the limit on locked memory is unknown"),
    }
}
