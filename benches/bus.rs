//! One access dispatched through the bus to one of 24 devices, as a vCPU does it on each
//! exit; beside it the floor, the same device called without a bus. Each device is behind
//! its own Mutex, so its lock is in both figures.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use criterion::{Criterion, criterion_group, criterion_main};
use ringfence::bus::{Bus, BusView, Device, MutDevice};
use ringfence::state::Malformed;

/// A device of one register: what it costs itself is next to nothing.
#[derive(Default)]
struct Register(u64);

impl MutDevice for Register {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(self.0 as u8);
    }
    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0 = self.0.wrapping_add(offset ^ u64::from(data[0]));
    }
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }
    fn restore(&mut self, _state: &[u8]) -> Result<(), Malformed> {
        Ok(())
    }
}

const DEVICES: u64 = 24;
const BASE: u64 = 0xD000_0000;
const STEP: u64 = 0x1000;

fn device() -> Arc<dyn Device> {
    Arc::new(Mutex::new(Register::default()))
}

fn bus() -> Arc<Bus> {
    let bus = Bus::new();
    for n in 0..DEVICES {
        bus.insert("register", BASE + n * STEP, STEP, device()).unwrap();
    }
    bus
}

fn write(view: &mut BusView, device: u64) {
    assert!(view.write(black_box(BASE + device * STEP + 0x50), black_box(&[1, 0, 0, 0])));
}

fn one_vcpu(c: &mut Criterion) {
    let mut group = c.benchmark_group("bus");
    let floor = device();
    group.bench_function("floor: the device itself", |b| {
        b.iter(|| black_box(&floor).write(black_box(0x50), black_box(&[1, 0, 0, 0])));
    });
    let mut view = bus().view();
    group.bench_function("write", |b| b.iter(|| write(&mut view, 17)));
    group.bench_function("write, each device in turn", |b| {
        let mut next = 0;
        b.iter(|| {
            next = (next + 7) % DEVICES;
            write(&mut view, next);
        });
    });
    group.bench_function("write that nobody claims", |b| {
        b.iter(|| assert!(!view.write(black_box(0xFE00_0000), black_box(&[0; 4]))));
    });
    group.finish();
}

/// The time of one vCPU's write while another writes all the time to `other`.
fn beside_another(c: &mut Criterion, name: &str, other: u64) {
    let bus = bus();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut view = bus.view();
            while !stop.load(Ordering::Relaxed) {
                write(&mut view, other);
            }
        });
        let mut view = bus.view();
        c.bench_function(name, |b| b.iter(|| write(&mut view, 17)));
        stop.store(true, Ordering::Relaxed);
    });
}

fn two_vcpus(c: &mut Criterion) {
    beside_another(c, "bus/write, two vCPUs, two devices", 3);
    beside_another(c, "bus/write, two vCPUs, one device", 17);
}

criterion_group!(benches, one_vcpu, two_vcpus);
criterion_main!(benches);
