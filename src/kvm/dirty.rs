//! Which pages the guest has written to: KVM's dirty log (api.rst, KVM_GET_DIRTY_LOG).
//!
//! The log and not the dirty ring: a ring has to be there before the first vCPU, so that every
//! machine would pay for it. With manual protection reading the log only copies its bits, and
//! what is cleared are the chunks that have some.

use std::os::fd::AsRawFd;

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_MEM_LOG_DIRTY_PAGES, KVMIO, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_dirty_log, kvm_dirty_log__bindgen_ty_1,
};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_iow_nr, ioctl_iowr_nr};

use super::slots::{Slot, cut, slots};
use super::{Error, Vm};
use crate::mem::{GuestAddress, PAGE_SIZE, Range, is_touched};

ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xC0, kvm_clear_dirty_log);

/// Pages a word of the bitmap; KVM clears whole words.
const WORD: u64 = 64;

/// Words without a bit that are cleared with their neighbours: an ioctl costs more than that
/// many look-ups in the kernel.
const GAP: usize = 128;

/// Words that are looked at together.
const GROUP: usize = 16;

/// Numbers of the slots that come with the log: those behind are the machine's first ones.
const FIRST_PIECE: u32 = 16_000;

/// The log of a VM's writable memory.
#[derive(Debug)]
pub struct DirtyLog {
    slots: Vec<Logged>,
    /// Clearing is an ioctl of its own.
    manual: bool,
    /// Room for the largest slot's bits.
    words: Vec<u64>,
}

/// A slot that can be written to.
#[derive(Debug)]
struct Logged {
    number: u32,
    range: Range,
    /// Something may have been written there. What was never touched has no bit to be read: so
    /// the cost of reading the log grows with the memory that a guest uses, not with what it has.
    touched: bool,
}

impl Logged {
    fn pages(&self) -> u64 {
        self.range.len() / PAGE_SIZE
    }
}

impl Vm {
    /// Switches the log on, once in the life of a VM: what is written from now on is in it. Guests
    /// are slowed by a fault for each page that they first write to. Large slots are cut into what
    /// has been touched and what has not; no vCPU runs.
    pub fn log_dirty(&self, guarded: &[super::Guarded]) -> Result<DirtyLog, Error> {
        let manual = self.fd.check_extension_raw(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.into()) > 0;
        if manual {
            self.enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 1)
                .map_err(Error::ioctl("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"))?;
        }
        let is_touched = |range| is_touched(&self.memory, &range);
        let mut logged = Vec::new();
        let mut numbers = FIRST_PIECE..;
        for (old, slot) in (0..).zip(slots(&self.memory, guarded)).filter(|(_, s)| !s.read_only) {
            let pieces = cut(&slot, is_touched);
            if pieces.len() > 1 {
                // A slot's size cannot be changed.
                self.set_slot(old, &Slot { len: 0, ..slot }, 0)?;
            }
            for piece in &pieces {
                let own = pieces.len() > 1;
                let number = own.then(|| numbers.next()).flatten().unwrap_or(old);
                self.set_slot(number, piece, KVM_MEM_LOG_DIRTY_PAGES)?;
                let range = Range { start: piece.start, end: piece.start + piece.len };
                logged.push(Logged { number, range, touched: is_touched(range) });
            }
        }
        let most = logged.iter().map(|slot| slot.pages().div_ceil(WORD)).max().unwrap_or(0);
        Ok(DirtyLog { slots: logged, manual, words: vec![0; most as usize] })
    }
}

impl DirtyLog {
    /// Calls `page` with each page that was written to since the last call, and begins anew.
    pub fn take(&mut self, vm: &Vm, mut page: impl FnMut(GuestAddress)) -> Result<(), Error> {
        for slot in &mut self.slots {
            slot.touched = slot.touched || is_touched(&vm.memory, &slot.range);
            if slot.touched {
                let words = &mut self.words[..slot.pages().div_ceil(WORD) as usize];
                take(vm, slot, self.manual, words, &mut page)?;
            }
        }
        Ok(())
    }
}

fn take(
    vm: &Vm,
    slot: &Logged,
    manual: bool,
    words: &mut [u64],
    page: &mut impl FnMut(GuestAddress),
) -> Result<(), Error> {
    get(vm, slot.number, words)?;
    let clear = |(first, last): (usize, usize)| match manual {
        true => clear(vm, slot, &words[first..=last], first),
        false => Ok(()),
    };
    let mut run: Option<(usize, usize)> = None; // first and last word with a bit
    for (group, some) in words.chunks(GROUP).enumerate() {
        if some.iter().fold(0, |all, word| all | word) == 0 {
            continue;
        }
        for (at, bits) in (group * GROUP..).zip(some).filter(|(_, bits)| **bits != 0) {
            run = match run {
                Some((first, last)) if at - last <= GAP => Some((first, at)),
                other => {
                    other.map_or(Ok(()), clear)?;
                    Some((at, at))
                }
            };
            let mut bits = *bits;
            while bits != 0 {
                let number = at as u64 * WORD + u64::from(bits.trailing_zeros());
                page(GuestAddress(slot.range.start + number * PAGE_SIZE));
                bits &= bits - 1;
            }
        }
    }
    run.map_or(Ok(()), clear)
}

fn get(vm: &Vm, slot: u32, words: &mut [u64]) -> Result<(), Error> {
    let dirty_bitmap = words.as_mut_ptr().cast();
    let log = kvm_dirty_log {
        slot,
        padding1: 0,
        __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 { dirty_bitmap },
    };
    // SAFETY: KVM writes a bit for each of the slot's pages, rounded up to words: as many words
    // as there are.
    match unsafe { ioctl_with_ref(&vm.fd.as_raw_fd(), KVM_GET_DIRTY_LOG(), &log) } {
        0 => Ok(()),
        _ => Err(Error::ioctl("KVM_GET_DIRTY_LOG")(kvm_ioctls::Error::last())),
    }
}

/// Clears the words of the bitmap from word `first` on.
fn clear(vm: &Vm, slot: &Logged, words: &[u64], first: usize) -> Result<(), Error> {
    let first_page = first as u64 * WORD;
    let num_pages = (words.len() as u64 * WORD).min(slot.pages() - first_page) as u32;
    let slot = slot.number;
    let dirty_bitmap = words.as_ptr().cast_mut().cast();
    let mut log = kvm_clear_dirty_log {
        slot,
        num_pages,
        first_page,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 { dirty_bitmap },
    };
    // SAFETY: KVM reads a bit for each of the pages, which are those of `words`.
    match unsafe { ioctl_with_mut_ref(&vm.fd.as_raw_fd(), KVM_CLEAR_DIRTY_LOG(), &mut log) } {
        0 => Ok(()),
        _ => Err(Error::ioctl("KVM_CLEAR_DIRTY_LOG")(kvm_ioctls::Error::last())),
    }
}
