//! Why a machine could not be built: one enum over the layers below, each told apart by
//! whose fault it is.

use std::io;
use std::path::PathBuf;

use crate::inspect::coverage;
use crate::verdict::{Refusal, Verdict};
use crate::{boot, bus, config, kvm, mem};

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An image, a module or an initial RAM disk cannot be read.
    #[error("cannot read the {what} {path}: {reason}")]
    Read {
        /// What the file was to be.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// A file is larger than all of the guest's memory.
    #[error(
        "cannot load the {what} {path}: it has {len} bytes, more than the guest's memory of {memory}; see --memory"
    )]
    TooLarge {
        /// What the file was to be.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Its bytes.
        len: u64,
        /// The guest's bytes.
        memory: u64,
    },
    /// The machine's description does not hold together.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The image cannot be loaded.
    #[error("cannot load {image}")]
    Boot {
        /// The image.
        image: String,
        /// Why, and what to do.
        source: boot::Error,
    },
    /// Its counters cannot be read.
    #[error("no coverage of {image}")]
    Coverage {
        /// The image.
        image: String,
        /// Why, and what to do.
        source: coverage::Error,
    },
    /// There is no memory for the guest.
    #[error(transparent)]
    Memory(#[from] mem::Error),
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    /// A file to write to cannot be opened, or a thread not be started.
    #[error("cannot {doing}")]
    Host {
        /// What was tried.
        doing: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The machine cannot be saved, or not be put back to this.
    #[error("cannot use a checkpoint: {reason}")]
    Checkpoint {
        /// Why not.
        reason: &'static str,
    },
    /// A state to be restored is none.
    #[error(transparent)]
    State(#[from] crate::state::Malformed),
    /// The platform's table is wrong.
    #[error("two devices share an address")]
    Platform(#[from] bus::Overlap),
}

impl Error {
    /// Whose fault it is.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Read { .. } => Refusal::NoImage,
            Self::TooLarge { .. } => Refusal::BadImage,
            Self::Config(config::Error::NoImage) => Refusal::Usage,
            Self::Config(_) => Refusal::BadConfig,
            Self::Boot { source, .. } if source.is_usage() => Refusal::Usage,
            Self::Boot { .. } | Self::Coverage { .. } => Refusal::BadImage,
            Self::Kvm(e) if e.is_no_kvm() => Refusal::NoKvm,
            Self::Memory(_) | Self::Kvm(_) | Self::Host { .. } => Refusal::Host,
            Self::Checkpoint { .. } => Refusal::Usage,
            Self::Platform(_) | Self::State(_) => Refusal::Bug,
        }
    }

    /// The verdict that this makes, with the whole chain of causes.
    pub fn verdict(&self) -> Verdict {
        Verdict::Refused { refusal: self.refusal(), message: chain(self) }
    }
}

/// An error and its causes on one line, without saying twice what an error repeats of its
/// cause.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}
