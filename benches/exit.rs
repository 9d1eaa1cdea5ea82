//! What user space does for an exit before it asks a device: decode `kvm_run`, and note the
//! exit in the flight recorder. The floor reads three fields of `kvm_run` and no more. The
//! difference between the other two is the recorder's price.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use kvm_bindings::{
    KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_EXIT_IO_OUT, KVM_EXIT_MMIO, kvm_run,
    kvm_run__bindgen_ty_1__bindgen_ty_4 as KvmIo,
};
use ringfence::kvm::{Exit, decode};
use ringfence::vcpu::Recorder;

const DATA: u64 = 4096;

/// What KVM maps: `kvm_run`, and a page for the data of port I/O.
struct Page(Vec<u64>);

impl Page {
    fn new(fill: impl FnOnce(&mut kvm_run)) -> Self {
        let mut page = Self(vec![0; 1536]);
        fill(page.run());
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

/// What the run loop does with an exit's data: answers a read, as wide as it is, looks at a write.
fn serve(exit: Exit<'_>) -> Option<&[u8]> {
    match exit {
        Exit::PioIn { data, .. } | Exit::MmioRead { data, .. } => {
            if let [one] = data {
                *one = black_box(0x5A);
            } else {
                data.copy_from_slice(&black_box(0x5A_u32).to_ne_bytes());
            }
            Some(data)
        }
        Exit::PioOut { data, .. } | Exit::MmioWrite { data, .. } => {
            black_box(data[0]);
            None
        }
        other => panic!("{other:?}"),
    }
}

fn bench(c: &mut Criterion, name: &str, mut page: Page) {
    let mut group = c.benchmark_group(format!("exit/{name}"));
    group.bench_function("floor: three fields", |b| {
        b.iter(|| {
            let run = black_box(&mut page).run();
            // SAFETY: every bit pattern is one of the member's integers.
            let mmio = unsafe { &run.__bindgen_anon_1.mmio };
            u64::from(run.exit_reason) + mmio.phys_addr + u64::from(mmio.len)
        });
    });
    group.bench_function("decode", |b| {
        b.iter(|| serve(decode(black_box(&mut page).bytes())).is_some());
    });
    let mut recorder = Recorder::default();
    group.bench_function("decode and record", |b| {
        b.iter(|| {
            let recorder = black_box(&mut recorder);
            let exit = decode(black_box(&mut page).bytes());
            recorder.note(black_box(0x10_0042), 0, &exit);
            if let Some(answer) = serve(exit) {
                recorder.answer(answer);
            }
        });
    });
    group.finish();
    let kept = recorder.tail(usize::MAX);
    assert!(kept.len() == 128 && kept.iter().all(|r| r.rip == 0x10_0042), "{kept:?}");
}

fn exits(c: &mut Criterion) {
    bench(c, "pio out", pio(KVM_EXIT_IO_OUT));
    bench(c, "pio in", pio(KVM_EXIT_IO_IN));
    bench(c, "mmio write", mmio(true));
    bench(c, "mmio read", mmio(false));
}

criterion_group!(benches, exits);
criterion_main!(benches);
