//! How a machine is put together: image, VM, devices, vCPUs.

use std::sync::Arc;

use super::ask::Question;
use super::checkpoint::{ReadyTo, Tracking};
use super::error::Error;
use super::files::Files;
use super::input::Pump;
use super::linux;
use super::output::HostOutput;
use super::platform::{self, ACPI_PORTS, COM1_GSI, Devices, Parts};
use super::strict;
use super::{CAPTURE, Output};
use crate::boot::acpi::Hardware;
use crate::boot::{self, Loaded, Protocol};
use crate::bus::Bus;
use crate::config::Config;
use crate::devices::{Console, Hypercalls, Mailbox, Serial};
use crate::inspect::watch::{Instruments, Kernel};
use crate::irq::{Gsi, IrqInputs, IrqLine, Irqchip, NotConnected};
use crate::kvm::{DirtyLog, Guarded, Kvm, SupportedCpuid, Vm};
use crate::mem::{self, GuestMemory, MemoryMap};
use crate::vcpu::{Control, HaltWatch, HypercallDevice, Recorder, RunLoop, Still, Ticks};
use crate::x86::cpuid::Policy;

/// What a reset throws away.
pub(super) struct Incarnation {
    pub(super) loops: Vec<RunLoop>,
    pub(super) memory: GuestMemory,
    /// Keeps the guest's memory mapped while vCPUs run in it.
    pub(super) vm: Arc<Vm>,
    /// The parts of memory without an ordinary slot.
    pub(super) guarded: Vec<Guarded>,
    pub(super) devices: Devices,
    pub(super) mailbox: Arc<Mailbox>,
    /// Once there is a checkpoint.
    pub(super) log: Option<DirtyLog>,
    pub(super) tracking: Option<Tracking>,
}

impl Incarnation {
    /// Lets the vCPUs be watched.
    pub(super) fn watch(&mut self, instruments: &Instruments) {
        for it in &mut self.loops {
            it.observer = instruments.observer(it.vcpu.id(), &self.memory);
            it.ticks.sampling = instruments.sampling();
        }
    }

    /// What KVM counted.
    pub(super) fn kernel_stats(&self) -> Kernel {
        Kernel::new(self.vm.stats(), self.loops.iter().map(|it| it.vcpu.stats()).collect())
    }
}

pub(super) fn console(output: Output, control: &Arc<Control>) -> Arc<Console> {
    let builder = Console::builder(control.clone());
    let host = |file| Box::new(HostOutput::new(file, control.clone()));
    match output {
        Output::Captured => builder.capture(CAPTURE).build(),
        Output::File(name, file) => builder.output(name, host(file)).build(),
        Output::Both(name, file) => builder.output(name, host(file)).capture(CAPTURE).build(),
    }
}

/// Makes all that KVM and the guest see, around the memory that `load` gives.
pub(super) fn incarnate(
    config: &Config,
    load: impl FnOnce() -> Result<(GuestMemory, Loaded), Error>,
    control: &Arc<Control>,
    console: &Arc<Console>,
    pump: &Arc<Pump>,
) -> Result<(Loaded, Incarnation), Error> {
    let kvm = Arc::new(Kvm::open(&config.kvm)?);
    kvm.check_cpus(config.cpus)?;
    let cpuid = Question::ask(&kvm);
    let (memory, loaded) = load()?;
    let irqchip = config.irqchip_for(loaded.protocol);
    let (rules, guarded) = strict::rules(config, &loaded, &memory)?;
    let vm = Vm::new(&kvm, &memory, irqchip, &guarded)?;
    let (mut loops, devices, mailbox) = vcpus(config, &vm, control, console, pump)?;
    let rules = Arc::new(rules);
    loops.iter_mut().for_each(|it| it.strict = rules.clone());
    let loops = start_state(loops, &offered(cpuid.answer()?, &kvm, config)?, &loaded, config)?;
    log::info!("{}: {}", config.image.display(), loaded.description);
    let (vm, log, tracking) = (Arc::new(vm), None, None);
    Ok((loaded, Incarnation { loops, memory, vm, guarded, devices, mailbox, log, tracking }))
}

/// Guest memory with the image in it.
pub(super) fn load(config: &Config, files: &Files) -> Result<(GuestMemory, Loaded), Error> {
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
    let mut request = boot::Request {
        image: &files.image,
        image_name: &image_name,
        protocol: config.boot,
        entry: config.entry,
        load_address: config.load_address,
        cmdline: &cmdline,
        modules: &modules,
        initrd: files.initrd.as_deref(),
        hardware: None,
        map,
        memory,
    };
    let refused = |source| Error::Boot { image: image_name.clone(), source };
    request.hardware = Some(hardware(config, boot::protocol(&request).map_err(refused)?));
    boot::load(&request).map_err(refused)
}

/// What the ACPI tables describe.
fn hardware(config: &Config, protocol: Protocol) -> Hardware {
    let irqchip = config.irqchip_for(protocol);
    Hardware {
        cpus: config.cpus,
        local_apics: irqchip != Irqchip::None,
        io_apic: irqchip == Irqchip::Full,
        ports: ACPI_PORTS,
    }
}

/// The command line as given, else what the protocol's guests need.
pub(super) fn cmdline(config: &Config, files: &Files) -> String {
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
) -> Result<(Vec<RunLoop>, Devices, Arc<Mailbox>), Error> {
    let mailbox = Mailbox::new(Arc::new(ReadyTo(control.clone())));
    let calls = Arc::new(Hypercalls {
        console: console.clone(),
        stop: control.clone(),
        processors: config.cpus,
        memory: config.memory,
    });
    let serial = Serial::new(console.clone(), com1_line(vm), pump.wanted());
    pump.attach(serial.input());
    let (pio, mmio) = (Bus::new(), Bus::new());
    let memory = vm.memory().clone();
    let parts = Parts::new(
        control.clone(),
        calls.clone(),
        serial,
        memory,
        vm.irq_inputs(),
        mailbox.clone(),
    );
    let devices = platform::populate(&pio, &mmio, &parts)?;
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
            recorder: Recorder::default(),
            observer: None,
            ticks: Ticks::default(),
            strict: Arc::default(),
            violation: None,
            still: Still::default(),
        })
    };
    let loops = (0..config.cpus).map(one).collect::<Result<_, Error>>()?;
    Ok((loops, devices, mailbox))
}

/// COM1's interrupt, where there is an I/O APIC to raise it.
fn com1_line(vm: &Vm) -> Arc<dyn IrqLine> {
    match vm.irqchip() {
        Irqchip::Full => Arc::new(Pulse(vm.irq_inputs(), COM1_GSI)),
        _ => Arc::new(NotConnected),
    }
}

/// An edge at an input. It has arrived when the call comes back, not at some later time as an
/// irqfd's: a machine that has been put back gets no interrupt of its life before.
struct Pulse(Arc<dyn IrqInputs>, Gsi);

impl IrqLine for Pulse {
    fn trigger(&self) {
        self.0.set_level(self.1, true);
        self.0.set_level(self.1, false);
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

/// What the guest's CPUID is made of.
fn offered(mut cpuid: SupportedCpuid, kvm: &Kvm, config: &Config) -> Result<SupportedCpuid, Error> {
    if config.cpu.hyperv() && !cpuid.add_hyperv(kvm)? {
        log::warn!("this KVM has no Hyper-V interface: the guest goes without");
    }
    Ok(cpuid)
}

/// CPUID for every vCPU, the entry state for the first.
fn start_state(
    mut loops: Vec<RunLoop>,
    cpuid: &SupportedCpuid,
    loaded: &Loaded,
    config: &Config,
) -> Result<Vec<RunLoop>, Error> {
    let cpus = loops.len() as u32;
    let local_apic = config.irqchip_for(loaded.protocol) != Irqchip::None;
    let tsc_deadline = cpuid.tsc_deadline();
    for it in &loops {
        let apic_id = it.vcpu.id();
        let policy = Policy { apic_id, cpus, local_apic, tsc_deadline };
        let missing = it.vcpu.set_cpuid(cpuid, &policy, &config.cpu)?;
        if apic_id == 0 && !missing.is_empty() {
            log::warn!("this KVM has no {}: the guest goes without", missing.join(", "));
        }
    }
    if let Some(first) = loops.first_mut() {
        first.vcpu.set_entry(&loaded.cpu);
    }
    Ok(loops)
}
