//! A machine resolved but not built: what `--dry-run` prints.

use serde::Serialize;

use super::build::{cmdline, load};
use super::error::Error;
use super::files::Files;
use super::platform::{self, DeviceEntry};
use crate::boot::Loaded;
use crate::config::Config;
use crate::irq::Irqchip;
use crate::mem::MemoryMap;

/// A machine as it would be built, without KVM: what `--dry-run` prints.
#[derive(Debug, Serialize)]
pub struct Plan {
    /// The description, resolved.
    pub config: Config,
    /// The interrupt controllers that the protocol gets.
    pub irqchip: Irqchip,
    /// The command line that the guest gets.
    pub cmdline: String,
    /// What lies where.
    pub memory_map: MemoryMap,
    /// Every device.
    pub devices: Vec<DeviceEntry>,
    /// What was placed in memory, and the entry state.
    pub loaded: Loaded,
}

/// Resolves a machine and loads its image, but builds no VM.
pub fn plan(config: &Config) -> Result<Plan, Error> {
    let files = Files::read(config)?;
    let (_, loaded) = load(config, &files)?;
    Ok(Plan {
        irqchip: config.irqchip_for(loaded.protocol),
        cmdline: cmdline(config, &files),
        memory_map: MemoryMap::new(config.memory),
        devices: platform::entries(),
        loaded,
        config: config.clone(),
    })
}
