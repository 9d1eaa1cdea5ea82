//! No device panics, hangs or grows, whatever a guest does to it.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use ringfence::bus::{Bus, MutDevice};
use ringfence::devices::{
    Cmos, Console, DebugConsole, DebugExit, FlushPage, FwCfg, HypercallPorts, Hypercalls,
    IrqLevels, Mailbox, PmTimer, Post, PowerControl, PvPanic, ReadyLine, ResetControl, Scratch,
    Serial, SerialInput, ShutdownPort, SystemControlA, console, i8042,
};
use ringfence::irq::{IrqLine, NotConnected};
use ringfence::mem;
use ringfence::verdict::{StopLine, Verdict};

#[derive(Default)]
struct Counter(AtomicUsize);

impl StopLine for Counter {
    fn stop(&self, verdict: Verdict) {
        assert_ne!(verdict.exit_code(), 70, "no guest can cause a bug's code");
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl ReadyLine for Counter {
    fn ready(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl IrqLine for Counter {
    fn trigger(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Platform {
    bus: Arc<Bus>,
    devices: Vec<Arc<dyn ringfence::bus::Device>>,
    console: Arc<Console>,
    input: SerialInput,
    stops: Arc<Counter>,
    wanted: Arc<Counter>,
}

fn platform() -> Platform {
    fn mutex(device: impl MutDevice + 'static) -> Arc<dyn ringfence::bus::Device> {
        Arc::new(Mutex::new(device))
    }
    let (stops, wanted) = (Arc::<Counter>::default(), Arc::<Counter>::default());
    let console = Console::builder(stops.clone()).capture(100).build();
    let hook = wanted.clone();
    let serial =
        Serial::new(console.clone(), Arc::<Counter>::default(), Box::new(move || hook.trigger()));
    let input = serial.input();
    let stop = || -> Arc<dyn StopLine> { stops.clone() };
    let calls = Arc::new(Hypercalls {
        console: console.clone(),
        stop: stop(),
        processors: 2,
        memory: 1 << 40,
    });
    let clock = || Duration::new(u64::MAX, 999_999_999);
    let (data, command) = i8042::ports(stop());
    let ram = mem::create(1 << 20).unwrap();
    let (bus, mut devices) = (Bus::new(), vec![]);
    for (base, len, device) in [
        (0x60, 1, data),
        (0x64, 1, command),
        (0x70, Cmos::LEN, mutex(Cmos::new(1 << 40, Box::new(clock)))),
        (0x80, 1, Arc::new(Post::default())),
        (0x92, 1, mutex(SystemControlA::new(stop()))),
        (0xE0, Scratch::PORTS, mutex(Scratch::new(Scratch::PORTS))),
        (0xE4, FlushPage::LEN, Arc::new(FlushPage::new(ram.clone()))),
        (0xE9, 1, DebugConsole::new(console.clone())),
        (0xF4, DebugExit::LEN, DebugExit::new(stop())),
        (0x3F8, Serial::LEN, serial),
        (0x505, 1, mutex(PvPanic::new(stop()))),
        (0x510, FwCfg::LEN, mutex(FwCfg::new(u64::MAX, u32::MAX))),
        (0x520, HypercallPorts::LEN, mutex(HypercallPorts::new(calls))),
        (0x5E0, Mailbox::LEN, Mailbox::new(Arc::<Counter>::default())),
        (0x600, PowerControl::LEN, mutex(PowerControl::new(stop()))),
        (0x608, PmTimer::LEN, Arc::new(PmTimer::new(Box::new(clock)))),
        (0xCF9, 1, mutex(ResetControl::new(stop()))),
        (0x2000, IrqLevels::LEN, Arc::new(IrqLevels::new(Arc::new(NotConnected)))),
        (0x8900, 1, mutex(ShutdownPort::new(stop()))),
        // The same devices where a wide access fits, as in memory-mapped I/O.
        (0x1_0000, 8, Arc::new(Post::default())),
        (0x1_0010, 8, mutex(ResetControl::new(stop()))),
        (0x1_0020, 8, mutex(SystemControlA::new(stop()))),
        (0x1_0030, 8, mutex(PvPanic::new(stop()))),
        (0x1_0040, 8, mutex(ShutdownPort::new(stop()))),
        (0x1_0050, 8, DebugConsole::new(console.clone())),
        (0x1_0060, 8, mutex(Cmos::new(0, Box::new(|| Duration::ZERO)))),
        (0x1_0070, 8, i8042::ports(stop()).0),
        (0x1_0080, 8, i8042::ports(stop()).1),
        (0x1_0090, 8, Arc::new(FlushPage::new(ram))),
        (0x1_00A0, 8, mutex(FwCfg::new(0, 0))),
        (0x1_00B0, 8, Arc::new(PmTimer::new(Box::new(clock)))),
        (0x2_0000, Scratch::MEMORY, mutex(Scratch::new(Scratch::MEMORY))),
    ] {
        devices.push(device.clone());
        bus.insert("device", base, len, device).unwrap();
    }
    Platform { bus, devices, console, input, stops, wanted }
}

#[derive(Clone, Debug)]
enum Act {
    Read(usize, u64, usize),
    Write(usize, u64, Vec<u8>),
    Input(Vec<u8>),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let len = || prop_oneof![Just(1_usize), Just(2), Just(4), Just(8)];
    let write = (any::<usize>(), any::<u64>(), len(), any::<[u8; 8]>())
        .prop_map(|(device, offset, len, data)| Act::Write(device, offset, data[..len].to_vec()));
    let read = (any::<usize>(), any::<u64>(), len())
        .prop_map(|(device, offset, len)| Act::Read(device, offset, len));
    let input = vec(any::<u8>(), 0..100).prop_map(Act::Input);
    vec(prop_oneof![5 => write, 4 => read, 1 => input], 0..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_accesses_are_survived(acts in acts()) {
        let pc = platform();
        let (ranges, mut view) = (pc.bus.ranges(), pc.bus.view());
        // An offset that fits the access, or `None` where the range is too short for it.
        let place = |device: usize, offset: u64, len: usize| {
            let (base, size, _) = ranges[device % ranges.len()];
            let last = size.checked_sub(len as u64)?;
            Some(base + offset % (last + 1))
        };
        let (mut accesses, mut bytes) = (0, 0);
        let half = acts.len() / 2;
        let save = || pc.devices.iter().map(|device| device.save()).collect::<Vec<_>>();
        let mut saved = save();
        for (number, act) in acts.into_iter().enumerate() {
            if number == half {
                saved = save();
            }
            match act {
                Act::Read(device, offset, len) => {
                    if let Some(address) = place(device, offset, len) {
                        prop_assert!(view.read(address, &mut [0xAA; 8][..len]));
                    }
                }
                Act::Write(device, offset, data) => {
                    if let Some(address) = place(device, offset, data.len()) {
                        prop_assert!(view.write(address, &data));
                        (accesses, bytes) = (accesses + 1, bytes + data.len());
                    }
                }
                Act::Input(data) => prop_assert!(pc.input.push(&data) <= 64),
            }
        }
        // Whatever came after, each device is put back to what it was.
        for (device, state) in pc.devices.iter().zip(&saved) {
            prop_assert_eq!(device.restore(state), Ok(()));
        }
        prop_assert_eq!(save(), saved);
        prop_assert!(pc.stops.0.load(Ordering::Relaxed) <= accesses);
        prop_assert!(pc.wanted.0.load(Ordering::Relaxed) <= 1);
        prop_assert!(pc.console.total() <= bytes as u64);
        prop_assert!(pc.console.tail().len() <= console::TAIL);
        prop_assert!(pc.console.captured().len() <= 100);
    }
}
