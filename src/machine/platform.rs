//! The platform: one table, one row a device.
//!
//! To add a device write `devices/<name>.rs` and a row here.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use crate::boot::acpi;
use crate::bus::{Bus, Device, Overlap};
use crate::devices::{
    Cmos, Console, DebugConsole, DebugExit, FlushPage, FwCfg, HypercallPorts, Hypercalls,
    IrqLevels, Mailbox, PmTimer, Post, PowerControl, PvPanic, ResetControl, Scratch, Serial,
    ShutdownPort, SystemControlA, i8042,
};
use crate::irq::{Gsi, IrqInputs};
use crate::mem::GuestMemory;
use crate::verdict::StopLine;

/// COM1's interrupt, as on every PC.
pub(super) const COM1_GSI: Gsi = Gsi(4);

/// What devices are made of.
pub(super) struct Parts {
    pub(super) stop: Arc<dyn StopLine>,
    pub(super) console: Arc<Console>,
    pub(super) hypercalls: Arc<Hypercalls>,
    pub(super) serial: Arc<Serial>,
    pub(super) memory: GuestMemory,
    pub(super) inputs: Arc<dyn IrqInputs>,
    /// Data port, command port.
    pub(super) keyboard: (Arc<dyn Device>, Arc<dyn Device>),
    pub(super) mailbox: Arc<Mailbox>,
}

/// The devices of a machine by their names, for whoever saves and restores them.
pub(super) type Devices = Vec<(&'static str, Arc<dyn Device>)>;

impl Parts {
    pub(super) fn new(
        stop: Arc<dyn StopLine>,
        hypercalls: Arc<Hypercalls>,
        serial: Arc<Serial>,
        memory: GuestMemory,
        inputs: Arc<dyn IrqInputs>,
        mailbox: Arc<Mailbox>,
    ) -> Self {
        let console = hypercalls.console.clone();
        let keyboard = i8042::ports(stop.clone());
        Self { stop, console, hypercalls, serial, memory, inputs, keyboard, mailbox }
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
    Row { name, bus: PIO, base, len, gsi: None, make }
}

/// The address spaces.
const PIO: &str = "pio";
const MMIO: &str = "mmio";

/// The ports that ACPI's tables name.
pub(super) const ACPI_PORTS: acpi::Ports =
    acpi::Ports { pm_event: 0x600, pm_control: 0x604, pm_timer: 0x608, reset: 0xCF9 };

/// pvpanic's port.
pub(super) const PVPANIC: u64 = 0x505;

/// The names of those that a machine looks into when it is suspended.
pub(super) const CMOS: &str = "cmos";
pub(super) const POWER_CONTROL: &str = "power-control";

/// Every device. Addresses are those of a PC and of QEMU's debugging devices, so that
/// guests written for QEMU run unchanged.
const PLATFORM: &[Row] = &[
    pio("i8042-data", 0x60, 1, |p| p.keyboard.0.clone()),
    pio("i8042-command", 0x64, 1, |p| p.keyboard.1.clone()),
    pio(CMOS, 0x70, Cmos::LEN, |p| shared(Cmos::new(p.hypercalls.memory, Box::new(now)))),
    pio("post", 0x80, 1, |_| Arc::new(Post::default())),
    pio("system-control-a", 0x92, 1, |p| shared(SystemControlA::new(p.stop.clone()))),
    pio("test-ports", 0xE0, Scratch::PORTS, |_| shared(Scratch::new(Scratch::PORTS))),
    pio("test-flush-page", 0xE4, FlushPage::LEN, |p| Arc::new(FlushPage::new(p.memory.clone()))),
    pio("debug-console", 0xE9, 1, |p| DebugConsole::new(p.console.clone())),
    pio("debug-exit", 0xF4, DebugExit::LEN, |p| DebugExit::new(p.stop.clone())),
    Row { gsi: Some(COM1_GSI), ..pio("com1", 0x3F8, Serial::LEN, |p| p.serial.clone()) },
    pio("debug-exit-501", 0x501, DebugExit::LEN, |p| DebugExit::new(p.stop.clone())),
    pio("pvpanic", PVPANIC, 1, |p| shared(PvPanic::new(p.stop.clone()))),
    pio("fw-cfg", 0x510, FwCfg::LEN, |p| {
        shared(FwCfg::new(p.hypercalls.memory, p.hypercalls.processors))
    }),
    pio("hypercall", 0x520, HypercallPorts::LEN, |p| {
        shared(HypercallPorts::new(p.hypercalls.clone()))
    }),
    pio("mailbox", 0x5E0, Mailbox::LEN, |p| p.mailbox.clone()),
    pio(POWER_CONTROL, ACPI_PORTS.pm_event as u64, PowerControl::LEN, |p| {
        shared(PowerControl::new(p.stop.clone()))
    }),
    pio("pm-timer", ACPI_PORTS.pm_timer as u64, PmTimer::LEN, |_| Arc::new(PmTimer::new(uptime()))),
    pio("reset-control", ACPI_PORTS.reset as u64, 1, |p| shared(ResetControl::new(p.stop.clone()))),
    pio("test-irq-levels", 0x2000, IrqLevels::LEN, |p| Arc::new(IrqLevels::new(p.inputs.clone()))),
    pio("shutdown-port", 0x8900, 1, |p| shared(ShutdownPort::new(p.stop.clone()))),
    Row {
        bus: MMIO,
        ..pio("test-memory", 0xFF00_0000, Scratch::MEMORY, |_| {
            shared(Scratch::new(Scratch::MEMORY))
        })
    },
];

fn shared<D: crate::bus::MutDevice + 'static>(device: D) -> Arc<dyn Device> {
    Arc::new(Mutex::new(device))
}

/// Time since 1970, for the RTC.
pub(super) fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// The time since now.
fn uptime() -> Box<dyn Fn() -> Duration + Send + Sync> {
    let began = Instant::now();
    Box::new(move || began.elapsed())
}

/// Puts every device on its bus.
pub(super) fn populate(pio: &Bus, mmio: &Bus, parts: &Parts) -> Result<Devices, Overlap> {
    let devices = PLATFORM.iter().map(|row| {
        let device = (row.make)(parts);
        let bus = if row.bus == PIO { pio } else { mmio };
        bus.insert(row.name, row.base, row.len, device.clone())?;
        Ok((row.name, device))
    });
    devices.collect()
}

/// The device that claims a port.
pub(super) fn port_name(port: u64) -> Option<&'static str> {
    let claims = |row: &&Row| row.bus == PIO && port.wrapping_sub(row.base) < row.len;
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
pub fn entries() -> Vec<DeviceEntry> {
    let entry = |row: &Row| DeviceEntry {
        name: row.name,
        bus: row.bus,
        base: row.base,
        len: row.len,
        gsi: row.gsi.map(|gsi| gsi.0),
    };
    PLATFORM.iter().map(entry).collect()
}
