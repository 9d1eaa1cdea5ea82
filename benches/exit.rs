//! What user space does for an exit for the autopsy's sake: note it in the flight recorder, and keep
//! the registers, which KVM loses in a shutdown on AMD-V. Measured against the same exit decoded
//! and served without. No KVM is in it, so that a nanosecond can be seen.
//!
//! The machine may be busy: the ways are measured in turns, and of each the least counts.

use std::hint::black_box;
use std::time::Instant;

use kvm_bindings::{
    KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_EXIT_IO_OUT, KVM_EXIT_MMIO, KVM_EXIT_X86_RDMSR,
    KVM_EXIT_X86_WRMSR, kvm_regs, kvm_run, kvm_run__bindgen_ty_1__bindgen_ty_4 as KvmIo,
};
use ringfence::kvm::{Exit, Kept, decode, general};
use ringfence::vcpu::Recorder;
use ringfence::x86::{Regs, Rflags};

/// Turns that each way has, and exits in one of them.
const TURNS: usize = 2000;
const EXITS: usize = 5000;
/// Pages that the exits come through, in turn: KVM writes one long before it is read, and no
/// load has to wait for a store of the exit before.
const PAGES: usize = 4;

const DATA: u64 = 4096;
const RIP: u64 = 0x10_0042;

/// What KVM maps: `kvm_run`, and a page for the data of port I/O.
struct Page(Vec<u64>);

impl Page {
    fn new(fill: impl FnOnce(&mut kvm_run)) -> Self {
        let mut page = Self(vec![0; 1536]);
        fill(page.run());
        page.run().s.regs.regs.rip = RIP;
        page
    }

    fn run(&mut self) -> &mut kvm_run {
        // SAFETY: 12 KiB, aligned to 8 bytes, all zero at first: a kvm_run, made of integers.
        unsafe { &mut *self.0.as_mut_ptr().cast() }
    }

    fn bytes(&mut self) -> &mut [u8] {
        let len = size_of_val(&self.0[..]);
        // SAFETY: the same memory, exclusively borrowed, as bytes.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), len) }
    }
}

fn pio(direction: u32) -> Page {
    Page::new(|run| {
        run.exit_reason = KVM_EXIT_IO;
        let direction = direction as u8;
        run.__bindgen_anon_1.io =
            KvmIo { direction, size: 1, port: 0x3F8, count: 1, data_offset: DATA };
    })
}

fn mmio(is_write: bool) -> Page {
    Page::new(|run| {
        run.exit_reason = KVM_EXIT_MMIO;
        // SAFETY: every bit pattern is one of the member's integers.
        let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
        (mmio.phys_addr, mmio.len, mmio.is_write) = (0xD000_0000, 4, is_write.into());
    })
}

fn msr(reason: u32) -> Page {
    Page::new(|run| {
        run.exit_reason = reason;
        run.__bindgen_anon_1.msr.index = 0x1234;
    })
}

/// What the run loop does: answers a read, as wide as it is, looks at a write, refuses an MSR.
/// Gives a read's answer.
#[inline(always)]
fn serve(exit: Exit<'_>) -> Option<&[u8]> {
    match exit {
        Exit::PioIn { data, .. } | Exit::MmioRead { data, .. } => {
            if let [one] = data {
                *one = black_box(0x5A);
            } else {
                data.copy_from_slice(&black_box(0x5A_u32).to_ne_bytes());
            }
            return Some(data);
        }
        Exit::PioOut { data, .. } | Exit::MmioWrite { data, .. } => _ = black_box(data[0]),
        Exit::ReadMsr { error, .. } | Exit::WriteMsr { error, .. } => *error = black_box(1),
        other => panic!("{other:?}"),
    }
    None
}

/// What is kept of exits.
struct State {
    recorder: Recorder,
    previous: (Regs, Rflags),
}

fn floor(page: &mut Page, _: &mut State) {
    let run = black_box(page).run();
    // SAFETY: every bit pattern is one of the member's integers.
    let mmio = unsafe { &run.__bindgen_anon_1.mmio };
    black_box(u64::from(run.exit_reason) + mmio.phys_addr + u64::from(mmio.len));
}

/// An exit as `kvm::Vcpu` and the run loop deal with it. Registers are kept before KVM_RUN.
fn exit<const REGISTERS: bool, const RECORDER: bool>(page: &mut Page, state: &mut State) {
    let (page, State { recorder, previous }) = black_box((page, state));
    if REGISTERS {
        // SAFETY: every bit pattern is one of the member's integers.
        *previous = general(unsafe { &page.run().s.regs.regs });
    }
    if RECORDER {
        recorder.note(Kept::new(page.bytes()));
    }
    let answer = serve(decode(page.bytes()));
    if RECORDER && let Some(answer) = answer {
        recorder.answer(answer);
    }
}

type Way = fn(&mut Page, &mut State);

/// In nanoseconds an exit.
fn time(way: Way, pages: &mut [Page; PAGES], state: &mut State) -> f64 {
    let begin = Instant::now();
    for n in 0..EXITS {
        way(&mut pages[n % PAGES], state);
    }
    begin.elapsed().as_nanos() as f64 / EXITS as f64
}

fn bench(name: &str, page: impl Fn() -> Page) {
    const WAYS: [Way; 5] =
        [floor, exit::<false, false>, exit::<false, true>, exit::<true, false>, exit::<true, true>];
    let mut pages = std::array::from_fn(|_| page());
    let previous = general(&kvm_regs::default());
    let mut state = State { recorder: Recorder::default(), previous };
    let mut least = [f64::INFINITY; WAYS.len()];
    for _ in 0..TURNS {
        for (least, way) in least.iter_mut().zip(WAYS) {
            *least = least.min(time(way, &mut pages, &mut state));
        }
    }
    let [floor, without, recorded, kept, both] = least;
    println!(
        "{name:<12} {floor:>8.2} {without:>8.2} {recorded:>8.2} {kept:>8.2} {both:>8.2} {:>10.2} {:>10.2} {:>10.2}",
        recorded - without,
        kept - without,
        both - without
    );
    let noted = state.recorder.tail(usize::MAX);
    assert!(noted.len() == 128 && noted.iter().all(|r| r.rip == RIP), "{noted:?}");
    assert_eq!(state.previous.0.rip, RIP);
}

fn main() {
    println!("nanoseconds an exit, the least of {TURNS} turns of {EXITS}");
    println!(
        "{:<12} {:>8} {:>8} {:>8} {:>8} {:>8} {:>10} {:>10} {:>10}",
        "", "floor", "without", "+record", "+regs", "+both", "recorder", "registers", "together"
    );
    bench("pio out", || pio(KVM_EXIT_IO_OUT));
    bench("pio in", || pio(KVM_EXIT_IO_IN));
    bench("mmio write", || mmio(true));
    bench("mmio read", || mmio(false));
    bench("msr read", || msr(KVM_EXIT_X86_RDMSR));
    bench("msr write", || msr(KVM_EXIT_X86_WRMSR));
}
