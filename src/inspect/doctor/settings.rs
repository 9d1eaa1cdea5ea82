//! Settings of the kernel's that cost start-up time, speed or exactness. Each has its source.

use std::ops::Range;

use super::{Finding, Grade, Host};

/// Linux's own default on x86 (arch/x86/include/asm/kvm_host.h, KVM_HALT_POLL_NS_DEFAULT).
const HALT_POLL_NS: u64 = 200_000;

/// A setting with a value that costs something.
struct Setting {
    topic: &'static str,
    file: &'static str,
    /// The values that cost.
    bad: &'static [&'static str],
    cost: &'static str,
    advice: &'static str,
}

const SETTINGS: &[Setting] = &[
    // Linux, Documentation/admin-guide/kernel-parameters.txt, kvm.ignore_msrs
    Setting {
        topic: "ignore_msrs",
        file: "/sys/module/kvm/parameters/ignore_msrs",
        bad: &["Y", "1"],
        cost: "guests read 0 from an unknown MSR instead of getting #GP, and the report counts none",
        advice: "echo N | sudo tee /sys/module/kvm/parameters/ignore_msrs",
    },
    // The same, kvm.enable_virt_at_load
    Setting {
        topic: "enable_virt_at_load",
        file: "/sys/module/kvm/parameters/enable_virt_at_load",
        bad: &["N", "0"],
        cost: "virtualisation is switched on, on every processor, when the first VM is made",
        advice: "unless VirtualBox or the like needs it off, boot with kvm.enable_virt_at_load=1",
    },
    // The same, kvm-intel.ept
    Setting {
        topic: "ept",
        file: "/sys/module/kvm_intel/parameters/ept",
        bad: &["N", "0"],
        cost: "shadow page tables: each change of a guest's page tables is an exit",
        advice: "load kvm_intel without ept=0; a processor without EPT is older than 2008",
    },
    // The same, kvm-amd.npt
    Setting {
        topic: "npt",
        file: "/sys/module/kvm_amd/parameters/npt",
        bad: &["N", "0"],
        cost: "shadow page tables: each change of a guest's page tables is an exit",
        advice: "load kvm_amd without npt=0",
    },
    // The same, kvm-intel.unrestricted_guest
    Setting {
        topic: "unrestricted_guest",
        file: "/sys/module/kvm_intel/parameters/unrestricted_guest",
        bad: &["N", "0"],
        cost: "real mode is emulated, instruction by instruction where a segment is unusual",
        advice: "load kvm_intel without unrestricted_guest=0 and ept=0",
    },
    // Linux, Documentation/admin-guide/hw-vuln/l1tf.rst, "Mitigation control for KVM"
    Setting {
        topic: "vmentry_l1d_flush",
        file: "/sys/module/kvm_intel/parameters/vmentry_l1d_flush",
        bad: &["always"],
        cost: "the L1 data cache is flushed at every entry into a guest",
        advice: "the kernel's default is cond; change it only if its administrators agree",
    },
    // Linux, Documentation/mm/overcommit-accounting.rst
    Setting {
        topic: "overcommit",
        file: "/proc/sys/vm/overcommit_memory",
        bad: &["2"],
        cost: "all of a guest's memory counts when it starts, touched or not: large guests are refused",
        advice: "sudo sysctl vm.overcommit_memory=0, or give guests no more than they need",
    },
];

pub(super) fn check(host: &Host) -> Vec<Finding> {
    let simple = SETTINGS.iter().filter_map(|setting| {
        let value = host.text(setting.file)?;
        let cost = setting.bad.contains(&&*value).then_some(setting.cost)?;
        let found = format!("{} is {value}: {cost}", setting.file);
        Some(Finding::new(setting.topic, Grade::Costs, found).advise(setting.advice))
    });
    let mut findings: Vec<_> =
        simple.chain(huge_page_recovery(host)).chain(halt_polling(host)).collect();
    if findings.is_empty() && host.exists("/sys/module/kvm") {
        findings.push(Finding::good("settings", "none that is known to cost anything"));
    }
    findings
}

/// For the mitigation of iTLB multihit every VM gets a kernel thread, which joins the
/// caller's cgroups; that waits for a grace period, some milliseconds, from Linux 6.1 until
/// 6.13 made it a task that is born in them.
/// (Linux, Documentation/admin-guide/hw-vuln/multihit.rst, and vhost_task_create in
/// arch/x86/kvm/mmu/mmu.c; Firecracker, docs/prod-host-setup.md, "Linux 6.1 boot time
/// regressions".)
fn huge_page_recovery(host: &Host) -> Option<Finding> {
    const FILE: &str = "/sys/module/kvm/parameters/nx_huge_pages";
    const COSTLY: Range<(u32, u32)> = (6, 1)..(6, 13);
    let is_hardware =
        ["kvm_intel", "kvm_amd"].iter().any(|m| host.exists(&format!("/sys/module/{m}")));
    let value = host.text(FILE)?;
    if !is_hardware || value == "never" || !COSTLY.contains(&host.kernel()) || waits_little(host) {
        return None;
    }
    let affected = host.text("/sys/devices/system/cpu/vulnerabilities/itlb_multihit");
    let found = format!(
        "{FILE} is {value}: making a VM starts a thread, and waits for it to join its cgroups"
    );
    let finding = Finding::new("nx_huge_pages", Grade::Costs, found);
    // "never" exists since Linux 6.5, and can be set while there is no VM.
    Some(match affected.as_deref() {
        Some("Not affected") if host.kernel() >= (6, 5) => finding
            .advise(format!("this processor needs no such thread: echo never | sudo tee {FILE}")),
        _ => finding.advise("sudo mount -o remount,favordynmods /sys/fs/cgroup"),
    })
}

/// With favordynmods a change of cgroups does not wait for a grace period
/// (Linux, Documentation/admin-guide/cgroup-v2.rst).
fn waits_little(host: &Host) -> bool {
    let mounts = host.text("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.contains(" cgroup2 ") && line.contains("favordynmods"))
}

/// Linux, Documentation/virt/kvm/halt-polling.rst: a large value drives an idle host's
/// processors towards 100 %.
fn halt_polling(host: &Host) -> Option<Finding> {
    const FILE: &str = "/sys/module/kvm/parameters/halt_poll_ns";
    let value = host.number(FILE).filter(|value| *value > HALT_POLL_NS)?;
    let found = format!("{FILE} is {value}: a guest that idles keeps a processor busy for so long");
    let advice = format!("echo {HALT_POLL_NS} | sudo tee {FILE}");
    Some(Finding::new("halt_poll_ns", Grade::Costs, found).advise(advice))
}
