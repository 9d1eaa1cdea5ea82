//! An image into guest memory; beside it the floor, one copy of the same bytes. Memory is
//! touched before and used again, so that neither figure holds the kernel's page faults.
//! What a load leaves beside the image is cleared before the next, outside the measured
//! time: `boot::load` wants fresh memory, and page tables that are there already would send
//! it down a path that no start of a guest takes.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringfence::boot::{self, Protocol, Request};
use ringfence::mem::{self, Bytes, GuestAddress, MemoryMap, Range};

const RAM: u64 = 128 << 20;
const LOAD_ADDRESS: u64 = 1 << 20;

/// ELF64 for x86-64 with one segment of `len` bytes (System V ABI, chapters 4 and 5).
fn elf64(len: usize) -> Vec<u8> {
    const HEADER: u16 = 64;
    const PROGRAM_HEADER: u16 = 56;
    const OFFSET: u64 = 0x1000;
    let mut image = b"\x7FELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend([2_u16, 62].iter().flat_map(|n| n.to_le_bytes())); // executable, x86-64
    image.extend(1_u32.to_le_bytes());
    image.extend([LOAD_ADDRESS, u64::from(HEADER), 0].iter().flat_map(|n| n.to_le_bytes()));
    image.extend(0_u32.to_le_bytes());
    image.extend([HEADER, PROGRAM_HEADER, 1, 0, 0, 0].iter().flat_map(|n| n.to_le_bytes()));
    image.extend([1_u32, 7].iter().flat_map(|n| n.to_le_bytes())); // PT_LOAD, rwx
    let len = len as u64;
    let segment = [OFFSET, LOAD_ADDRESS, LOAD_ADDRESS, len, len, 0x1000];
    image.extend(segment.iter().flat_map(|n| n.to_le_bytes()));
    image.resize(OFFSET as usize, 0);
    image.extend((0..len).map(|n| (n % 251) as u8));
    image
}

fn flat(len: usize) -> Vec<u8> {
    // Never 55 AA at the end, which would make it a boot sector.
    vec![0x90; len]
}

fn load(c: &mut Criterion, name: &str, image: &[u8], payload: &[u8], protocol: Protocol) {
    let map = MemoryMap::new(RAM);
    let memory = mem::create(RAM).unwrap();
    let mut request = Request::new(image, &map, &memory);
    request.protocol = Some(protocol);
    if protocol == Protocol::Flat {
        request.entry = Some(ringfence::x86::Mode::Long);
    }
    let loaded = boot::load(&request).unwrap();
    let mut found = vec![0; payload.len()];
    memory.read_slice(&mut found, GuestAddress(LOAD_ADDRESS)).unwrap();
    assert!(found == payload, "{loaded:?}");

    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Bytes(payload.len() as u64));
    let image_at = |range: &Range| (range.start..range.end).contains(&LOAD_ADDRESS);
    let beside: Vec<Range> =
        loaded.placed.iter().map(|p| p.range).filter(|range| !image_at(range)).collect();
    assert!(!beside.is_empty(), "page tables at least");
    let clear = || {
        for range in &beside {
            let zeros = vec![0; range.len() as usize];
            memory.write_slice(&zeros, GuestAddress(range.start)).unwrap();
        }
    };
    group.bench_function("load", |b| {
        let load = |()| boot::load(black_box(&request)).unwrap();
        b.iter_batched(clear, load, BatchSize::PerIteration);
    });
    group.bench_function("floor: one copy", |b| {
        b.iter(|| memory.write_slice(black_box(payload), GuestAddress(LOAD_ADDRESS)).unwrap());
    });
    group.finish();
}

fn images(c: &mut Criterion) {
    let image = flat(4096);
    load(c, "image/flat 4 KiB", &image, &image, Protocol::Flat);
    let image = elf64(16 << 20);
    load(c, "image/ELF64 16 MiB", &image, &image[0x1000..], Protocol::Elf);
}

criterion_group!(benches, images);
criterion_main!(benches);
