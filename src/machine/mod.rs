//! A machine: memory, image, KVM, devices and vCPUs put together, run, and reported on.
//!
//! Called by the command line, the tests and whoever uses ringfence as a library; knows
//! everything below, no command line.

mod builder;
mod error;
mod files;
mod input;
mod linux;
mod output;
mod platform;
mod poll;
pub mod report;
pub mod signals;

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::time::{Duration, Instant};

use serde::Serialize;

pub use builder::Builder;
pub use error::{Error, chain};
pub use input::Keystroke;
pub use platform::DeviceEntry;
pub use report::Report;

use crate::boot::{self, Loaded, Protocol};
use crate::bus::Bus;
use crate::config::{Config, OnHalt, OnReset};
use crate::devices::{Console, Hypercalls, Serial};
use crate::irq::{IrqLine, Irqchip, NotConnected};
use crate::kvm::{Kvm, SupportedCpuid, Vm};
use crate::mem::{self, GuestMemory, MemoryMap};
use crate::vcpu::{self, Control, Counts, HaltWatch, HypercallDevice, RunLoop};
use crate::verdict::{Death, Success, Verdict};
use crate::x86::cpuid::Policy;
use files::Files;
use input::Pump;
use output::HostOutput;
use platform::{COM1_GSI, Parts};

/// Console output that a machine keeps for [`Machine::serial`], in bytes.
const CAPTURE: usize = 16 << 20;

/// Where a guest's console output goes, beside [`Machine::serial`].
#[derive(Default)]
pub enum Output {
    /// Only there.
    #[default]
    Captured,
    /// To this file, pipe or terminal; the name is for errors.
    File(String, File),
}

/// Where a guest's serial input comes from.
#[derive(Default)]
pub enum Input {
    /// Nowhere.
    #[default]
    None,
    /// From memory.
    Bytes(Vec<u8>),
    /// From this file, pipe or terminal. With `keys` every byte is asked about, and it is
    /// read from the start; without, when the guest first looks for input.
    File {
        /// What is read.
        file: File,
        /// What a byte does.
        keys: Option<Box<dyn FnMut(u8) -> Keystroke + Send>>,
    },
}

/// A machine's connections to the host.
#[derive(Default)]
pub struct Io {
    /// Console output.
    pub output: Output,
    /// Serial input.
    pub input: Input,
    /// Where [`signals::catch`] leaves the signal that ends the machine.
    pub signal: Option<&'static AtomicU8>,
}

/// A VM with its image in memory, ready to run.
///
/// ```no_run
/// use std::time::Duration;
/// use ringfence::{Machine, Verdict};
///
/// let mut machine = Machine::builder("target/kernel.elf")
///     .memory(64 << 20)
///     .timeout(Duration::from_secs(10))
///     .build()?;
/// let verdict = machine.run();
/// assert!(verdict.is_success(), "{verdict}\n{}", machine.serial_text());
/// # Ok::<(), ringfence::machine::Error>(())
/// ```
pub struct Machine {
    config: Config,
    files: Files,
    control: Arc<Control>,
    console: Arc<Console>,
    pump: Arc<Pump>,
    incarnation: Incarnation,
    loaded: Loaded,
    began: Instant,
    counts: Counts,
    restarts: u64,
    ended: Option<(Verdict, Duration)>,
}

/// What a reset throws away.
struct Incarnation {
    loops: Vec<RunLoop>,
    /// Keeps the guest's memory mapped while vCPUs run in it.
    _vm: Vm,
}

impl Machine {
    /// Begins the description of a machine; `@NAME` is a guest that ringfence carries.
    pub fn builder(image: impl Into<std::path::PathBuf>) -> Builder {
        Builder::new(image.into())
    }

    /// Builds a machine: reads the files, loads the image, makes the VM. The time limit
    /// begins here.
    pub fn new(config: Config, io: Io) -> Result<Self, Error> {
        let files = Files::read(&config)?;
        Self::with_files(config, files, io)
    }

    fn with_files(config: Config, files: Files, io: Io) -> Result<Self, Error> {
        config.check()?;
        let began = Instant::now();
        let deadline = config.timeout.and_then(|limit| Some((began.checked_add(limit)?, limit)));
        let control = Control::new(deadline, io.signal);
        let console = console(io.output, &control);
        let pump = Pump::new(io.input, control.clone());
        let (loaded, incarnation) = incarnate(&config, &files, &control, &console, &pump)?;
        if loaded.protocol == Protocol::Linux {
            control.set_watch(linux::watch(console.clone()));
        }
        Ok(Self {
            config,
            files,
            control,
            console,
            pump,
            incarnation,
            loaded,
            began,
            counts: Counts::default(),
            restarts: 0,
            ended: None,
        })
    }

    /// Runs the guest to its end. A second call gives the same verdict again.
    pub fn run(&mut self) -> Verdict {
        loop {
            if let Some((verdict, _)) = &self.ended {
                return verdict.clone();
            }
            self.counts.add(&vcpu::run_all(&mut self.incarnation.loops, &self.control));
            let verdict = self.judge(self.control.verdict());
            if self.config.on_reset != OnReset::Restart || !is_reset(&verdict) {
                self.end(verdict);
            } else if let Err(e) = self.restart() {
                self.end(e.verdict());
            }
        }
    }

    fn end(&mut self, verdict: Verdict) {
        self.ended = Some((verdict, self.began.elapsed()));
        self.pump.end();
    }

    fn restart(&mut self) -> Result<(), Error> {
        self.control.rearm();
        self.restarts += 1;
        let Self { config, files, control, console, pump, .. } = self;
        (_, self.incarnation) = incarnate(config, files, control, console, pump)?;
        Ok(())
    }

    /// What the caller said about halts and resets, and what Linux said of its own end.
    fn judge(&self, verdict: Option<Verdict>) -> Verdict {
        match verdict.unwrap_or_else(nothing_ran) {
            verdict if is_reset(&verdict) && self.loaded.protocol == Protocol::Linux => {
                linux::panic_in(&self.tail()).unwrap_or_else(|| self.judge_reset(verdict))
            }
            verdict if is_reset(&verdict) => self.judge_reset(verdict),
            Verdict::Died { cause: Death::Halted, .. }
                if self.config.on_halt == OnHalt::Success =>
            {
                Verdict::Success(Success::Halted)
            }
            verdict => verdict,
        }
    }

    fn judge_reset(&self, verdict: Verdict) -> Verdict {
        match self.config.on_reset {
            OnReset::Success => Verdict::Success(Success::Reset),
            _ => verdict,
        }
    }

    /// What the guest wrote to its serial line and debug console, the first 16 MiB.
    pub fn serial(&self) -> Vec<u8> {
        self.console.captured()
    }

    /// The same as text, invalid UTF-8 replaced.
    pub fn serial_text(&self) -> String {
        String::from_utf8_lossy(&self.serial()).into_owned()
    }

    fn tail(&self) -> String {
        String::from_utf8_lossy(&self.console.tail()).into_owned()
    }

    /// The record of the run, for machines.
    pub fn report(&self) -> Report {
        let (verdict, wall) =
            self.ended.clone().unwrap_or_else(|| (nothing_ran(), self.began.elapsed()));
        let mut report = Report::new(&verdict, Some(&self.config), wall);
        report.count(&self.counts);
        report.restarts = self.restarts;
        report.image.protocol = Some(self.loaded.protocol.name().to_owned());
        report.image.description = Some(self.loaded.description.clone());
        report.serial = report::SerialReport { bytes: self.console.total(), tail: self.tail() };
        report
    }
}

fn is_reset(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Died { cause: Death::Reset, .. })
}

/// Every vCPU came back and none said why; cannot happen, and must not look like success.
fn nothing_ran() -> Verdict {
    Verdict::Refused {
        refusal: crate::verdict::Refusal::Bug,
        message: "the machine has no verdict; this is a bug in ringfence".to_owned(),
    }
}

fn console(output: Output, control: &Arc<Control>) -> Arc<Console> {
    let builder = Console::builder(control.clone());
    match output {
        Output::Captured => builder.capture(CAPTURE).build(),
        Output::File(name, file) => {
            builder.output(name, Box::new(HostOutput::new(file, control.clone()))).build()
        }
    }
}

/// Loads the image and makes all that KVM and the guest see.
fn incarnate(
    config: &Config,
    files: &Files,
    control: &Arc<Control>,
    console: &Arc<Console>,
    pump: &Arc<Pump>,
) -> Result<(Loaded, Incarnation), Error> {
    let kvm = Kvm::open(&config.kvm)?;
    kvm.check_cpus(config.cpus)?;
    std::thread::scope(|scope| {
        // The slowest question to KVM, asked beside the rest.
        let cpuid = scope.spawn(|| SupportedCpuid::ask(&kvm));
        let (memory, loaded) = load(config, files)?;
        let irqchip = config.irqchip_for(loaded.protocol);
        let vm = Vm::new(&kvm, &memory, irqchip)?;
        let loops = vcpus(config, &vm, control, console, pump)?;
        let cpuid = cpuid.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let loops = start_state(loops, &cpuid, &loaded, irqchip)?;
        log::info!("{}: {}", config.image.display(), loaded.description);
        Ok((loaded, Incarnation { loops, _vm: vm }))
    })
}

/// Guest memory with the image in it.
fn load(config: &Config, files: &Files) -> Result<(GuestMemory, Loaded), Error> {
    let memory = mem::create(config.memory)?;
    let map = MemoryMap::new(config.memory);
    let loaded = load_into(config, files, &memory, &map)?;
    Ok((memory, loaded))
}

fn load_into(
    config: &Config,
    files: &Files,
    memory: &GuestMemory,
    map: &MemoryMap,
) -> Result<Loaded, Error> {
    let modules = files.modules();
    let cmdline = cmdline(config, files);
    let image_name = config.image.display().to_string();
    let request = boot::Request {
        image: &files.image,
        image_name: &image_name,
        protocol: config.boot,
        entry: config.entry,
        load_address: config.load_address,
        cmdline: &cmdline,
        modules: &modules,
        initrd: files.initrd.as_deref(),
        map,
        memory,
    };
    boot::load(&request).map_err(|source| Error::Boot { image: image_name.clone(), source })
}

/// The command line as given, else what the protocol's guests need.
fn cmdline(config: &Config, files: &Files) -> String {
    let is_linux = || {
        let found = || boot::probe(&files.image).ok().map(|found| found.protocol);
        config.boot.or_else(found) == Some(Protocol::Linux)
    };
    match &config.cmdline {
        Some(given) => given.clone(),
        None if is_linux() => linux::DEFAULT_CMDLINE.to_owned(),
        None => String::new(),
    }
}

/// Devices, buses and vCPUs.
fn vcpus(
    config: &Config,
    vm: &Vm,
    control: &Arc<Control>,
    console: &Arc<Console>,
    pump: &Arc<Pump>,
) -> Result<Vec<RunLoop>, Error> {
    let calls = Arc::new(Hypercalls {
        console: console.clone(),
        stop: control.clone(),
        processors: config.cpus,
        memory: config.memory,
    });
    let serial = Serial::new(console.clone(), com1_line(vm)?, pump.wanted());
    pump.attach(serial.input());
    let (pio, mmio) = (Bus::new(), Bus::new());
    let parts = Parts::new(control.clone(), calls.clone(), serial);
    platform::populate(&pio, &parts)?;
    let hypercalls: Arc<dyn HypercallDevice> = Arc::new(PassedOn(calls));
    let halt_watch = match vm.irqchip() {
        Irqchip::None => None,
        _ => Some(Arc::new(HaltWatch::new(config.cpus))),
    };
    let one = |id| {
        Ok(RunLoop {
            vcpu: vm.create_vcpu(id)?,
            pio: pio.view(),
            mmio: mmio.view(),
            hypercalls: hypercalls.clone(),
            control: control.clone(),
            halt_watch: halt_watch.clone(),
        })
    };
    (0..config.cpus).map(one).collect()
}

/// COM1's interrupt: an irqfd where there is an I/O APIC to raise it.
fn com1_line(vm: &Vm) -> Result<Arc<dyn IrqLine>, Error> {
    Ok(match vm.irqchip() {
        Irqchip::Full => Arc::new(EventLine(vm.irq_event(COM1_GSI)?)),
        _ => Arc::new(NotConnected),
    })
}

/// An interrupt that an eventfd raises.
struct EventLine(vmm_sys_util::eventfd::EventFd);

impl IrqLine for EventLine {
    fn trigger(&self) {
        // Fails only when 2^64 - 2 triggers wait: then one more changes nothing.
        let _ = self.0.write(1);
    }
}

/// The hypercall that KVM passes on, as ours: number 12, the function plus 1 where KVM
/// checks for a number of pages, the argument where it checks for a page's address.
struct PassedOn(Arc<Hypercalls>);

impl HypercallDevice for PassedOn {
    fn call(&self, number: u64, args: &[u64; 6]) -> Option<u64> {
        const MAP_GPA_RANGE: u64 = 12;
        if number != MAP_GPA_RANGE {
            return None;
        }
        let function = u32::try_from(args[1].wrapping_sub(1)).unwrap_or(u32::MAX);
        Some(self.0.call(function, (args[0] >> 12) as u32).into())
    }
}

/// CPUID for every vCPU, the entry state for the first.
fn start_state(
    mut loops: Vec<RunLoop>,
    cpuid: &SupportedCpuid,
    loaded: &Loaded,
    irqchip: Irqchip,
) -> Result<Vec<RunLoop>, Error> {
    let (cpus, local_apic) = (loops.len() as u32, irqchip != Irqchip::None);
    let tsc_deadline = cpuid.tsc_deadline();
    for it in &loops {
        let apic_id = it.vcpu.id();
        it.vcpu.set_cpuid(cpuid, &Policy { apic_id, cpus, local_apic, tsc_deadline })?;
    }
    if let Some(first) = loops.first_mut() {
        first.vcpu.set_entry(&loaded.cpu);
    }
    Ok(loops)
}

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
