//! An exit kept for later, as it lies in `kvm_run`: a few words are copied, and decoded when
//! somebody looks. Called once an exit, for the flight recorder of `vcpu`, so each branch counts.

use kvm_bindings::{KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_MMIO, kvm_run, kvm_run__bindgen_ty_1};

use super::Exit;
use super::exit::exit;

/// What the members of `kvm_run`'s union begin with: all that an [`Exit`] is made from but
/// a hypercall's further arguments and an internal error's instruction.
const WORDS: usize = 3;

/// One exit, and RIP.
#[derive(Clone, Copy, Default)]
pub struct Kept {
    rip: u64,
    words: [u64; WORDS],
    /// Of port I/O the first bytes, of a read from memory the answer, of an interruption how
    /// many came before it in a row.
    data: [u8; 8],
    reason: u32,
}

impl Kept {
    /// Of the page that KVM shares with user space.
    ///
    /// # Panics
    /// Where `page` is smaller than `struct kvm_run` or not aligned for it.
    #[inline]
    pub fn new(page: &[u8]) -> Self {
        let run = page.as_ptr().cast::<kvm_run>();
        assert!(page.len() >= size_of::<kvm_run>() && run.is_aligned());
        // SAFETY: size and alignment were checked; every bit pattern is a kvm_run, a C structure
        // of integers; `page` is borrowed for longer.
        let run = unsafe { &*run };
        // SAFETY: the union is larger and aligned as its u64; whichever member the kernel wrote,
        // all of it is initialised: KVM's page begins as zeroes.
        let [a, b, c] = unsafe { *(&raw const run.__bindgen_anon_1).cast::<[u64; WORDS]>() };
        let data = match run.exit_reason {
            // SAFETY: every bit pattern is one of the member's integers.
            KVM_EXIT_IO => first_bytes(page, unsafe { run.__bindgen_anon_1.io }.data_offset),
            _ => [0; 8],
        };
        // SAFETY: the same, of a union with one member.
        let rip = unsafe { run.s.regs.regs.rip };
        Self { rip, words: [a, b, c], data, reason: run.exit_reason }
    }

    /// Completes a read: what it was answered with. Loads as wide as the device's stores: wider
    /// ones would wait until those have reached the cache.
    #[inline]
    pub fn answer(&mut self, data: &[u8]) {
        self.data = match *data {
            [a] => u64::from(a),
            [a, b] => u16::from_le_bytes([a, b]).into(),
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]).into(),
            [a, b, c, d, e, f, g, h, ..] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            _ => value_of(data),
        }
        .to_le_bytes();
    }

    /// RIP as of the exit.
    pub fn rip(&self) -> u64 {
        self.rip
    }

    /// Where both are interruptions: counts the one `before` too, which is then to go. Is it so?
    pub fn absorb(&mut self, before: &Self) -> bool {
        let both = [self.reason, before.reason] == [KVM_EXIT_INTR; 2];
        if both {
            self.data = u64::from(before.count()).to_le_bytes();
        }
        both
    }

    /// Elements of a string instruction, interruptions in a row; 1 for others.
    pub fn count(&self) -> u32 {
        match self.reason {
            // SAFETY: every bit pattern is one of the member's integers.
            KVM_EXIT_IO => unsafe { self.member().io }.count,
            KVM_EXIT_INTR => (value_of(&self.data) as u32).saturating_add(1),
            _ => 1,
        }
    }

    /// Shows the exit itself, of a string its first eight bytes.
    pub fn look<R>(&self, look: impl FnOnce(&Exit<'_>) -> R) -> R {
        let (mut member, mut data) = (self.member(), self.data);
        // SAFETY: every bit pattern is one of the members' integers.
        match self.reason {
            KVM_EXIT_IO => {
                let io = unsafe { &mut member.io };
                io.count = io.count.min(data.len() as u32 / u32::from(io.size).max(1));
                io.data_offset = size_of::<kvm_run>() as u64;
            }
            KVM_EXIT_MMIO if unsafe { member.mmio }.is_write == 0 => member.mmio.data = data,
            _ => {}
        }
        look(&exit(self.reason, &mut member, &mut data))
    }

    fn member(&self) -> kvm_run__bindgen_ty_1 {
        let mut member = kvm_run__bindgen_ty_1 { padding: [0; 256] };
        // SAFETY: the union is larger and aligned as its u64, and made of integers.
        unsafe { *(&raw mut member).cast::<[u64; WORDS]>() = self.words };
        member
    }
}

#[inline]
fn first_bytes(page: &[u8], offset: u64) -> [u8; 8] {
    let data = page.get(offset as usize..).and_then(<[u8]>::first_chunk);
    data.copied().unwrap_or_default()
}

/// The first eight bytes as a number, the lowest first.
#[cold]
pub fn value_of(data: &[u8]) -> u64 {
    data.iter().take(8).rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
pub(crate) mod tests {
    use kvm_bindings::{KVM_EXIT_IO_IN, KVM_EXIT_IO_OUT, KVM_EXIT_X86_WRMSR};

    use super::super::exit::tests::{bytes, io, page};
    use super::*;

    const DATA: usize = 4096;

    /// An exit of port I/O at `rip`, port 0x3F8.
    pub(crate) fn pio(is_in: bool, rip: u64, size: u8, data: &[u8]) -> Kept {
        let direction = if is_in { KVM_EXIT_IO_IN } else { KVM_EXIT_IO_OUT };
        let mut page = io(direction, size, data.len() as u32 / u32::from(size), DATA as u64);
        bytes(&mut page)[DATA..][..data.len()].copy_from_slice(data);
        Kept { rip, ..Kept::new(bytes(&mut page)) }
    }

    /// An interruption at `rip`.
    pub(crate) fn interruption(rip: u64) -> Kept {
        Kept { rip, ..Kept::new(bytes(&mut page(|run| run.exit_reason = KVM_EXIT_INTR))) }
    }

    fn shown(kept: &Kept) -> String {
        kept.look(|exit| format!("{exit:x?}"))
    }

    #[test]
    fn port_io_is_shown_with_its_first_bytes() {
        let one = pio(false, 0, 1, &[7]);
        assert_eq!(shown(&one), shown_exit(&Exit::PioOut { port: 0x3F8, size: 1, data: &[7] }));
        let mut string = pio(true, 0, 2, &[0; 20]);
        string.answer(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        let data = &mut [1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(shown(&string), shown_exit(&Exit::PioIn { port: 0x3F8, size: 2, data }));
        assert_eq!((one.count(), string.count()), (1, 10));
    }

    fn shown_exit(exit: &Exit<'_>) -> String {
        format!("{exit:x?}")
    }

    fn mmio(is_write: u8) -> Kept {
        let mut page = page(|run| {
            run.exit_reason = KVM_EXIT_MMIO;
            // SAFETY: every bit pattern is one of the member's integers.
            let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
            (mmio.phys_addr, mmio.len, mmio.is_write) = (0xD000_0000, 2, is_write);
            mmio.data = [1, 2, 3, 4, 5, 6, 7, 8];
            run.s.regs.regs.rip = 0x1234;
        });
        Kept::new(bytes(&mut page))
    }

    #[test]
    fn a_write_to_memory_has_its_data_and_a_read_its_answer() {
        let (write, mut read) = (mmio(1), mmio(0));
        let address = 0xD000_0000;
        assert_eq!(shown(&write), shown_exit(&Exit::MmioWrite { address, data: &[1, 2] }));
        assert_eq!(shown(&read), shown_exit(&Exit::MmioRead { address, data: &mut [0, 0] }));
        read.answer(&[8, 9]);
        assert_eq!(shown(&read), shown_exit(&Exit::MmioRead { address, data: &mut [8, 9] }));
        assert_eq!((read.rip(), read.count()), (0x1234, 1));
    }

    #[test]
    fn what_has_three_words_keeps_them() {
        let mut page = page(|run| {
            run.exit_reason = KVM_EXIT_X86_WRMSR;
            // SAFETY: every bit pattern is one of the member's integers.
            let msr = unsafe { &mut run.__bindgen_anon_1.msr };
            (msr.index, msr.data) = (0x1234, 0x5678);
        });
        let exit = Exit::WriteMsr { index: 0x1234, value: 0x5678, error: &mut 0 };
        assert_eq!(shown(&Kept::new(bytes(&mut page))), shown_exit(&exit));
    }

    #[test]
    fn answers_of_every_length() {
        for len in 0..=9 {
            let data = &[1, 2, 3, 4, 5, 6, 7, 8, 9][..len];
            let mut kept = Kept::default();
            kept.answer(data);
            assert_eq!(u64::from_le_bytes(kept.data), value_of(data), "{len}");
        }
        assert_eq!(value_of(&[1, 2, 3]), 0x03_0201);
        assert_eq!(value_of(&[1, 2, 3, 4, 5, 6, 7, 8, 9]), 0x0807_0605_0403_0201);
    }
}
