//! The clocks that a guest can read, and whose they are. Called by the audit, after the
//! instructions have been tried.

use std::fs;

use super::context::{Context, LONG_0, LONG_3};
use super::judge::leaf;
use super::lab::{End, Lab};
use super::program::Plan;
use super::report::{Clock, InstructionFinding, KVMCLOCK, Msr, Whose};
use super::{Error, ground, native};
use crate::x86::cpuid::Leaf;

/// KVM's leaf of paravirtual features (Linux, Documentation/virt/kvm/x86/cpuid.rst).
const KVM_FEATURES: u32 = 0x4000_0001;
/// KVM_FEATURE_CLOCKSOURCE, its newer form, and the bit that says that it is stable.
const KVM_CLOCK: u32 = 1 << 0 | 1 << 3;
const KVM_CLOCK_STABLE: u32 = 1 << 24;
/// The leaf of the frequencies of TSC and crystal.
const FREQUENCY: u32 = 0x15;

/// MSR_KVM_SYSTEM_TIME_NEW (Linux, Documentation/virt/kvm/x86/msr.rst); bit 0 switches it on.
const SYSTEM_TIME: u32 = 0x4B56_4D01;

/// What is found of each.
pub fn examine(
    lab: &mut Lab,
    rows: &[InstructionFinding],
    msrs: &[Msr],
    leaves: &[Leaf],
) -> Result<Vec<Clock>, Error> {
    let mut clocks = vec![];
    for (context, name) in [("long/0", "RDTSC in ring 0"), ("long/3", "RDTSC in ring 3")] {
        let row = rows.iter().find(|row| row.name == "rdtsc");
        let cell = row.and_then(|row| row.cells.iter().find(|cell| cell.context == context));
        let Some(seen) = cell.and_then(|cell| cell.seen.as_ref()) else { continue };
        let found = if seen.whose == Whose::Host { "the host's own" } else { "with an offset" };
        let (name, found) = (name.to_owned(), found.to_owned());
        clocks.push(Clock { name, found, whose: Some(seen.whose) });
    }
    let offsets = (offset(lab, LONG_0)?, offset(lab, LONG_3)?);
    clocks.extend(offsets.0.zip(offsets.1).map(|(kernel, program)| rings_agree(kernel, program)));
    for index in ["0x10", "0x3b", "0x6e0"] {
        let Some(msr) = msrs.iter().find(|msr| msr.index == index) else { continue };
        let found = msr.value.as_ref().map_or("#GP".to_owned(), |_| msr.why.clone());
        clocks.push(Clock { name: msr.name.clone(), found, whose: msr.whose });
    }
    clocks.push(paravirtual(lab, leaves)?);
    clocks.push(frequency(leaves));
    Ok(clocks)
}

/// How far the guest's clock is behind the host's: at least, and at most.
type Offset = (i128, i128);

/// `None` where RDTSC does not run.
fn offset(lab: &mut Lab, context: Context) -> Result<Option<Offset>, Error> {
    let plan = Plan { bytes: &[0x0F, 0x31], ..Plan::empty(context) };
    let before = i128::from(native::tsc());
    let run = lab.run(&plan)?;
    let after = i128::from(native::tsc());
    let seen = i128::from(run.regs.rdx << 32 | run.regs.rax & 0xFFFF_FFFF);
    Ok((run.end == End::Finished).then_some((before - seen, after - seen)))
}

/// A guest whose kernel and programs have clocks that differ, by the values that they read one
/// after the other in the same VM.
fn rings_agree(kernel: Offset, program: Offset) -> Clock {
    let agree = kernel.0 <= program.1 && program.0 <= kernel.1;
    let found = if agree {
        "they do: one offset to the host's clock"
    } else {
        "they do not: a guest has two clocks that differ"
    };
    let name = "do rings 0 and 3 agree?".to_owned();
    Clock { name, found: found.to_owned(), whose: None }
}

fn paravirtual(lab: &mut Lab, leaves: &[Leaf]) -> Result<Clock, Error> {
    let features = leaf(leaves, KVM_FEATURES).map_or(0, |leaf| leaf.eax);
    let (found, whose) = match (features & KVM_CLOCK != 0, features & KVM_CLOCK_STABLE != 0) {
        (false, _) => ("not offered".to_owned(), None),
        (true, stable) => {
            let stable = if stable { "stable" } else { "not stable" };
            let page = page(lab)?;
            let whose = page.map(|page| page.whose(uptime()));
            let told = match (page, whose) {
                (None, _) => "its page stays empty".to_owned(),
                (Some(page), Some(Whose::Host)) => {
                    format!("the time since the host's start, and {} MHz", page.mhz())
                }
                (Some(page), _) => {
                    format!(
                        "a time of the VM's own, and {} MHz, which the host's TSC has",
                        page.mhz()
                    )
                }
            };
            (format!("offered, {stable}: {told}"), whose)
        }
    };
    Ok(Clock { name: KVMCLOCK.to_owned(), found, whose })
}

/// The seconds since the host's start.
fn uptime() -> Option<f64> {
    fs::read_to_string("/proc/uptime").ok()?.split(' ').next()?.parse().ok()
}

/// What a guest reads in kvmclock's page (struct pvclock_vcpu_time_info).
#[derive(Clone, Copy, Debug)]
struct Page {
    /// Nanoseconds.
    system_time: u64,
    multiplier: u32,
    shift: i8,
}

impl Page {
    /// A time that is within a second of the host's is taken for that.
    fn whose(self, uptime: Option<f64>) -> Whose {
        let seconds = self.system_time as f64 / 1e9;
        match uptime {
            None => Whose::Unknown,
            Some(uptime) if (uptime - seconds).abs() < 1.0 => Whose::Host,
            Some(_) => Whose::Own,
        }
    }

    /// Of the TSC: nanoseconds are (cycles << shift) * multiplier >> 32.
    fn mhz(self) -> u64 {
        let ratio = 2f64.powi(32 - i32::from(self.shift)) / f64::from(self.multiplier.max(1));
        (ratio * 1e3).round() as u64
    }
}

fn page(lab: &mut Lab) -> Result<Option<Page>, Error> {
    let msrs = [(SYSTEM_TIME, ground::CLOCK_PAGE | 1)];
    let run = lab.run(&Plan { msrs: &msrs, ..Plan::empty(LONG_0) })?;
    let mut bytes = [0; 32];
    lab.read(ground::CLOCK_PAGE, &mut bytes)?;
    lab.renew(); // KVM would go on writing there
    let word =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let system_time = u64::from(word(20)) << 32 | u64::from(word(16));
    let page = Page { system_time, multiplier: word(24), shift: bytes[28] as i8 };
    Ok((run.end == End::Finished && page.multiplier != 0).then_some(page))
}

fn frequency(leaves: &[Leaf]) -> Clock {
    let leaf = leaf(leaves, FREQUENCY).unwrap_or_default();
    let found = match (leaf.eax, leaf.ebx, leaf.ecx) {
        (0, ..) | (_, 0, _) => "not told (CPUID 0x15)".to_owned(),
        (divisor, factor, 0) => format!("{factor}/{divisor} of a crystal of unknown frequency"),
        (divisor, factor, crystal) => {
            format!("{} kHz", u64::from(crystal) * u64::from(factor) / u64::from(divisor) / 1000)
        }
    };
    Clock { name: "frequency of the TSC".to_owned(), found, whose: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_differ_are_told() {
        assert!(rings_agree((1000, 2000), (5000, 6000)).found.contains("do not"));
        assert!(rings_agree((1000, 2000), (-6000, -5000)).found.contains("do not"));
        assert!(rings_agree((1000, 2000), (1500, 2500)).found.starts_with("they do:"));
    }

    #[test]
    fn a_page_of_kvmclock_is_the_vms_or_the_hosts() {
        let page = Page { system_time: 5_000_000_000, multiplier: 1 << 31, shift: 0 };
        assert_eq!((page.whose(Some(5.3)), page.whose(Some(900.0))), (Whose::Host, Whose::Own));
        assert_eq!(page.mhz(), 2000);
        assert_eq!(Page { shift: -1, ..page }.mhz(), 4000);
    }

    #[test]
    fn the_frequency_is_crystal_times_factor() {
        let leaf =
            Leaf { function: FREQUENCY, eax: 2, ebx: 200, ecx: 24_000_000, ..Leaf::default() };
        assert_eq!(frequency(&[leaf]).found, "2400000 kHz");
    }
}
