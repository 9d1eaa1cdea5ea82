//! KVM itself: its device node, what is behind it, what it offers.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Finding, Grade, Host};
use crate::kvm::{Backend, Offer};

const RIG: &str = "scripts/rig runs guests without any KVM, slowly";

/// Access for everybody, as CI machines need it; the rule of the README.
const UDEV_RULE: &str = "for every user (CI): echo 'KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0666\", OPTIONS+=\"static_node=kvm\"' | sudo tee /etc/udev/rules.d/99-kvm.rules; sudo udevadm control --reload-rules; sudo udevadm trigger --name-match=kvm";

/// The device node: can it be opened?
pub(super) fn check(host: &Host, device: &Path) -> Vec<Finding> {
    let name = device.display();
    let fatal = |found: String| Finding::new("kvm", Grade::Fatal, found);
    vec![match host.open(device) {
        Ok(()) => Finding::good("kvm", format!("{name} can be opened")),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            if device != Path::new("/dev/kvm") {
                return vec![fatal(format!("there is no {name}")).advise("leave out --kvm")];
            }
            let (why, advice) = absent(host);
            fatal(format!("there is no {name}: {why}")).advise(advice)
        }
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            let (why, advice) = host.kept(&e, device).unwrap_or_else(|| forbidden(host, device));
            fatal(format!("you may not open {name}: {why}")).advise(advice)
        }
        Err(e) => fatal(format!("{name} cannot be opened: {e}")).advise(module_advice(host)),
    }]
}

/// The processor's virtualisation: its flag in /proc/cpuinfo, its module, its name.
fn virtualisation(host: &Host) -> Option<(&'static str, &'static str)> {
    let known = [("vmx", "kvm_intel", "VT-x"), ("svm", "kvm_amd", "AMD-V")];
    let (_, module, name) = known.into_iter().find(|(flag, ..)| host.cpu_has(flag))?;
    Some((module, name))
}

fn module_advice(host: &Host) -> String {
    match virtualisation(host) {
        Some((module, name)) => format!(
            "sudo modprobe {module}; where that says \"not supported\", turn {name} on in the firmware"
        ),
        None => RIG.to_owned(),
    }
}

fn absent(host: &Host) -> (String, String) {
    let loaded = Backend::detect_in(&host.path("/sys"));
    if loaded != Backend::Unknown && host.is_container() {
        let why = format!("{} is loaded, but this container does not have it", loaded.name());
        return (why, "start the container with --device /dev/kvm".to_owned());
    }
    if loaded != Backend::Unknown {
        let why = format!("{} is loaded, but has no device node", loaded.name());
        return (why, "sudo udevadm trigger --name-match=kvm".to_owned());
    }
    match virtualisation(host) {
        Some((module, name)) => {
            (format!("the processor has {name}, but {module} is not loaded"), module_advice(host))
        }
        None if host.cpu_has("hypervisor") => (
            "this is a VM without nested virtualisation".to_owned(),
            format!(
                "turn it on in the host below (modprobe kvm_intel or kvm_amd nested=1, and give this VM the host's processor), or take a cloud machine that has it; else {RIG}"
            ),
        ),
        None => (
            "the processor shows neither VT-x nor AMD-V".to_owned(),
            format!("turn virtualisation on in the firmware (Intel VT-x, SVM); else {RIG}"),
        ),
    }
}

fn forbidden(host: &Host, device: &Path) -> (String, String) {
    let Ok(metadata) = host.path(device).metadata() else {
        return ("a directory on the way is closed".to_owned(), UDEV_RULE.to_owned());
    };
    let (mode, gid) = (metadata.mode() & 0o777, metadata.gid());
    let group = host.group_name(gid).unwrap_or_else(|| gid.to_string());
    let why = format!("its mode is {mode:o}, its group {group}");
    let for_group = mode & 0o060 == 0o060;
    let advice = match (host.is_container(), for_group) {
        (true, true) => format!("start the container with --group-add {gid}"),
        (true, false) => "be the container's root".to_owned(),
        (false, true) => format!("sudo usermod -aG {group} $USER, then log in again; {UDEV_RULE}"),
        (false, false) => UDEV_RULE.to_owned(),
    };
    (why, advice)
}

/// What kind of KVM it is.
pub(super) fn backend(host: &Host, backend: Backend) -> Finding {
    let nested = |module: &str| host.text(&format!("/sys/module/{module}/parameters/nested"));
    match backend {
        Backend::KvmIntel | Backend::KvmAmd => {
            let module = backend.name();
            let mut found = format!("{module}: the processor's own virtualisation");
            if nested(module).is_some_and(|value| value == "Y" || value == "1") {
                found.push_str("; guests may use it too (nested)");
            }
            if host.cpu_has("hypervisor") {
                found.push_str("; this host is a VM itself, so every exit goes through the hypervisor below, and costs a multiple");
                return Finding::new("backend", Grade::Costs, found);
            }
            Finding::good("backend", found)
        }
        Backend::KvmPvm => Finding::new(
            "backend",
            Grade::Costs,
            "kvm_pvm: a software KVM; a guest's ring 0 is emulated instruction by instruction, without most of SSE, AVX and x87",
        )
        .advise("guests that need more: scripts/rig amd -- COMMAND, or a host with VT-x or AMD-V"),
        Backend::Unknown => Finding::new(
            "backend",
            Grade::Costs,
            "a KVM of an unknown kind: none of kvm_intel, kvm_amd, kvm_pvm is loaded",
        ),
    }
}

pub(super) fn creation(offer: &Offer) -> Finding {
    Finding::good("vm", format!("a VM was made and closed in {:.1?}", offer.vm_took))
}

pub(super) fn capabilities(offer: &Offer) -> Finding {
    let missing: Vec<_> = offer.capabilities.iter().filter(|(_, value)| *value <= 0).collect();
    let words: Vec<_> =
        missing.iter().map(|(cap, _)| format!("{}: {}", cap.name, cap.without)).collect();
    let grade = match &*missing {
        [] => {
            let found = format!("all {} that ringfence uses", offer.capabilities.len());
            return Finding::good("capabilities", found);
        }
        missing if missing.iter().any(|(cap, _)| cap.required) => Grade::Fatal,
        _ => Grade::Costs,
    };
    let finding = Finding::new("capabilities", grade, format!("without {}", words.join("; ")));
    finding.advise("they come with the kernel: run a newer one")
}
