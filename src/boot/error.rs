//! Why an image was not loaded. Each message says what is wrong, with its numbers, and
//! what the user can do.

use crate::mem::{GuestMemoryError, Range, layout};
use crate::x86::paging;

/// Why an image was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No protocol knows the image.
    #[error(
        "the image is not understood ({looks_like}): if it is a flat binary, say how it is entered: --boot flat --entry real|protected|long"
    )]
    NotUnderstood {
        /// What can be said of it.
        looks_like: String,
    },
    /// What was asked for does not go together, whatever the image holds.
    #[error("{problem}")]
    Usage {
        /// What, and what to say instead.
        problem: String,
    },
    /// The image contradicts itself or its format.
    #[error("bad {format}: {problem}")]
    Malformed {
        /// The format it seems to be in.
        format: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The image is sound, and asks for what is not there.
    #[error("this {format} cannot be run: {problem}")]
    Unsupported {
        /// The format it is in.
        format: &'static str,
        /// What is missing.
        problem: String,
    },
    /// Something has a fixed place that the machine has no RAM for.
    #[error(
        "{what} at {range} lies beyond the guest's memory of {} MiB: give it more with --memory",
        .ram >> 20
    )]
    BeyondRam {
        /// What it is.
        what: String,
        /// Where it belongs.
        range: Range,
        /// Bytes of RAM.
        ram: u64,
    },
    /// Something has a fixed place in the 32-bit hole.
    #[error(
        "{what} at {range} reaches into {:#x}..{:#x}, where no machine has RAM: link it lower",
        layout::HOLE_START,
        layout::HOLE_END
    )]
    InHole {
        /// What it is.
        what: String,
        /// Where it belongs.
        range: Range,
    },
    /// Two things have fixed places that share bytes.
    #[error("{what} at {range} overlaps {other} at {other_range}")]
    Overlap {
        /// The one that came second.
        what: String,
        /// Where it belongs.
        range: Range,
        /// The one that is there.
        other: String,
        /// Where that is.
        other_range: Range,
    },
    /// Something that may go anywhere fits nowhere.
    #[error(
        "no room for {what} ({len} bytes) below {below:#x} in the guest's memory of {} MiB: give it more with --memory",
        .ram >> 20
    )]
    NoRoom {
        /// What it is.
        what: String,
        /// Bytes.
        len: u64,
        /// The address it has to end at.
        below: u64,
        /// Bytes of RAM.
        ram: u64,
    },
    /// The image's addresses cannot be mapped.
    #[error("the image's segments cannot be mapped at their link addresses")]
    Paging(#[from] paging::Error),
    /// Guest memory refused a write; the placement was checked, so this is a bug.
    #[error("cannot write {what} to guest memory at {address:#x}")]
    Memory {
        /// What it is.
        what: String,
        /// Where.
        address: u64,
        /// The library's reason.
        source: GuestMemoryError,
    },
}

impl Error {
    /// Is it what was asked for that is wrong (exit code 64), not the image (65)?
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Usage { .. })
    }

    pub(super) fn usage(problem: impl Into<String>) -> Self {
        Self::Usage { problem: problem.into() }
    }

    pub(super) fn malformed(format: &'static str, problem: impl Into<String>) -> Self {
        Self::Malformed { format, problem: problem.into() }
    }

    pub(super) fn unsupported(format: &'static str, problem: impl Into<String>) -> Self {
        Self::Unsupported { format, problem: problem.into() }
    }
}
