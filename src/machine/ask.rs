//! The slowest question to KVM, asked beside other work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use crate::kvm::{Error, Kvm, SupportedCpuid};

/// KVM_GET_SUPPORTED_CPUID on a thread of its own; or on the caller's, where the thread has
/// not come to run by the time that the answer is needed: on a busy host it would be waited
/// for longer than the question takes.
pub(super) struct Question {
    kvm: Arc<Kvm>,
    /// Whoever sets it asks.
    taken: Arc<AtomicBool>,
    answer: Receiver<Result<SupportedCpuid, Error>>,
}

impl Question {
    pub(super) fn ask(kvm: &Arc<Kvm>) -> Self {
        let (reply, answer) = sync_channel(1);
        let question = Self { kvm: kvm.clone(), taken: Arc::default(), answer };
        let (kvm, taken) = (question.kvm.clone(), question.taken.clone());
        // Limits may leave no thread: then the caller asks. A caller that has given up
        // meanwhile wants no answer.
        let _ = thread::Builder::new().name("cpuid".to_owned()).spawn(move || {
            if !taken.swap(true, Ordering::Relaxed) {
                let _ = reply.send(SupportedCpuid::ask(&kvm));
            }
        });
        question
    }

    pub(super) fn answer(self) -> Result<SupportedCpuid, Error> {
        if !self.taken.swap(true, Ordering::Relaxed) {
            return SupportedCpuid::ask(&self.kvm);
        }
        // The thread that took the question ends without an answer only by a panic.
        self.answer.recv().unwrap_or_else(|_| SupportedCpuid::ask(&self.kvm))
    }
}
