//! The record of a run that machines read (`--report`): its schema is `report.schema.json`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::config::Config;
use crate::inspect::Autopsy;
use crate::inspect::watch::Statistics;
use crate::vcpu::{Counts, Unclaimed};
use crate::verdict::Verdict;

/// The schema's version: grows when a field changes its meaning or goes.
pub const SCHEMA_VERSION: u32 = 1;

/// The schema of [`Report`], as JSON Schema.
pub const SCHEMA: &str = include_str!("report.schema.json");

/// What became of a run, for machines.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema: u32,
    /// Version of ringfence.
    pub ringfence: &'static str,
    /// The verdict's name in the table of exit codes, or "skipped".
    pub verdict: &'static str,
    /// The exit code that goes with it; another where the process ends with another, because an
    /// output could not be written.
    pub exit_code: u8,
    /// The verdict in words, with where and why.
    pub cause: String,
    /// The value that the guest gave at a debug exit.
    pub guest_code: Option<u32>,
    /// Seconds from the start of the run to its verdict.
    pub wall_seconds: f64,
    /// The kind of KVM: the kernel module's name.
    pub backend: &'static str,
    /// What ran.
    pub image: ImageReport,
    /// Bytes of RAM.
    pub memory: u64,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Starts after a reset of the guest's.
    pub restarts: u64,
    /// Exits by kind.
    pub exits: BTreeMap<&'static str, u64>,
    /// Accesses that nothing claimed.
    pub unclaimed: UnclaimedReport,
    /// The serial line.
    pub serial: SerialReport,
    /// Why the guest died.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autopsy: Option<Autopsy>,
    /// What the exits went into, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<Statistics>,
}

/// The image of a [`Report`].
#[derive(Clone, Debug, Default, Serialize)]
pub struct ImageReport {
    /// As it was named.
    pub path: String,
    /// How it was booted; `None` when it came to nothing.
    pub protocol: Option<String>,
    /// What it was found to be.
    pub description: Option<String>,
}

/// The unclaimed accesses of a [`Report`].
#[derive(Clone, Debug, Default, Serialize)]
pub struct UnclaimedReport {
    /// All of them.
    pub total: u64,
    /// By kind and address, at most 64 a vCPU.
    pub sites: Vec<Unclaimed>,
}

/// The console output of a [`Report`].
#[derive(Clone, Debug, Default, Serialize)]
pub struct SerialReport {
    /// Bytes that the guest wrote.
    pub bytes: u64,
    /// The last of it, as text.
    pub tail: String,
}

impl Report {
    /// A report on `verdict` with nothing counted yet.
    pub fn new(verdict: &Verdict, config: Option<&Config>, wall: Duration) -> Self {
        Self {
            schema: SCHEMA_VERSION,
            ringfence: env!("CARGO_PKG_VERSION"),
            verdict: verdict.name(),
            exit_code: verdict.exit_code(),
            cause: verdict.to_string(),
            guest_code: verdict.guest_code(),
            wall_seconds: wall.as_secs_f64(),
            backend: crate::kvm::Backend::detect().name(),
            image: ImageReport {
                path: config.map(|c| c.image.display().to_string()).unwrap_or_default(),
                ..ImageReport::default()
            },
            memory: config.map_or(0, |config| config.memory),
            cpus: config.map_or(0, |config| config.cpus),
            restarts: 0,
            exits: BTreeMap::new(),
            unclaimed: UnclaimedReport::default(),
            serial: SerialReport::default(),
            autopsy: None,
            stats: None,
        }
    }

    /// Adds what the vCPUs counted.
    pub(super) fn count(&mut self, counts: &Counts) {
        self.exits = counts.exits().collect();
        self.unclaimed = UnclaimedReport::new(counts);
    }
}

impl UnclaimedReport {
    pub(super) fn new(counts: &Counts) -> Self {
        Self { total: counts.unclaimed_total(), sites: counts.sites().to_vec() }
    }
}
