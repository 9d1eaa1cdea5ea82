//! Can this host run guests, how well, and what can be done about it: `ringfence doctor`.
//!
//! Called by `cli`. Every check is a function of a [`Host`], whose files may be made up, and of
//! what KVM answered. Nothing here changes anything, but a device node that is tried is open for a
//! moment: who wants a VFIO group just then finds it in use.

mod device;
mod host;
mod resources;
mod settings;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde::Serialize;

use crate::kvm::{self, Backend, Offer};
pub use host::Host;

/// How a [`Finding`] is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// As it should be.
    Good,
    /// Something that most guests do without is not there.
    Missing,
    /// Guests run, but slower or less exactly than they could.
    Costs,
    /// No guest runs.
    Fatal,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: the same word on every host.
    pub topic: &'static str,
    /// How it is to be taken.
    pub grade: Grade,
    /// What was found, and what it means.
    pub found: String,
    /// What to do about it, where something can be done.
    pub advice: Option<String>,
}

impl Finding {
    fn new(topic: &'static str, grade: Grade, found: impl Into<String>) -> Self {
        Self { topic, grade, found: found.into(), advice: None }
    }

    fn good(topic: &'static str, found: impl Into<String>) -> Self {
        Self::new(topic, Grade::Good, found)
    }

    fn advise(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }
}

/// A capability of KVM's on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Capability {
    /// Its name in the KVM API.
    pub name: &'static str,
    /// KVM's answer: 0 for no, 1 or a number for yes.
    pub value: i32,
    /// Nothing runs without it.
    pub required: bool,
    /// What is lost without it.
    pub without: &'static str,
}

/// All that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Examination {
    /// Guests can run.
    pub usable: bool,
    /// The kind of KVM: the kernel module's name.
    pub backend: &'static str,
    /// What was looked at.
    pub findings: Vec<Finding>,
    /// What KVM offers of what ringfence uses; empty without KVM.
    pub capabilities: Vec<Capability>,
}

/// Looks at everything. `offer` is what the KVM behind `device` answered.
pub fn examine(host: &Host, device: &Path, offer: Result<Offer, kvm::Error>) -> Examination {
    let backend = Backend::detect_in(&host.path("/sys"));
    let mut findings = device::check(host, device);
    let opens = findings.iter().all(|finding| finding.grade != Grade::Fatal);
    let mut capabilities = vec![];
    if opens {
        findings.push(device::backend(host, backend));
        match offer {
            Ok(offer) => {
                findings.push(device::creation(&offer));
                findings.push(device::capabilities(&offer));
                capabilities = offer.capabilities.iter().map(row).collect();
            }
            Err(e) => {
                let finding = Finding::new("vm", Grade::Fatal, chain(&e));
                let is_usual = device == Path::new("/dev/kvm");
                findings.push(match is_usual {
                    true => finding, // its words say what to do
                    false => finding.advise("is that a KVM? leave out --kvm"),
                });
            }
        }
    }
    findings.extend(settings::check(host));
    findings.extend(resources::check(host));
    let usable = findings.iter().all(|finding| finding.grade != Grade::Fatal);
    Examination { usable, backend: backend.name(), findings, capabilities }
}

fn row((cap, value): &(kvm::Capability, i32)) -> Capability {
    let kvm::Capability { name, required, without, .. } = *cap;
    Capability { name, value: *value, required, without }
}

fn chain(error: &kvm::Error) -> String {
    let mut text = error.to_string();
    if let Some(source) = std::error::Error::source(error) {
        text.push_str(&format!(": {source}"));
    }
    text
}
