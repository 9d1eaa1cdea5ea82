//! Is CPUID honest: does a guest see in each leaf what KVM was told to show, and do masked bits
//! stay masked? Called by the audit; runs CPUID in the lab.

use super::Error;
use super::context::{Context, LONG_0, LONG_3};
use super::instruction::Input;
use super::lab::{End, Lab};
use super::native;
use super::program::Plan;
use super::report::{Cpuid, MaskedBit, Whose, WrongLeaf};
use crate::x86::cpuid::Leaf;

/// A feature that is masked to see whether it stays so. All are ones that nothing needs.
struct Mask {
    name: &'static str,
    function: u32,
    /// EAX, EBX, ECX, EDX.
    register: usize,
    bit: u32,
}

const fn mask(name: &'static str, function: u32, register: usize, bit: u32) -> Mask {
    Mask { name, function, register, bit }
}

const MASKS: &[Mask] = &[
    mask("pclmulqdq (leaf 1)", 1, 2, 1),
    mask("movbe (leaf 1)", 1, 2, 22),
    mask("aes (leaf 1)", 1, 2, 25),
    mask("rdrand (leaf 1)", 1, 2, 30),
    mask("bmi1 (leaf 7)", 7, 1, 3),
    mask("avx2 (leaf 7)", 7, 1, 5),
    mask("bmi2 (leaf 7)", 7, 1, 8),
    mask("rdseed (leaf 7)", 7, 1, 18),
    mask("adx (leaf 7)", 7, 1, 19),
    mask("abm (leaf 0x80000001)", 0x8000_0001, 2, 5),
    mask("sse4a (leaf 0x80000001)", 0x8000_0001, 2, 6),
    mask("3dnowprefetch (leaf 0x80000001)", 0x8000_0001, 2, 8),
];

/// The leaves of the processor's name, and what the guest is told in them.
const NAME_LEAVES: std::ops::RangeInclusive<u32> = 0x8000_0002..=0x8000_0004;
const NAME: &[u8; 48] = b"ringfence audit: not the host's processor       ";

/// Changes a leaf to what the guest is to see.
pub fn change(leaf: &mut Leaf) {
    if NAME_LEAVES.contains(&leaf.function) {
        let (words, _) = NAME.as_chunks::<4>();
        let first = (leaf.function - NAME_LEAVES.start()) as usize * 4;
        let word = |n: usize| u32::from_le_bytes(words[first + n]);
        (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (word(0), word(1), word(2), word(3));
    }
    for mask in MASKS.iter().filter(|mask| leaf.index == 0 && mask.function == leaf.function) {
        let register = [&mut leaf.eax, &mut leaf.ebx, &mut leaf.ecx, &mut leaf.edx];
        *register.into_iter().nth(mask.register).unwrap_or(&mut 0) &= !(1 << mask.bit);
    }
}

/// Looks at every leaf that KVM shows, in ring 0 and ring 3 of long mode.
pub fn examine(lab: &mut Lab, leaves: &[Leaf]) -> Result<Cpuid, Error> {
    let mut wrong = vec![];
    let mut masked: Vec<_> = MASKS
        .iter()
        .filter(|mask| host_has(mask))
        .map(|mask| (mask, MaskedBit { name: mask.name.to_owned(), shown_in: vec![] }))
        .collect();
    let mut seen_leaves = 0;
    let kept = lab.kept_cpuid()?;
    for context in [LONG_0, LONG_3] {
        for own in leaves {
            let Some(seen) = look(lab, context, own, false)? else { continue };
            seen_leaves += 1;
            for (mask, bit) in &mut masked {
                if (mask.function, 0) == (own.function, own.index) && is_set(mask, &seen) {
                    bit.shown_in.push(context.name.to_owned());
                }
            }
            let same = |leaf: &&Leaf| (leaf.function, leaf.index) == (own.function, own.index);
            let changed = kept.iter().find(same).is_some_and(|kept| fixed(kept) == fixed(&seen));
            let found = compare(context, own, &seen);
            wrong.extend(found.map(|leaf| WrongLeaf { changed_by_kvm: changed, ..leaf }));
        }
    }
    let masked = masked.into_iter().map(|(_, bit)| bit).collect();
    Ok(Cpuid { leaves: seen_leaves, wrong, masked })
}

/// A leaf as the guest sees it; `there`: without an IRET, which cannot run.
pub fn look(
    lab: &mut Lab,
    context: Context,
    leaf: &Leaf,
    there: bool,
) -> Result<Option<Leaf>, Error> {
    let inputs = [Input::Value(leaf.function), Input::Value(leaf.index), Input::None];
    let plan = Plan { bytes: &[0x0F, 0xA2], inputs, there, ..Plan::empty(context) };
    let run = lab.run(&plan)?;
    let (function, index) = (leaf.function, leaf.index);
    let [eax, ebx, ecx, edx] =
        [run.regs.rax, run.regs.rbx, run.regs.rcx, run.regs.rdx].map(|value| value as u32);
    let seen = Leaf { function, index, eax, ebx, ecx, edx };
    Ok((run.end == End::Finished).then_some(seen))
}

fn registers(leaf: &Leaf) -> [u32; 4] {
    [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
}

/// Without the bits that follow the processor's state, or the processor that it runs on, and not a
/// table: OSXSAVE, APIC, OSPKE, the sizes of the state that is on, MONITOR.
fn fixed(leaf: &Leaf) -> [u32; 4] {
    let mut registers = registers(leaf);
    match (leaf.function, leaf.index) {
        (1, _) => {
            registers[2] &= !(1 << 27 | 1 << 3);
            registers[3] &= !(1 << 9);
        }
        (7, 0) => registers[2] &= !(1 << 4),
        (0xD, 0 | 1) => registers[1] = 0,
        _ => {}
    }
    registers
}

/// The registers of a leaf in which each bit stands for itself: there one bit can be the host's.
fn is_bits(leaf: &Leaf) -> [bool; 4] {
    match (leaf.function, leaf.index) {
        (1, _) => [false, false, true, true],
        (7, 0) => [false, true, true, true],
        (7, _) => [true; 4],
        (0xD, 0) => [true, false, false, true],
        (0xD, 1) => [true, false, true, true],
        (0x8000_0001 | 0x8000_0021 | 0x4000_0001, _) => [true, false, true, true],
        (0x8000_0007, _) => [false, true, false, true],
        (0x8000_0008, _) => [false, true, false, false],
        _ => [false; 4],
    }
}

fn compare(context: Context, own: &Leaf, seen: &Leaf) -> Option<WrongLeaf> {
    let host = native::cpuid(own.function, own.index);
    let is_bits = is_bits(own);
    let (seen, own_bits, host_bits) = (fixed(seen), fixed(own), fixed(&host));
    if seen == own_bits {
        return None;
    }
    let wrong = |n: usize| seen[n] ^ own_bits[n];
    // Of numbers the host's is one that is the host's as a whole.
    let hosts = |n: usize| match is_bits[n] {
        true => wrong(n) & !(seen[n] ^ host_bits[n]),
        false if seen[n] == host_bits[n] => wrong(n),
        false => 0,
    };
    let count = |bits: &dyn Fn(usize) -> u32| (0..4).map(|n| bits(n).count_ones()).sum();
    let hosts: u32 = count(&hosts);
    let hex = |registers: [u32; 4]| registers.map(|value| format!("{value:08x}")).join(" ");
    Some(WrongLeaf {
        context: context.name.to_owned(),
        leaf: format!("{:#x}.{}", own.function, own.index),
        value: hex(seen),
        own: hex(own_bits),
        host: hex(host_bits),
        bits: count(&wrong),
        host_bits: hosts,
        changed_by_kvm: false,
        whose: if hosts > 0 { Whose::Host } else { Whose::Constant },
    })
}

fn host_has(mask: &Mask) -> bool {
    is_set(mask, &native::cpuid(mask.function, 0))
}

fn is_set(mask: &Mask, leaf: &Leaf) -> bool {
    registers(leaf)[mask.register] >> mask.bit & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_and_the_masks_are_applied() {
        let all = u32::MAX;
        let mut leaf =
            Leaf { function: 0x8000_0003, index: 0, eax: all, ebx: all, ecx: all, edx: all };
        change(&mut leaf);
        assert_eq!(leaf.eax.to_le_bytes(), NAME[16..20]);
        let mut leaf = Leaf { function: 7, index: 0, eax: all, ebx: all, ecx: all, edx: all };
        change(&mut leaf);
        assert_eq!(leaf.ebx, !(1 << 3 | 1 << 5 | 1 << 8 | 1 << 18 | 1 << 19));
        assert_eq!((leaf.eax, leaf.ecx), (all, all));
    }

    #[test]
    fn a_leaf_is_the_hosts_where_only_the_host_has_it_so() {
        let host = native::cpuid(0x8000_0002, 0);
        let own = Leaf { eax: 1, ebx: 2, ecx: 3, edx: 4, ..host };
        assert_eq!(compare(LONG_3, &own, &own), None);
        assert_eq!(compare(LONG_3, &own, &host).unwrap().whose, Whose::Host);
        let other = Leaf { edx: 5, ..own };
        assert_eq!(compare(LONG_3, &own, &other).unwrap().whose, Whose::Constant);
    }

    #[test]
    fn one_bit_of_the_hosts_among_the_guests_is_the_hosts() {
        let host = native::cpuid(1, 0);
        let bit = 1 << host.ecx.trailing_zeros(); // SSE3 or another that every host has
        let own = Leaf { ecx: 0, ..host };
        let wrong = compare(LONG_3, &own, &Leaf { ecx: bit, ..own }).unwrap();
        assert_eq!((wrong.bits, wrong.host_bits, wrong.whose), (1, 1, Whose::Host));
        // A number is the host's as a whole only.
        let own = Leaf { eax: !host.eax, ..host };
        let wrong = compare(LONG_3, &own, &Leaf { eax: !host.eax ^ 1, ..own }).unwrap();
        assert_eq!((wrong.bits, wrong.host_bits, wrong.whose), (1, 0, Whose::Constant));
    }
}
