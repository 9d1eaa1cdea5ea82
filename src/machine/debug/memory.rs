//! Guest memory as a debugger sees it: by linear addresses through the guest's own page
//! tables, or by physical ones; without the breakpoints.

use super::Debugger;
use super::breakpoints::{How, Point, Refusal};
use crate::inspect::walk::{AddressSpace, Walk};
use crate::mem::{Bytes, GuestAddress, GuestMemory, PAGE_SIZE};
use crate::x86::CpuState;

/// What an address means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Space {
    /// It goes through the page tables of a vCPU.
    #[default]
    Linear,
    /// It is guest-physical.
    Physical,
}

impl Debugger {
    /// Reads memory as vCPU `cpu` sees it; gives back how many bytes there are from the
    /// first on.
    pub fn read(&self, cpu: u32, space: Space, address: u64, data: &mut [u8]) -> usize {
        let state = self.state_for(cpu, space);
        let memory = self.memory();
        let mut done = 0;
        while done < data.len() {
            let at = address.wrapping_add(done as u64);
            let len = piece(at, data.len() - done);
            let physical = physical(&memory, state.as_ref(), space, at);
            let piece = &mut data[done..done + len];
            let Some(physical) = physical else { break };
            if memory.read_slice(piece, GuestAddress(physical)).is_err() {
                break;
            }
            self.breakpoints.hide(physical, piece);
            done += len;
        }
        done
    }

    /// Writes memory; false, and nothing is written, where not all of it is RAM.
    pub fn write(&mut self, cpu: u32, space: Space, address: u64, data: &[u8]) -> bool {
        let state = self.state_for(cpu, space);
        let memory = self.memory();
        let mut places = Vec::new();
        let mut done = 0;
        while done < data.len() {
            let at = address.wrapping_add(done as u64);
            let len = piece(at, data.len() - done);
            let physical = physical(&memory, state.as_ref(), space, at);
            let is_ram = |at: &u64| memory.read_slice(&mut vec![0; len], GuestAddress(*at)).is_ok();
            let Some(physical) = physical.filter(is_ram) else { return false };
            places.push((physical, &data[done..done + len]));
            done += len;
        }
        for (physical, piece) in places {
            let mut piece = piece.to_vec();
            self.breakpoints.keep(physical, &mut piece);
            let _ = memory.write_slice(&piece, GuestAddress(physical)); // it was readable
        }
        true
    }

    fn state_for(&self, cpu: u32, space: Space) -> Option<CpuState> {
        if space == Space::Linear { self.state(cpu) } else { None }
    }

    /// The way of a linear address through the page tables of vCPU `cpu`.
    pub fn walk(&self, cpu: u32, linear: u64) -> Option<Walk> {
        let state = self.state(cpu)?;
        Some(AddressSpace::new(&self.memory(), &state).walk(linear))
    }

    pub(super) fn translate(&self, cpu: u32, linear: u64) -> Option<u64> {
        self.walk(cpu, linear)?.physical()
    }

    /// Sets a breakpoint or a watchpoint for all vCPUs, from the next resume on. Its page is
    /// looked up in the tables of vCPU `cpu`. Gives what there is to know of it, if anything.
    pub fn add(
        &mut self,
        cpu: u32,
        address: u64,
        len: u64,
        point: Point,
    ) -> Result<Option<&'static str>, Refusal> {
        let walk = self.walk(cpu, address);
        let may_be_ring3 = walk.as_ref().is_some_and(Walk::may_be_ring3);
        let physical = walk.and_then(|walk| walk.physical());
        let memory = self.memory();
        let how = self.breakpoints.add(&memory, self.limits, (address, len, point), physical)?;
        let limits = self.limits;
        Ok(match how {
            How::Steps => Some(
                "breakpoints are looked for by single-stepping, which is slow and does not look into interrupt handlers",
            ),
            How::Register if may_be_ring3 && !limits.hardware_in_ring3 && !limits.step_in_ring3 => {
                Some("breakpoints stop ring 0 only: this KVM has none in ring 3")
            }
            _ => None,
        })
    }

    /// Takes it away; false when it was not set.
    pub fn remove(&mut self, address: u64, len: u64, point: Point) -> bool {
        let memory = self.memory();
        self.breakpoints.remove(&memory, (address, len, point))
    }
}

/// Where an address leads; `None` where nothing is mapped, or the vCPU did not tell its `state`.
fn physical(memory: &GuestMemory, state: Option<&CpuState>, space: Space, at: u64) -> Option<u64> {
    match (space, state) {
        (Space::Physical, _) => Some(at),
        (Space::Linear, state) => AddressSpace::new(memory, state?).physical(at),
    }
}

/// Of `len` bytes at `address`, those up to the end of its page.
fn piece(address: u64, len: usize) -> usize {
    let left = PAGE_SIZE - address % PAGE_SIZE;
    len.min(left as usize)
}
