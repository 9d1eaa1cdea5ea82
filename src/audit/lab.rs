//! Runs one program after another in a VM, and says how each ended and what KVM had to do for it.
//! A program may kill its VM; the next one then gets a new one. Called by the parts of the audit;
//! knows bytes and registers, not what an instruction means.

use std::path::Path;
use std::time::{Duration, Instant};

use super::Error;
use super::context::{Context, Mode};
use super::ground;
use super::instruction::exception;
use super::program::{Plan, Program};
use crate::inspect::kvm_words;
use crate::irq::Irqchip;
use crate::kvm::{Exit, ExitKind, Kvm, Stat, StatKind, SupportedCpuid, Vcpu, Vm};
use crate::mem::{self, Bytes, GuestAddress, GuestMemory};
use crate::vcpu::{Limited, limited};
use crate::x86::cpuid::{Leaf, Policy};
use crate::x86::{Efer, Model, Regs};

/// Before anything is known of a host's speed a program has this time.
const FIRST_LIMIT: Duration = Duration::from_secs(10);
/// A program hangs when it takes so many times as long as the slowest that did not, and no less
/// than the time below.
const PATIENCE: u32 = 50;
const LEAST_LIMIT: Duration = Duration::from_millis(250);
/// A program that makes more exits than this goes round in circles.
const MOST_EXITS: usize = 4096;
/// The guest's APIC ID, which a host of few processors does not have.
pub const APIC_ID: u32 = 0x2A;

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// At its UD2.
    Finished,
    /// In the handler of a vector, which the instruction under test raised.
    Vector {
        /// The vector.
        number: u8,
        /// Its error code.
        error: Option<u64>,
    },
    /// By other code than the instruction: what leads to it, or what it led to.
    Elsewhere {
        /// The exception that this code raised, or why KVM could not run it.
        words: String,
        /// Where it lies.
        rip: u64,
    },
    /// At the place that SYSCALL, SYSENTER and the call gate lead to.
    Landed {
        /// The ring that it is in there.
        ring: u8,
    },
    /// KVM could not go on.
    Died {
        /// KVM's words.
        words: String,
    },
    /// KVM refused the state that the program starts in.
    Refused,
    /// KVM_RUN did not come back by itself, or came back again and again.
    Hung,
}

/// What KVM counted of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The kernel's counters that grew, and by how much; `None` where KVM has none.
    pub counters: Option<Vec<(String, u64)>>,
    /// Exits to user space, but for the last.
    pub user: Vec<ExitKind>,
}

impl Counts {
    /// How much a counter grew.
    pub fn of(&self, name: &str) -> Option<u64> {
        let counters = self.counters.as_ref()?;
        Some(counters.iter().find(|(counter, _)| counter == name).map_or(0, |(_, grown)| *grown))
    }
}

/// What there is to see after a run.
#[derive(Clone, Debug)]
pub struct Run {
    /// How it ended.
    pub end: End,
    /// The registers there.
    pub regs: Regs,
    /// The flags of the program, if it finished.
    pub flags: u64,
    /// The word on top of its stack.
    pub top: u64,
    /// The memory that its operand points at.
    pub operand: [u8; 16],
    /// The low half of the TSC when a timed run began.
    pub start: u32,
    /// What KVM counted.
    pub counts: Counts,
}

impl Run {
    /// Guest cycles of a timed run.
    pub fn cycles(&self) -> u32 {
        (self.regs.rax as u32).wrapping_sub(self.start)
    }
}

struct Bench {
    _vm: Vm,
    vcpu: Vcpu,
    memory: GuestMemory,
    /// KVM's counters after the last run; reading them takes longer than a run.
    counters: Vec<(String, u64)>,
}

/// Where programs are run.
pub struct Lab {
    kvm: Kvm,
    cpuid: SupportedCpuid,
    irqchip: Irqchip,
    bench: Option<Bench>,
    limit: Option<Duration>,
}

impl Lab {
    /// Opens KVM; `change` is applied to every leaf of the guest's CPUID.
    pub fn open(path: &Path, change: impl FnMut(&mut Leaf)) -> Result<Self, Error> {
        let kvm = Kvm::open(path)?;
        let cpuid = SupportedCpuid::ask(&kvm)?.changed(change);
        Ok(Self { kvm, cpuid, irqchip: Irqchip::None, bench: None, limit: None })
    }

    /// From now on with these interrupt controllers.
    pub fn set_irqchip(&mut self, irqchip: Irqchip) {
        if self.irqchip != irqchip {
            self.irqchip = irqchip;
            self.bench = None;
        }
    }

    /// From now on in another VM.
    pub fn renew(&mut self) {
        self.bench = None;
    }

    /// The CPUID that KVM is told to show.
    pub fn guest_cpuid(&self) -> Vec<Leaf> {
        self.cpuid.told(&self.policy(), &Model::default())
    }

    /// The CPUID that KVM says its vCPU has, once it was told.
    pub fn kept_cpuid(&mut self) -> Result<Vec<Leaf>, Error> {
        Ok(self.bench()?.vcpu.cpuid()?)
    }

    /// What lies in the guest's memory since the last run.
    pub fn read(&mut self, address: u64, to: &mut [u8]) -> Result<(), Error> {
        Ok(self.bench()?.memory.read_slice(to, GuestAddress(address))?)
    }

    fn policy(&self) -> Policy {
        let local_apic = self.irqchip != Irqchip::None;
        let apic_id = if local_apic { 0 } else { APIC_ID };
        Policy { apic_id, cpus: 1, local_apic, tsc_deadline: false }
    }

    /// Has this KVM counters of its own?
    pub fn has_counters(&mut self) -> Result<bool, Error> {
        Ok(!self.bench()?.vcpu.stats().is_empty())
    }

    fn bench(&mut self) -> Result<&mut Bench, Error> {
        if self.bench.is_none() {
            let memory = mem::create(ground::RAM)?;
            ground::write_page_tables(&memory)?;
            let vm = Vm::new(&self.kvm, &memory, self.irqchip, &[])?;
            let vcpu = vm.create_vcpu(0)?;
            vcpu.set_cpuid(&self.cpuid, &self.policy(), &Model::default())?;
            let counters = counters(&vcpu);
            self.bench = Some(Bench { _vm: vm, vcpu, memory, counters });
        }
        self.bench.as_mut().ok_or_else(|| unreachable!("it was just made"))
    }

    /// Runs a plan once.
    pub fn run(&mut self, plan: &Plan<'_>) -> Result<Run, Error> {
        let program = plan.assemble();
        let limit = self.limit.unwrap_or(FIRST_LIMIT);
        let bench = self.bench()?;
        bench.prepare(plan, &program)?;
        let began = Instant::now();
        let run = bench.run(plan.context, &program, limit)?;
        if run.end == End::Finished {
            let longest = (began.elapsed() * PATIENCE).clamp(LEAST_LIMIT, FIRST_LIMIT);
            self.limit = Some(self.limit.map_or(longest, |limit| limit.max(longest)));
        }
        if !matches!(run.end, End::Finished | End::Vector { .. } | End::Landed { .. }) {
            self.bench = None; // other code may have left anything behind
        }
        Ok(run)
    }
}

impl Bench {
    fn prepare(&mut self, plan: &Plan<'_>, program: &Program) -> Result<(), Error> {
        let memory = &self.memory;
        ground::write(memory, plan.context.is_long())?;
        let mut scratch = [0; (ground::START_TIME + 8 - ground::SCRATCH) as usize];
        scratch[..program.operand.len()].copy_from_slice(&program.operand);
        memory.write_slice(&scratch, GuestAddress(ground::SCRATCH))?;
        memory.write_slice(&program.launch, GuestAddress(ground::LAUNCH))?;
        memory.write_slice(&program.code, GuestAddress(ground::PROBE))?;
        memory.write_slice(&program.stack, GuestAddress(ground::STACK))?;
        memory.write_slice(&program.frame, GuestAddress(program.launch_stack))?;
        let mut cpu = if plan.there { plan.context.cpu_there() } else { plan.context.cpu() };
        if !plan.there {
            cpu.regs.rsp = program.launch_stack;
        }
        cpu.cr4 = crate::x86::Cr4::from_bits_retain(plan.cr4);
        if !plan.msrs.is_empty() {
            cpu.efer |= Efer::SCE;
        }
        self.vcpu.set_entry(&cpu);
        Ok(())
    }

    fn run(&mut self, context: Context, program: &Program, limit: Duration) -> Result<Run, Error> {
        let mut user = vec![];
        let end =
            limited(&mut self.vcpu, limit, |it| drive(it, &mut user)).map_err(Error::Timer)?;
        let now = counters(&self.vcpu);
        let counters = grown(&self.counters, &now);
        self.counters = now;
        let (regs, _) = self.vcpu.last_registers();
        let memory = &self.memory;
        let frame = Frame::read(memory, context, &regs, end.vector())?;
        let end = match end {
            Stop::Stub(number) => frame.end(number, program),
            Stop::Failed { words, rip } if !program.has(rip) => End::Elsewhere { words, rip },
            Stop::Failed { words, .. } | Stop::Died(words) => End::Died { words },
            Stop::Refused => End::Refused,
            Stop::Hung => End::Hung,
        };
        let mut operand = [0; 16];
        memory.read_slice(&mut operand, GuestAddress(ground::SCRATCH))?;
        let start = memory.read_obj(GuestAddress(ground::START_TIME))?;
        let counts = Counts { counters, user };
        Ok(Run { end, regs, flags: frame.flags, top: frame.top, operand, start, counts })
    }
}

/// The counters that only grow.
fn counters(vcpu: &Vcpu) -> Vec<(String, u64)> {
    let counts = vcpu.stats().into_iter().filter(|stat: &Stat| stat.kind == StatKind::Cumulative);
    counts.filter_map(|stat| Some((stat.name, *stat.values.first()?))).collect()
}

fn grown(before: &[(String, u64)], after: &[(String, u64)]) -> Option<Vec<(String, u64)>> {
    if after.is_empty() {
        return None;
    }
    let pairs = before.iter().zip(after).filter(|(old, new)| old.0 == new.0 && old.1 != new.1);
    Some(pairs.map(|(old, new)| (new.0.clone(), new.1.wrapping_sub(old.1))).collect())
}

/// Where the exits of a run stop.
enum Stop {
    Stub(u64),
    /// At an instruction that KVM cannot emulate.
    Failed {
        words: String,
        rip: u64,
    },
    Died(String),
    Refused,
    Hung,
}

impl Stop {
    /// The vector whose handler it stopped in.
    fn vector(&self) -> Option<u8> {
        match self {
            Self::Stub(number) => u8::try_from(*number).ok(),
            _ => None,
        }
    }
}

/// Gives the exits what they ask for until one of the stubs, or the end.
fn drive(it: &mut Limited<'_>, user: &mut Vec<ExitKind>) -> Stop {
    loop {
        let Some((rip, exit)) = it.run() else { return Stop::Hung };
        let kind = exit.kind();
        match exit {
            Exit::PioIn { data, .. } | Exit::MmioRead { data, .. } => data.fill(0xFF),
            Exit::PioOut { port: ground::STUB_PORT, .. } | Exit::Hlt if stub(rip).is_some() => {
                return stub(rip).map_or(Stop::Hung, Stop::Stub);
            }
            Exit::PioOut { .. } | Exit::MmioWrite { .. } | Exit::Hlt => {}
            Exit::ReadMsr { error, .. } | Exit::WriteMsr { error, .. } => *error = 1,
            Exit::Hypercall { result, .. } => *result = 0,
            Exit::Failed { errno: libc::EINVAL } => return Stop::Refused,
            Exit::Failed { errno } => {
                let error = std::io::Error::from_raw_os_error(errno);
                return Stop::Died(format!("KVM_RUN failed: {error}"));
            }
            Exit::Shutdown => return Stop::Died("a triple fault".to_owned()),
            Exit::InternalError(_) => return Stop::Failed { words: words(&exit), rip },
            other => return Stop::Died(words(&other)),
        }
        user.push(kind);
        if user.len() > MOST_EXITS {
            return Stop::Hung;
        }
    }
}

fn words(exit: &Exit<'_>) -> String {
    let words = kvm_words(exit).join("; ");
    if words.is_empty() { format!("{exit:?}") } else { words }
}

/// The stub that this RIP lies in: at its OUT or behind it, behind its HLT.
fn stub(rip: u64) -> Option<u64> {
    let number = rip.checked_sub(ground::STUBS)? / ground::STUB_SIZE;
    (number <= ground::LANDING_NUMBER).then_some(number)
}

/// What an exception left on the stack of its handler (Intel SDM Vol. 3A, figures 6-4 and 6-9).
#[derive(Debug, Default)]
struct Frame {
    error: Option<u64>,
    rip: u64,
    cs: u64,
    flags: u64,
    top: u64,
}

impl Frame {
    fn read(
        memory: &GuestMemory,
        context: Context,
        regs: &Regs,
        vector: Option<u8>,
    ) -> Result<Self, Error> {
        let Some(vector) = vector.filter(|vector| u64::from(*vector) < ground::LANDING_NUMBER)
        else {
            return Ok(Self::default());
        };
        let real = context.mode == Mode::Real;
        let width = match context.mode {
            Mode::Real => 2,
            _ if context.is_long() => 8,
            _ => 4,
        };
        let has_error = !real && ground::has_error_code(vector);
        let base = if real { regs.rsp & 0xFFFF } else { regs.rsp & 0xFFFF_FFFF };
        let word = |address: u64, width: u64| {
            let mut bytes = [0; 8];
            // A stack pointer that went astray has nothing to show.
            let _ = memory.read_slice(&mut bytes[..width as usize], GuestAddress(address));
            u64::from_le_bytes(bytes)
        };
        let at = |index: u64| word(base + (index + u64::from(has_error)) * width, width);
        // The stack pointer of the program: pushed, or just above the frame.
        let switched = context.is_long() || context.ring > 0;
        let sp = if switched { at(3) } else { base + (3 + u64::from(has_error)) * width };
        let sp = if context.is_8086() { sp & 0xFFFF } else { sp };
        Ok(Self {
            error: has_error.then(|| word(base, width)),
            rip: at(0),
            cs: at(1),
            flags: at(2),
            top: word(sp, context.width() as u64),
        })
    }

    fn end(&self, number: u64, program: &Program) -> End {
        let ring = (self.cs & 3) as u8;
        match u8::try_from(number) {
            Ok(6) if self.rip == program.end => End::Finished,
            _ if number == ground::LANDING_NUMBER => End::Landed { ring: 0 },
            // HLT outside ring 0.
            _ if self.rip == ground::LANDING => End::Landed { ring },
            // A fault's handler returns to the instruction, a trap's and a gate's behind it.
            Ok(number) if [program.at, program.next].contains(&self.rip) => {
                End::Vector { number, error: self.error }
            }
            Ok(number) => End::Elsewhere { words: exception(number), rip: self.rip },
            Err(_) => End::Hung,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::context::LONG_3;
    use super::*;

    #[test]
    fn an_exception_is_the_instructions_at_it_and_behind_it_only() {
        let program = Plan { bytes: &[0xF4], ..Plan::empty(LONG_3) }.assemble();
        let end = |rip| Frame { rip, ..Frame::default() }.end(13, &program);
        for rip in [program.at, program.at + 1] {
            assert_eq!(end(rip), End::Vector { number: 13, error: None });
        }
        let words = exception(13);
        assert_eq!(end(0x47), End::Elsewhere { words, rip: 0x47 });
        assert!(program.has(program.at) && !program.has(ground::GDT));
    }
}
