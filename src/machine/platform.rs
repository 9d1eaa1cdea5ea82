//! The platform: one table, one row a device.
//!
//! To add a device write `devices/<name>.rs` and a row here.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::bus::{Bus, Device, Overlap};
use crate::devices::{
    Cmos, Console, DebugConsole, DebugExit, HypercallPorts, Hypercalls, Post, PowerControl,
    PvPanic, ResetControl, Serial, ShutdownPort, SystemControlA, i8042,
};
use crate::irq::Gsi;
use crate::verdict::StopLine;

/// COM1's interrupt, as on every PC.
pub(super) const COM1_GSI: Gsi = Gsi(4);

/// What devices are made of.
pub(super) struct Parts {
    pub(super) stop: Arc<dyn StopLine>,
    pub(super) console: Arc<Console>,
    pub(super) hypercalls: Arc<Hypercalls>,
    pub(super) serial: Arc<Serial>,
    /// Bytes of RAM.
    pub(super) memory: u64,
    /// Data port, command port.
    pub(super) keyboard: (Arc<dyn Device>, Arc<dyn Device>),
}

impl Parts {
    pub(super) fn new(
        stop: Arc<dyn StopLine>,
        hypercalls: Arc<Hypercalls>,
        serial: Arc<Serial>,
    ) -> Self {
        let (console, memory) = (hypercalls.console.clone(), hypercalls.memory);
        let keyboard = i8042::ports(stop.clone());
        Self { stop, console, hypercalls, serial, memory, keyboard }
    }
}

/// A device of the platform.
struct Row {
    name: &'static str,
    bus: &'static str,
    base: u64,
    len: u64,
    gsi: Option<Gsi>,
    make: fn(&Parts) -> Arc<dyn Device>,
}

const fn pio(name: &'static str, base: u64, len: u64, make: fn(&Parts) -> Arc<dyn Device>) -> Row {
    Row { name, bus: "pio", base, len, gsi: None, make }
}

/// Every device. Addresses are those of a PC and of QEMU's debugging devices, so that
/// guests written for QEMU run unchanged.
const PLATFORM: &[Row] = &[
    pio("i8042-data", 0x60, 1, |p| p.keyboard.0.clone()),
    pio("i8042-command", 0x64, 1, |p| p.keyboard.1.clone()),
    pio("cmos", 0x70, Cmos::LEN, |p| shared(Cmos::new(p.memory, Box::new(now)))),
    pio("post", 0x80, 1, |_| Arc::new(Post::default())),
    pio("system-control-a", 0x92, 1, |p| shared(SystemControlA::new(p.stop.clone()))),
    pio("debug-console", 0xE9, 1, |p| DebugConsole::new(p.console.clone())),
    pio("debug-exit", 0xF4, DebugExit::LEN, |p| DebugExit::new(p.stop.clone())),
    Row { gsi: Some(COM1_GSI), ..pio("com1", 0x3F8, Serial::LEN, |p| p.serial.clone()) },
    pio("debug-exit-501", 0x501, DebugExit::LEN, |p| DebugExit::new(p.stop.clone())),
    pio("pvpanic", 0x505, 1, |p| shared(PvPanic::new(p.stop.clone()))),
    pio("hypercall", 0x520, HypercallPorts::LEN, |p| {
        shared(HypercallPorts::new(p.hypercalls.clone()))
    }),
    pio("power-control", 0x600, PowerControl::LEN, |p| shared(PowerControl::new(p.stop.clone()))),
    pio("reset-control", 0xCF9, 1, |p| shared(ResetControl::new(p.stop.clone()))),
    pio("shutdown-port", 0x8900, 1, |p| shared(ShutdownPort::new(p.stop.clone()))),
];

fn shared<D: crate::bus::MutDevice + 'static>(device: D) -> Arc<dyn Device> {
    Arc::new(Mutex::new(device))
}

/// Time since 1970, for the RTC.
fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Puts every device on the bus of port I/O.
pub(super) fn populate(bus: &Bus, parts: &Parts) -> Result<(), Overlap> {
    PLATFORM.iter().try_for_each(|row| bus.insert(row.name, row.base, row.len, (row.make)(parts)))
}

/// The device that claims a port.
pub(super) fn port_name(port: u64) -> Option<&'static str> {
    let claims = |row: &&Row| row.bus == "pio" && port.wrapping_sub(row.base) < row.len;
    PLATFORM.iter().find(claims).map(|row| row.name)
}

/// A row of the platform as data, for `--dry-run`.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceEntry {
    /// Its name.
    pub name: &'static str,
    /// Its address space.
    pub bus: &'static str,
    /// First address.
    pub base: u64,
    /// Number of addresses.
    pub len: u64,
    /// Its interrupt.
    pub gsi: Option<u32>,
}

/// Every device, as data.
pub(super) fn entries() -> Vec<DeviceEntry> {
    let entry = |row: &Row| DeviceEntry {
        name: row.name,
        bus: row.bus,
        base: row.base,
        len: row.len,
        gsi: row.gsi.map(|gsi| gsi.0),
    };
    PLATFORM.iter().map(entry).collect()
}
