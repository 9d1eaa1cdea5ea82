//! What KVM itself said of a guest's end, in words.

use serde::Serialize;

use crate::kvm::{Exit, InternalError};

/// One line a fact; empty for an exit that is no end.
pub fn kvm_words(exit: &Exit<'_>) -> Vec<String> {
    match exit {
        Exit::Shutdown => vec!["exit SHUTDOWN: the processor stopped in a triple fault".to_owned()],
        Exit::InternalError(error) => internal(error),
        Exit::FailEntry { reason } => {
            vec![format!("hardware entry failure, reason {reason:#x}: {}", entry_failure(*reason))]
        }
        Exit::Hlt => vec!["exit HLT".to_owned()],
        Exit::SystemEvent { kind } => vec![format!("system event of type {kind}")],
        Exit::Other { reason } if *reason != 0 => vec![format!("exit of kind {reason}")],
        _ => Vec::new(),
    }
}

/// The same as data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KvmExit {
    /// The exit's kind.
    pub exit: &'static str,
    /// Of an internal error: KVM_INTERNAL_ERROR_*.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suberror: Option<u32>,
    /// Of an internal error, where KVM gave them: the bytes at RIP, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instruction_bytes: Option<String>,
    /// Of an entry failure the hardware's reason, of a system event its type, of others KVM's
    /// number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<u64>,
}

/// What [`kvm_words`] says, as data; `None` where that is nothing.
pub fn kvm_exit(exit: &Exit<'_>) -> Option<KvmExit> {
    let (suberror, instruction_bytes) = match exit {
        Exit::InternalError(error) => (Some(error.suberror), Some(hex(error))),
        _ => (None, None),
    };
    let reason = match *exit {
        Exit::FailEntry { reason } => Some(reason),
        Exit::SystemEvent { kind } => Some(kind.into()),
        Exit::Other { reason: 0 } => return None,
        Exit::Other { reason } => Some(reason.into()),
        _ if is_end(exit) => None,
        _ => return None,
    };
    let instruction_bytes = instruction_bytes.filter(|bytes| !bytes.is_empty());
    Some(KvmExit { exit: exit.kind().name(), suberror, instruction_bytes, reason })
}

fn hex(error: &InternalError) -> String {
    let bytes = error.instruction_bytes().iter().map(|byte| format!("{byte:02x}"));
    bytes.collect::<Vec<_>>().join(" ")
}

/// Is it one that a vCPU does not go on after?
pub fn is_end(exit: &Exit<'_>) -> bool {
    matches!(
        exit,
        Exit::Shutdown
            | Exit::InternalError(_)
            | Exit::FailEntry { .. }
            | Exit::Hlt
            | Exit::SystemEvent { .. }
    )
}

fn internal(error: &InternalError) -> Vec<String> {
    let mut line = format!("internal error, suberror {}: {}", error.suberror, error.words());
    if !error.instruction_bytes().is_empty() {
        line.push_str(&format!("; instruction bytes {}", hex(error)));
    }
    vec![line]
}

/// VT-x: the exit reason with bit 31 set (Intel SDM Vol. 3C 27.8, appendix C), or the
/// VM-instruction error number (31.4). AMD-V: the VMCB's exit code (APM Vol. 2, appendix C).
fn entry_failure(reason: u64) -> &'static str {
    match reason {
        0x8000_0021 => "the guest state is not a valid one (VT-x checks it at each entry)",
        0x8000_0022 => "an MSR could not be loaded (VT-x)",
        0x8000_0029 => "machine check during entry (VT-x)",
        7 => "the control fields are not valid (VT-x)",
        8 => "the host state is not valid (VT-x)",
        0xFFFF_FFFF | u64::MAX => "the guest state is not a valid one (AMD-V)",
        _ => "see the processor's manual",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_failures_are_decoded() {
        let words = kvm_words(&Exit::FailEntry { reason: 0x8000_0021 });
        assert!(words[0].contains("0x80000021") && words[0].contains("not a valid one"));
        assert!(kvm_words(&Exit::Interrupted).is_empty());
        assert_eq!(kvm_exit(&Exit::Interrupted), None);
        let data = kvm_exit(&Exit::FailEntry { reason: 0x8000_0021 }).unwrap();
        assert_eq!((data.exit, data.reason), ("fail_entry", Some(0x8000_0021)));
        assert_eq!(kvm_exit(&Exit::Shutdown).unwrap().reason, None);
        assert!(is_end(&Exit::Shutdown) && !is_end(&Exit::Interrupted));
    }
}
