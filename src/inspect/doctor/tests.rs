//! Made-up hosts: each a tree of files, and device nodes that open or do not.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::*;
use crate::kvm::CAPABILITIES;

struct Tree(PathBuf);

impl Tree {
    fn new(files: &[(&str, &str)]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("ringfence-doctor-{}-{number}", std::process::id());
        let tree = Self(std::env::temp_dir().join(name));
        for (path, text) in files {
            let path = tree.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        tree
    }

    /// A host on which whoever asks may open what is there.
    fn host(&self) -> Host {
        Host::new(&self.0, |path| path.metadata().map(drop))
    }

    /// One on which nothing opens.
    fn closed(&self) -> Host {
        Host::new(&self.0, |path| {
            path.metadata()?;
            Err(ErrorKind::PermissionDenied.into())
        })
    }
}

/// One whose device nodes answer with an error of the kernel's.
fn answering<const ERRNO: i32>(tree: &Tree) -> Host {
    Host::new(&tree.0, |path| {
        path.metadata()?;
        Err(io::Error::from_raw_os_error(ERRNO))
    })
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const INTEL: &[(&str, &str)] = &[
    ("dev/kvm", ""),
    ("proc/cpuinfo", "processor : 0\nflags\t\t: fpu vmx sse\n"),
    ("proc/sys/kernel/osrelease", "6.12.9-amd64\n"),
    ("sys/module/kvm/version", ""),
    ("sys/module/kvm_intel/parameters/nested", "Y\n"),
    ("sys/module/kvm_intel/parameters/ept", "Y\n"),
];

fn with(more: &[(&str, &str)]) -> Tree {
    Tree::new(&[INTEL, more].concat())
}

fn everything() -> Result<Offer, kvm::Error> {
    let capabilities = CAPABILITIES.iter().map(|cap| (*cap, 1)).collect();
    Ok(Offer { capabilities, vm_took: Duration::from_micros(200) })
}

fn look(host: &Host) -> Examination {
    examine(host, Path::new("/dev/kvm"), everything())
}

#[track_caller]
fn finding<'f>(found: &'f Examination, topic: &str) -> &'f Finding {
    let finding = found.findings.iter().find(|finding| finding.topic == topic);
    finding.unwrap_or_else(|| panic!("nothing on {topic}: {found:#?}"))
}

#[track_caller]
fn assert_says(found: &Examination, topic: &str, grade: Grade, found_words: &str, advice: &str) {
    let finding = finding(found, topic);
    assert_eq!(finding.grade, grade, "{finding:?}");
    assert!(finding.found.contains(found_words), "{finding:?}");
    let given = finding.advice.as_deref().unwrap_or_default();
    assert!(given.contains(advice) && given.is_empty() == advice.is_empty(), "{finding:?}");
}

#[test]
fn a_host_as_it_should_be() {
    let found = look(&with(&[]).host());
    assert!(found.usable);
    assert_eq!(found.backend, "kvm_intel");
    assert_says(&found, "kvm", Grade::Good, "/dev/kvm can be opened", "");
    assert_says(&found, "backend", Grade::Good, "guests may use it too (nested)", "");
    assert_says(&found, "vm", Grade::Good, "200.0µs", "");
    assert_says(&found, "capabilities", Grade::Good, "all", "");
    assert_says(&found, "settings", Grade::Good, "none", "");
    assert_eq!(found.capabilities.len(), CAPABILITIES.len());
}

#[test]
fn every_reason_why_there_is_no_device() {
    let vmx = "flags : vmx\n";
    for (files, words, advice) in [
        (&[("proc/cpuinfo", vmx)][..], "kvm_intel is not loaded", "sudo modprobe kvm_intel"),
        (&[("proc/cpuinfo", "flags : svm\n")], "kvm_amd is not loaded", "turn AMD-V on"),
        (&[("proc/cpuinfo", "flags : sse hypervisor\n")], "without nested", "nested=1"),
        (&[("proc/cpuinfo", "flags : sse xsvm\n")], "neither VT-x nor AMD-V", "firmware"),
        (&[], "neither VT-x nor AMD-V", "scripts/rig"),
        (
            &[("proc/cpuinfo", vmx), ("sys/module/kvm_intel/x", ""), (".dockerenv", "")],
            "this container does not have it",
            "--device /dev/kvm",
        ),
        (&[("sys/module/kvm_amd/x", "")], "has no device node", "udevadm trigger"),
    ] {
        let found = look(&Tree::new(files).host());
        assert!(!found.usable && found.capabilities.is_empty());
        assert_says(&found, "kvm", Grade::Fatal, words, advice);
    }
}

#[test]
fn a_device_that_may_not_be_opened() {
    let tree = with(&[("etc/group", "root:x:0:\nkvm:x:GID:me\n")]);
    let device = tree.0.join("dev/kvm");
    let set_mode = |mode| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(&device, mode).unwrap();
    };
    let gid = std::os::unix::fs::MetadataExt::gid(&device.metadata().unwrap());
    fs::write(tree.0.join("etc/group"), format!("staff:x:4242:\nkvm:x:{gid}:me\n")).unwrap();
    set_mode(0o660);
    let found = look(&tree.closed());
    assert!(!found.usable);
    assert_says(&found, "kvm", Grade::Fatal, "mode is 660, its group kvm", "usermod -aG kvm $USER");
    set_mode(0o600);
    let found = look(&tree.closed());
    assert_says(&found, "kvm", Grade::Fatal, "mode is 600", "/etc/udev/rules.d/");
    assert!(!finding(&found, "kvm").advice.as_ref().unwrap().contains("usermod"));
    fs::write(tree.0.join(".dockerenv"), "").unwrap();
    set_mode(0o660);
    let advice = format!("--group-add {gid}");
    assert_says(&look(&tree.closed()), "kvm", Grade::Fatal, "mode is 660", &advice);
}

#[test]
fn a_device_that_a_cgroup_keeps() {
    let tree = with(&[("dev/net/tun", "")]);
    let kept = answering::<{ libc::EPERM }>(&tree);
    assert_says(&look(&kept), "kvm", Grade::Fatal, "device cgroup", "DeviceAllow=/dev/kvm rw");
    fs::write(tree.0.join(".dockerenv"), "").unwrap();
    assert_says(&look(&kept), "kvm", Grade::Fatal, "device cgroup", "--device /dev/kvm;");
    assert_says(&look(&kept), "tun", Grade::Missing, "you may not", "--device /dev/net/tun");
    let found = look(&answering::<{ libc::EACCES }>(&tree));
    assert!(!finding(&found, "kvm").found.contains("cgroup"));
}

#[test]
fn kinds_of_kvm() {
    let nested = with(&[("proc/cpuinfo", "flags : vmx hypervisor\n")]);
    assert_says(&look(&nested.host()), "backend", Grade::Costs, "a VM itself", "");
    let soft = Tree::new(&[("dev/kvm", ""), ("sys/module/kvm_pvm/x", "")]);
    let found = look(&soft.host());
    assert_says(&found, "backend", Grade::Costs, "a software KVM", "scripts/rig amd");
    assert_eq!((found.backend, found.usable), ("kvm_pvm", true));
    let unknown = Tree::new(&[("dev/kvm", "")]);
    assert_says(&look(&unknown.host()), "backend", Grade::Costs, "unknown kind", "");
}

#[test]
fn what_kvm_does_not_offer() {
    let tree = with(&[]);
    let without = |name: &str| {
        let mut offer = everything().unwrap();
        offer.capabilities.iter_mut().find(|(cap, _)| cap.name == name).unwrap().1 = 0;
        examine(&tree.host(), Path::new("/dev/kvm"), Ok(offer))
    };
    let found = without("KVM_CAP_SPLIT_IRQCHIP");
    assert!(found.usable);
    assert_says(&found, "capabilities", Grade::Costs, "no --irqchip split", "a newer one");
    let found = without("KVM_CAP_SYNC_REGS");
    assert!(!found.usable);
    assert_says(&found, "capabilities", Grade::Fatal, "KVM_CAP_SYNC_REGS", "a newer one");
    let advice = "stop the other hypervisor";
    let busy = kvm::Error::CreateVm { advice, source: io::Error::from_raw_os_error(libc::EBUSY) };
    let found = examine(&tree.host(), Path::new("/dev/kvm"), Err(busy));
    assert!(!found.usable);
    assert_says(&found, "vm", Grade::Fatal, advice, "");
}

#[test]
fn settings_that_cost() {
    const KVM: &str = "sys/module/kvm/parameters";
    for (topic, file, value, advice) in [
        ("ignore_msrs", format!("{KVM}/ignore_msrs"), "Y", "echo N"),
        ("enable_virt_at_load", format!("{KVM}/enable_virt_at_load"), "N", "=1"),
        ("halt_poll_ns", format!("{KVM}/halt_poll_ns"), "900000", "echo 200000"),
        ("ept", "sys/module/kvm_intel/parameters/ept".to_owned(), "N", "ept=0"),
        ("npt", "sys/module/kvm_amd/parameters/npt".to_owned(), "0", "npt=0"),
        ("overcommit", "proc/sys/vm/overcommit_memory".to_owned(), "2", "sysctl"),
        (
            "unrestricted_guest",
            "sys/module/kvm_intel/parameters/unrestricted_guest".to_owned(),
            "N",
            "unrestricted_guest=0",
        ),
        (
            "vmentry_l1d_flush",
            "sys/module/kvm_intel/parameters/vmentry_l1d_flush".to_owned(),
            "always",
            "cond",
        ),
    ] {
        let found = look(&with(&[(&*file, &format!("{value}\n"))]).host());
        assert!(found.usable);
        assert_says(&found, topic, Grade::Costs, value, advice);
        assert!(found.findings.iter().all(|finding| finding.topic != "settings"));
        // The values that cost nothing.
        let free = match value {
            "Y" => "N",
            "N" | "0" => "Y",
            "2" => "1",
            "always" => "cond",
            _ => "200000",
        };
        let found = look(&with(&[(&*file, free)]).host());
        assert!(found.findings.iter().all(|finding| finding.topic != topic), "{topic} {free}");
    }
}

#[test]
fn the_thread_of_every_vm() {
    const SETTING: (&str, &str) = ("sys/module/kvm/parameters/nx_huge_pages", "Y");
    const PROCESSOR: &str = "sys/devices/system/cpu/vulnerabilities/itlb_multihit";
    let affected = (PROCESSOR, "KVM: Mitigation: Split huge pages");
    let safe = (PROCESSOR, "Not affected\n");
    let old = ("proc/sys/kernel/osrelease", "6.1.0-18-amd64");
    let topic = "nx_huge_pages";
    let advises = |files: &[(&str, &str)], advice| {
        assert_says(&look(&with(files).host()), topic, Grade::Costs, "starts a thread", advice);
    };
    advises(&[SETTING, safe], "echo never");
    advises(&[SETTING, affected], "remount,favordynmods");
    advises(&[SETTING, safe, old], "remount,favordynmods");
    let mounted = ("proc/self/mounts", "cgroup2 /sys/fs/cgroup cgroup2 rw,favordynmods 0 0\n");
    let newer = ("proc/sys/kernel/osrelease", "6.13.0");
    let older = ("proc/sys/kernel/osrelease", "5.10.0-28-amd64");
    for quiet in [
        &[("sys/module/kvm/parameters/nx_huge_pages", "never")][..],
        &[SETTING, safe, mounted],
        &[SETTING, older],
        &[SETTING, newer],
    ] {
        let found = look(&with(quiet).host());
        assert!(found.findings.iter().all(|finding| finding.topic != topic), "{quiet:?}");
    }
}

#[test]
fn what_a_host_has_beside_kvm() {
    const SHMEM: &str = "sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let bare = look(&with(&[]).host());
    for (topic, words, advice) in [
        ("huge-pages", "0 of 0", ""),
        ("tun", "no /dev/net/tun", "modprobe tun"),
        ("vhost-net", "no /dev/vhost-net", "modprobe vhost_net"),
        ("vhost-vsock", "no /dev/vhost-vsock", "modprobe vhost_vsock"),
        ("userfaultfd", "not allowed", "unprivileged_userfaultfd=1"),
        ("iommu", "off", "intel_iommu=on"),
        ("vfio", "no /dev/vfio/vfio", "modprobe vfio-pci"),
        ("memlock", "unknown", ""),
    ] {
        assert_says(&bare, topic, Grade::Missing, words, advice);
    }
    assert!(bare.usable);
    let limits =
        "Max open files  1024  4096  files\nMax locked memory  unlimited  unlimited  bytes\n";
    let rich = look(
        &with(&[
            (SHMEM, "always [within_size] advise never deny force\n"),
            ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "8\n"),
            ("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "6\n"),
            ("dev/net/tun", ""),
            ("dev/vhost-net", ""),
            ("dev/vhost-vsock", ""),
            ("proc/self/status", "Name:\tx\nCapEff:\t0000000000080000\n"),
            ("sys/kernel/iommu_groups/0/type", ""),
            ("sys/kernel/iommu_groups/1/type", ""),
            ("dev/vfio/vfio", ""),
            ("dev/vfio/12", ""),
            ("proc/self/limits", limits),
        ])
        .host(),
    );
    for (topic, words) in [
        ("huge-pages", "within_size; 6 of 8"),
        ("tun", "can be opened"),
        ("vhost-net", "can be opened"),
        ("vhost-vsock", "can be opened"),
        ("userfaultfd", "CAP_SYS_PTRACE"),
        ("iommu", "2 groups"),
        ("vfio", "[12] can be opened"),
        ("memlock", "no limit"),
    ] {
        assert_says(&rich, topic, Grade::Good, words, "");
    }
}

#[test]
fn halves_of_what_a_guest_may_need() {
    let limit = |value: &str| format!("Max locked memory         {value}  {value}  bytes\n");
    let found = look(&with(&[("proc/self/limits", &limit("8388608"))]).host());
    assert_says(&found, "memlock", Grade::Missing, "8388608 bytes", "memlock unlimited");
    let found = look(&with(&[("proc/self/limits", &limit("2147483648"))]).host());
    assert_says(&found, "memlock", Grade::Good, "2048 MiB", "");
    let never = ("sys/kernel/mm/transparent_hugepage/shmem_enabled", "always advise [never]");
    assert_says(&look(&with(&[never]).host()), "huge-pages", Grade::Missing, "is never", "echo");
    let unbound = with(&[("dev/vfio/vfio", "")]);
    assert_says(&look(&unbound.host()), "vfio", Grade::Missing, "bound", "driver_override");
    let closed = with(&[("dev/vfio/vfio", ""), ("dev/vfio/7", ""), ("dev/net/tun", "")]);
    assert_says(&look(&closed.closed()), "vfio", Grade::Missing, "groups [7]", "chown");
    let used = answering::<{ libc::EBUSY }>(&closed);
    assert_says(&look(&used), "vfio", Grade::Missing, "groups [7] are in use", "");
    assert_says(&look(&closed.closed()), "tun", Grade::Missing, "you may not open", "setfacl");
    let setting = with(&[("proc/sys/vm/unprivileged_userfaultfd", "1\n")]);
    assert_says(&look(&setting.closed()), "userfaultfd", Grade::Good, "is 1", "");
}
