//! Breakpoints and watchpoints: which are set, where they went, what a backend cannot do.

use super::probe::Limits;
use crate::kvm::{HardwareBreakpoint, WatchKind};
use crate::mem::{Bytes, GuestAddress, GuestMemory, GuestMemoryBackend};

/// INT3.
const INT3: u8 = 0xCC;

/// What stops the guest at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Execution: INT3 where that works, else a debug register, else single steps.
    Software,
    /// Execution, by a debug register where that works, else by single steps.
    Hardware,
    /// Data, by debug registers.
    Watch(Watch),
}

/// Which accesses to data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Writes.
    Write,
    /// Reads. x86 cannot watch for reads alone: writes stop too.
    Read,
    /// Both.
    Access,
}

/// Why a breakpoint or a watchpoint could not be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The backend never fires them.
    #[error(
        "this KVM never fires data watchpoints; in gdb, `set can-use-hw-watchpoints 0` watches by single-stepping"
    )]
    NoWatchpoints,
    /// The four debug registers are not enough.
    #[error("the processor's four debug registers are in use")]
    NoRegister,
    /// Nothing stops the guest anywhere.
    #[error(
        "this KVM has no breakpoints: it honours neither INT3 nor debug registers, and steps no instruction"
    )]
    NoBreakpoints,
}

/// How a breakpoint or a watchpoint was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// INT3 in the guest's memory.
    Patch,
    /// Debug registers.
    Register,
    /// Single steps, each compared.
    Steps,
}

/// An INT3 in guest memory.
#[derive(Clone, Copy, Debug)]
struct Patch {
    linear: u64,
    physical: u64,
    original: u8,
    /// Where it is in this process: a restart makes another memory beside this one.
    host: Option<usize>,
}

/// A debug register in use.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// As it was asked for: address, length and kind.
    asked: (u64, u64, Point),
    register: HardwareBreakpoint,
}

/// All that are set, the same on every vCPU.
#[derive(Debug, Default)]
pub(super) struct Breakpoints {
    patches: Vec<Patch>,
    slots: [Option<Slot>; 4],
    /// Places that single steps look for.
    sought: Vec<(u64, Point)>,
}

impl Breakpoints {
    /// Sets one. `physical` is where `address` leads, if anywhere yet: without it a
    /// breakpoint takes a debug register, which holds a linear address.
    pub(super) fn add(
        &mut self,
        memory: &GuestMemory,
        limits: Limits,
        (address, len, point): (u64, u64, Point),
        physical: Option<u64>,
    ) -> Result<How, Refusal> {
        let asked = (address, len, point);
        match point {
            Point::Watch(_) if !limits.watch => Err(Refusal::NoWatchpoints),
            Point::Watch(watch) => {
                let kind = if watch == Watch::Write { WatchKind::Write } else { WatchKind::Access };
                self.take_slots(asked, &pieces(address, len), kind)
            }
            Point::Software if limits.int3 && self.patch(memory, address, physical) => {
                Ok(How::Patch)
            }
            Point::Software | Point::Hardware => self.add_without_patch(limits, asked),
        }
    }

    fn add_without_patch(
        &mut self,
        limits: Limits,
        asked: (u64, u64, Point),
    ) -> Result<How, Refusal> {
        let (address, _, point) = asked;
        let taken = match limits.hardware {
            true => self.take_slots(asked, &[(address, 1)], WatchKind::Execute),
            false => Err(Refusal::NoBreakpoints),
        };
        // Who asks for a debug register is told that there is none left.
        let may_step = limits.step && (point == Point::Software || !limits.hardware);
        if taken.is_err() && may_step {
            self.sought.push((address, point));
            return Ok(How::Steps);
        }
        taken
    }

    /// Takes one away; false when it was not set.
    pub(super) fn remove(&mut self, memory: &GuestMemory, asked: (u64, u64, Point)) -> bool {
        let (address, _, point) = asked;
        if point == Point::Software
            && let Some(at) = self.patches.iter().position(|patch| patch.linear == address)
        {
            let patch = self.patches.swap_remove(at);
            if self.at(patch.physical).is_none() {
                unpatch(memory, &patch);
            }
            return true;
        }
        if let Some(at) = self.sought.iter().position(|it| *it == (address, point)) {
            self.sought.swap_remove(at);
            return true;
        }
        let mut found = false;
        for slot in &mut self.slots {
            if slot.is_some_and(|slot| slot.asked == asked) {
                (*slot, found) = (None, true);
            }
        }
        found
    }

    /// Takes all away.
    pub(super) fn clear(&mut self, memory: &GuestMemory) {
        self.patches.drain(..).for_each(|patch| unpatch(memory, &patch));
        self.slots = [None; 4];
        self.sought.clear();
    }

    /// The machine has started again, with this memory: with another one, in which nothing is
    /// patched, or with that which it slept with.
    pub(super) fn moved_to(&mut self, memory: &GuestMemory) {
        for patch in self.patches.drain(..) {
            if host(memory, patch.physical) == patch.host {
                unpatch(memory, &patch);
            }
        }
    }

    /// The patch at a physical address: several linear ones may lead there.
    fn at(&self, physical: u64) -> Option<&Patch> {
        self.patches.iter().find(|patch| patch.physical == physical)
    }

    fn patch(&mut self, memory: &GuestMemory, linear: u64, physical: Option<u64>) -> bool {
        let Some(physical) = physical else { return false };
        let same = |patch: &Patch| (patch.linear, patch.physical) == (linear, physical);
        if self.patches.iter().any(same) {
            return true;
        }
        let original = match self.at(physical) {
            Some(patch) => Ok(patch.original),
            None => memory.read_obj::<u8>(GuestAddress(physical)),
        };
        let Ok(original) = original else { return false };
        if memory.write_obj(INT3, GuestAddress(physical)).is_err() {
            return false;
        }
        self.patches.push(Patch { linear, physical, original, host: host(memory, physical) });
        true
    }

    fn take_slots(
        &mut self,
        asked: (u64, u64, Point),
        pieces: &[(u64, u8)],
        kind: WatchKind,
    ) -> Result<How, Refusal> {
        let free = self.slots.iter_mut().filter(|slot| slot.is_none());
        if free.count() < pieces.len() {
            return Err(Refusal::NoRegister);
        }
        let free = self.slots.iter_mut().filter(|slot| slot.is_none());
        for (slot, &(address, len)) in free.zip(pieces) {
            *slot = Some(Slot { asked, register: HardwareBreakpoint { address, len, kind } });
        }
        Ok(How::Register)
    }

    /// The addresses that single steps are to look for.
    pub(super) fn sought(&self) -> Vec<u64> {
        self.sought.iter().map(|(address, _)| *address).collect()
    }

    /// What KVM's debug registers are to hold.
    pub(super) fn registers(&self) -> [Option<HardwareBreakpoint>; 4] {
        self.slots.map(|slot| slot.map(|slot| slot.register))
    }

    /// Is there an INT3 of ours anywhere?
    pub(super) fn has_patches(&self) -> bool {
        !self.patches.is_empty()
    }

    /// Is there an INT3 of ours at this address?
    pub(super) fn is_patched(&self, linear: u64, physical: Option<u64>) -> bool {
        let here = |patch: &Patch| patch.linear == linear || Some(patch.physical) == physical;
        self.patches.iter().any(here)
    }

    /// What was asked for where a debug register fired or a step has come to, a watchpoint first: with it an
    /// instruction has already done what the next one's breakpoint stops before. A backend
    /// that leaves DR6 alone is told by the address.
    pub(super) fn fired(&self, dr6: u64, pc: u64) -> Option<(u64, Point)> {
        let fired = |(n, slot): (usize, &Option<Slot>)| {
            let slot = (*slot)?;
            let executed = slot.register.kind == WatchKind::Execute;
            let at_pc = executed && slot.register.address == pc;
            let marked = dr6 >> n & 1 != 0;
            (if executed { at_pc && (marked || dr6 & 0xF == 0) } else { marked }).then_some(slot)
        };
        let hits = || self.slots.iter().enumerate().filter_map(fired);
        let watch = hits().find(|slot| slot.register.kind != WatchKind::Execute);
        let slot = watch.or_else(|| hits().next());
        let sought = || self.sought.iter().find(|(address, _)| *address == pc).copied();
        slot.map(|slot| (slot.register.address, slot.asked.2)).or_else(sought)
    }

    /// Shows what the guest's memory holds below the patches, in bytes read from `physical`.
    pub(super) fn hide(&self, physical: u64, data: &mut [u8]) {
        for patch in &self.patches {
            let at = patch.physical.wrapping_sub(physical);
            if let Some(byte) = usize::try_from(at).ok().and_then(|at| data.get_mut(at)) {
                *byte = patch.original;
            }
        }
    }

    /// Keeps the patches in bytes that are about to be written to `physical`.
    pub(super) fn keep(&mut self, physical: u64, data: &mut [u8]) {
        let written = data.to_vec();
        for patch in &mut self.patches {
            let at = patch.physical.wrapping_sub(physical);
            let Ok(at) = usize::try_from(at) else { continue };
            if let (Some(byte), Some(original)) = (data.get_mut(at), written.get(at)) {
                (*byte, patch.original) = (INT3, *original);
            }
        }
    }
}

fn host(memory: &GuestMemory, physical: u64) -> Option<usize> {
    memory.get_host_address(GuestAddress(physical)).ok().map(|it| it as usize)
}

/// Puts the original byte back, unless the guest has written something else there since.
fn unpatch(memory: &GuestMemory, patch: &Patch) {
    let at = GuestAddress(patch.physical);
    if memory.read_obj::<u8>(at).is_ok_and(|byte| byte == INT3) {
        let _ = memory.write_obj(patch.original, at); // it was readable: it is RAM
    }
}

/// A range as aligned pieces of 1, 2, 4 and 8 bytes, which is what a debug register can
/// watch; five pieces where more would be needed, one more than there are registers.
fn pieces(address: u64, len: u64) -> Vec<(u64, u8)> {
    let (mut at, mut left) = (address, len.max(1));
    let mut pieces = Vec::new();
    while left > 0 && pieces.len() < 5 {
        let fits = |size: &u64| at.is_multiple_of(*size) && *size <= left;
        let size = [8, 4, 2].into_iter().find(fits).unwrap_or(1);
        pieces.push((at, size as u8));
        at = at.wrapping_add(size);
        left -= size;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem;

    const ALL: Limits = Limits {
        int3: true,
        hardware: true,
        hardware_in_ring3: true,
        watch: true,
        step: true,
        step_in_ring3: true,
    };
    const NO_INT3: Limits = Limits { int3: false, watch: false, ..ALL };
    const STEPS: Limits = Limits { hardware: false, hardware_in_ring3: false, ..NO_INT3 };
    const WRITE: Point = Point::Watch(Watch::Write);

    fn memory() -> GuestMemory {
        let memory = mem::create(1 << 20).unwrap();
        memory.write_slice(&[0x90; 16], GuestAddress(0x1000)).unwrap();
        memory
    }

    fn byte(memory: &GuestMemory, at: u64) -> u8 {
        memory.read_obj(GuestAddress(at)).unwrap()
    }

    #[test]
    fn software_breakpoints_patch_memory_and_hide() {
        let (memory, mut set) = (memory(), Breakpoints::default());
        let asked = (0xFFFF_8000_0000_1004, 1, Point::Software);
        set.add(&memory, ALL, asked, Some(0x1004)).unwrap();
        assert_eq!(byte(&memory, 0x1004), INT3);
        assert!(set.has_patches() && set.is_patched(0, Some(0x1004)));
        let mut data = [INT3; 4];
        set.hide(0x1002, &mut data);
        assert_eq!(data, [INT3, INT3, 0x90, INT3]);
        let mut data = [1, 2, 3, 4];
        set.keep(0x1002, &mut data);
        assert_eq!(data, [1, 2, INT3, 4]);
        assert!(set.remove(&memory, asked));
        assert_eq!(byte(&memory, 0x1004), 3);
        assert!(!set.remove(&memory, asked));
    }

    #[test]
    fn two_breakpoints_may_be_one_byte() {
        let (memory, mut set) = (memory(), Breakpoints::default());
        let [low, high] = [0x1000, 0xFFFF_8000_0000_1000].map(|at| (at, 1, Point::Software));
        for asked in [low, high, low, high] {
            set.add(&memory, ALL, asked, Some(0x1000)).unwrap();
        }
        let mut data = [INT3];
        set.hide(0x1000, &mut data);
        assert_eq!(data, [0x90]);
        set.keep(0x1000, &mut [0x91]);
        assert!(set.remove(&memory, low) && byte(&memory, 0x1000) == INT3);
        assert!(!set.remove(&memory, low));
        assert!(set.remove(&memory, high) && byte(&memory, 0x1000) == 0x91);
    }

    #[test]
    fn what_was_patched_is_put_back_in_the_same_memory_alone() {
        let (slept, mut set) = (memory(), Breakpoints::default());
        let asked = (0x1000, 1, Point::Software);
        set.add(&slept, ALL, asked, Some(0x1000)).unwrap();
        set.moved_to(&slept);
        assert!(byte(&slept, 0x1000) == 0x90 && !set.has_patches());
        set.add(&slept, ALL, asked, Some(0x1000)).unwrap();
        let other = memory();
        other.write_obj(INT3, GuestAddress(0x1000)).unwrap();
        set.moved_to(&other);
        assert!(byte(&other, 0x1000) == INT3 && !set.has_patches());
    }

    #[test]
    fn what_the_guest_wrote_over_a_breakpoint_stays() {
        let (memory, mut set) = (memory(), Breakpoints::default());
        set.add(&memory, ALL, (0x1000, 1, Point::Software), Some(0x1000)).unwrap();
        memory.write_obj(0x55_u8, GuestAddress(0x1000)).unwrap();
        set.clear(&memory);
        assert_eq!(byte(&memory, 0x1000), 0x55);
    }

    #[test]
    fn where_int3_cannot_work_a_debug_register_does() {
        let (memory, mut set) = (memory(), Breakpoints::default());
        set.add(&memory, NO_INT3, (0x1000, 1, Point::Software), Some(0x1000)).unwrap();
        set.add(&memory, ALL, (0x5000_0000, 1, Point::Software), None).unwrap();
        assert_eq!((byte(&memory, 0x1000), set.has_patches()), (0x90, false));
        assert_eq!(set.registers().iter().flatten().count(), 2);
        assert_eq!(set.fired(1, 0x1000), Some((0x1000, Point::Software)));
        assert_eq!(set.fired(0, 0x1000), Some((0x1000, Point::Software)));
        assert_eq!(set.fired(0, 0x1001), None);
        assert!(set.remove(&memory, (0x1000, 1, Point::Software)));
        assert_eq!(set.fired(1, 0x1000), None);
    }

    #[test]
    fn there_are_four_registers_and_some_have_no_watchpoints() {
        let (memory, mut set) = (memory(), Breakpoints::default());
        let refused = set.add(&memory, NO_INT3, (0x1000, 4, WRITE), None);
        assert_eq!(refused, Err(Refusal::NoWatchpoints));
        set.add(&memory, ALL, (0x1001, 7, WRITE), None).unwrap();
        assert_eq!(set.registers().iter().flatten().count(), 3);
        let two = set.add(&memory, ALL, (0x2000, 16, WRITE), None);
        assert_eq!(two, Err(Refusal::NoRegister));
        set.add(&memory, ALL, (0x3000, 1, Point::Hardware), None).unwrap();
        assert_eq!(set.fired(0b1010, 0x3000), Some((0x1002, WRITE)));
        assert!(set.remove(&memory, (0x1001, 7, WRITE)));
        assert_eq!(set.registers().iter().flatten().count(), 1);
    }

    #[test]
    fn where_no_register_works_or_is_left_steps_look_for_breakpoints() {
        let (memory, mut set) = (memory(), Breakpoints::default());
        let [soft, hard] = [Point::Software, Point::Hardware];
        assert_eq!(set.add(&memory, STEPS, (0x1000, 1, hard), None), Ok(How::Steps));
        assert_eq!(set.sought(), [0x1000]);
        assert_eq!(set.fired(1 << 14, 0x1000), Some((0x1000, hard)));
        assert_eq!(set.fired(1 << 14, 0x1001), None);
        assert!(set.remove(&memory, (0x1000, 1, hard)) && set.sought().is_empty());
        for n in 0..4 {
            let at = (0x1000 + n, 1, soft);
            assert_eq!(set.add(&memory, NO_INT3, at, None), Ok(How::Register));
        }
        assert_eq!(set.add(&memory, NO_INT3, (5, 1, hard), None), Err(Refusal::NoRegister));
        assert_eq!(set.add(&memory, NO_INT3, (5, 1, soft), None), Ok(How::Steps));
        let none = Limits { step: false, ..STEPS };
        assert_eq!(set.add(&memory, none, (6, 1, soft), None), Err(Refusal::NoBreakpoints));
        set.clear(&memory);
        assert!(set.sought().is_empty());
    }

    #[test]
    fn ranges_are_watched_in_aligned_pieces() {
        assert_eq!(pieces(0x1000, 8), [(0x1000, 8)]);
        assert_eq!(pieces(0x1001, 7), [(0x1001, 1), (0x1002, 2), (0x1004, 4)]);
        assert_eq!(pieces(0x1003, 2), [(0x1003, 1), (0x1004, 1)]);
        assert_eq!(pieces(u64::MAX, 1), [(u64::MAX, 1)]);
        assert_eq!(pieces(0x1000, u64::MAX).len(), 5);
    }
}
