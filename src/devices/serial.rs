//! COM1: a 16550 UART. Registers, receive FIFO and loopback are vm-superio's; the order of
//! interrupt causes, and when the line rings, are here. Called by vCPUs through the bus, and
//! by a thread that brings input through [`SerialInput`].
//!
//! Registers: National Semiconductor PC16550D data sheet.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial as Registers, Trigger};

use super::Console;
use crate::bus::Device;
use crate::irq::IrqLine;
use crate::state::{self, Malformed};

/// Offsets of the registers.
mod register {
    /// Receive buffer when read, transmit holding register when written.
    pub const DATA: u8 = 0;
    pub const INTERRUPT_ENABLE: u8 = 1;
    pub const INTERRUPT_IDENTIFICATION: u8 = 2;
    pub const LINE_CONTROL: u8 = 3;
    pub const MODEM_CONTROL: u8 = 4;
    pub const LINE_STATUS: u8 = 5;
}

/// Interrupt enable: received data.
const ON_RECEIVED: u8 = 1 << 0;
/// Interrupt enable: transmit holding register empty.
const ON_EMPTY: u8 = 1 << 1;
/// Line control: offsets 0 and 1 are the baud rate's divisor.
const DIVISOR_LATCH: u8 = 1 << 7;
/// Modem control: what is sent is received, and the line is cut off.
const LOOPBACK: u8 = 1 << 4;
/// Line status: a received byte waits.
const DATA_READY: u8 = 1 << 0;
/// Interrupt identification (PC16550D table III), with the bits that say "FIFOs on".
const CAUSE_RECEIVED: u8 = 0xC4;
const CAUSE_EMPTY: u8 = 0xC2;
const CAUSE_NONE: u8 = 0xC1;

/// What is called, once, when the guest first looks for input.
pub type Wanted = Box<dyn FnOnce() + Send>;

/// A serial port.
pub struct Serial {
    /// Never held while anything blocks: not over a write to the console, whose reader may
    /// take its time, nor over `irq` or `wanted`.
    port: Mutex<Port>,
    /// Signalled when the FIFO has room again, or input is closed.
    room: Condvar,
    console: Arc<Console>,
    irq: Arc<dyn IrqLine>,
}

struct Port {
    registers: Registers<Unconnected, NoEvents, Sent>,
    wanted: Option<Wanted>,
    /// The interrupt enable register; vm-superio hides its own behind the divisor latch.
    enabled: u8,
    /// "Transmit register empty" is enabled, and the identification register has not named
    /// it since.
    empty_pending: bool,
    closed: bool,
}

/// vm-superio rings once a cause until the identification register is read, which then
/// forgets every cause; so its own ring is left unconnected.
struct Unconnected;

impl Trigger for Unconnected {
    type E = Infallible;
    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// The byte that this access sends.
struct Sent(Option<u8>);

impl Write for Sent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = bytes.last().copied();
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Serial {
    /// Ports that it takes.
    pub const LEN: u64 = 8;

    /// Prints on `console` and rings `irq`. `wanted` is called once, on the vCPU's thread,
    /// when the guest reads the line status or a byte, or enables the receive interrupt:
    /// a guest that never does costs no input thread.
    pub fn new(console: Arc<Console>, irq: Arc<dyn IrqLine>, wanted: Wanted) -> Arc<Self> {
        let port = Port {
            registers: Registers::new(Unconnected, Sent(None)),
            wanted: Some(wanted),
            enabled: 0,
            empty_pending: false,
            closed: false,
        };
        Arc::new(Self { port: Mutex::new(port), room: Condvar::new(), console, irq })
    }

    /// The other end of the line, for a thread that brings input.
    pub fn input(self: &Arc<Self>) -> SerialInput {
        SerialInput(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Port> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One access of the guest's, and then, without the lock, what it caused.
    fn access(&self, access: impl FnOnce(&mut Port) -> Effect) {
        let mut port = self.lock();
        let (rung, room) = (port.line(), port.room());
        let effect = access(&mut port);
        let ring = port.line() && (!rung || effect.pulse);
        let has_room = room == 0 && port.room() > 0;
        let wanted = if effect.wants_input { port.wanted.take() } else { None };
        let sent = port.registers.writer_mut().0.take();
        drop(port);
        if let Some(byte) = sent {
            self.console.write(&[byte]);
        }
        if ring {
            self.irq.trigger();
        }
        if has_room {
            self.room.notify_all();
        }
        if let Some(wanted) = wanted {
            wanted();
        }
    }
}

/// An access of several bytes is one of each of the ports in turn, as on the ISA bus.
impl Device for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (byte, register) in data.iter_mut().zip(offset as u8..) {
            self.access(|port| port.read(register, byte));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (byte, register) in data.iter().zip(offset as u8..) {
            self.access(|port| port.write(register, *byte));
        }
    }

    fn save(&self) -> Vec<u8> {
        self.lock().save()
    }

    fn restore(&self, state: &[u8]) -> Result<(), Malformed> {
        self.lock().restore(state)
    }
}

/// What else an access did.
#[derive(Default)]
struct Effect {
    /// The line went low, if only for a moment: if it is high now, that is a new edge.
    pulse: bool,
    wants_input: bool,
}

impl Port {
    fn read(&mut self, register: u8, byte: &mut u8) -> Effect {
        let is_data = register == register::DATA && !self.divisor_latched();
        *byte = match register {
            register::INTERRUPT_IDENTIFICATION => self.cause(),
            _ => self.registers.read(register),
        };
        Effect { pulse: is_data, wants_input: is_data || register == register::LINE_STATUS }
    }

    fn write(&mut self, register: u8, value: u8) -> Effect {
        let latched = self.divisor_latched();
        // Neither can fail: the output and the ring above do not.
        let _ = self.registers.write(register, value);
        match register {
            register::DATA if !latched => {
                self.empty_pending = self.enabled & ON_EMPTY != 0;
                Effect { pulse: true, wants_input: false }
            }
            register::INTERRUPT_ENABLE if !latched => {
                let newly = value & !self.enabled;
                self.enabled = value;
                self.empty_pending =
                    value & ON_EMPTY != 0 && (self.empty_pending || newly & ON_EMPTY != 0);
                Effect { pulse: false, wants_input: newly & ON_RECEIVED != 0 }
            }
            _ => Effect::default(),
        }
    }

    fn save(&self) -> Vec<u8> {
        // `wanted` and `closed` are the host's.
        let Self { registers, wanted: _, enabled, empty_pending, closed: _ } = self;
        let SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        } = registers.state();
        state::encode(&state::Serial {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            received: in_buffer,
            enabled: *enabled,
            empty_pending: *empty_pending,
        })
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Malformed> {
        let saved: state::Serial = state::decode(state)?;
        let registers = SerialState {
            baud_divisor_low: saved.baud_divisor_low,
            baud_divisor_high: saved.baud_divisor_high,
            interrupt_enable: saved.interrupt_enable,
            interrupt_identification: saved.interrupt_identification,
            line_control: saved.line_control,
            line_status: saved.line_status,
            modem_control: saved.modem_control,
            modem_status: saved.modem_status,
            scratch: saved.scratch,
            in_buffer: saved.received,
        };
        self.registers = Registers::from_state(&registers, Unconnected, NoEvents, Sent(None))
            .map_err(|e| Malformed(format!("a serial port: {e}")))?;
        (self.enabled, self.empty_pending) = (saved.enabled, saved.empty_pending);
        Ok(())
    }

    /// Reads the identification register: the most urgent cause. Only "transmit register
    /// empty" is settled by being read.
    fn cause(&mut self) -> u8 {
        if self.enabled & ON_RECEIVED != 0 && self.received() {
            CAUSE_RECEIVED
        } else if std::mem::take(&mut self.empty_pending) {
            CAUSE_EMPTY
        } else {
            CAUSE_NONE
        }
    }

    /// The level of the interrupt line.
    fn line(&mut self) -> bool {
        self.empty_pending || self.enabled & ON_RECEIVED != 0 && self.received()
    }

    fn received(&mut self) -> bool {
        self.registers.read(register::LINE_STATUS) & DATA_READY != 0
    }

    fn divisor_latched(&mut self) -> bool {
        self.registers.read(register::LINE_CONTROL) & DIVISOR_LATCH != 0
    }

    /// Bytes that the line can bring now: none in loopback, which cuts the line off.
    fn room(&mut self) -> usize {
        let looped = self.registers.read(register::MODEM_CONTROL) & LOOPBACK != 0;
        if looped { 0 } else { self.registers.fifo_capacity() }
    }
}

/// The line into a [`Serial`]. A byte that does not fit is not taken, so none is lost: bring
/// it again when there is [room](Self::wait_for_room). The guest's order to clear the FIFO
/// is not obeyed for the same reason: what a pipe has brought is not line noise.
#[derive(Clone)]
pub struct SerialInput(Arc<Serial>);

impl SerialInput {
    /// Brings bytes, from the first on; how many were taken.
    pub fn push(&self, bytes: &[u8]) -> usize {
        let mut port = self.0.lock();
        let rung = port.line();
        let room = port.room();
        // An error would be a full FIFO, and there is room for these.
        let fitting = bytes.get(..room).unwrap_or(bytes);
        let taken = port.registers.enqueue_raw_bytes(fitting).unwrap_or(0);
        let ring = !rung && port.line();
        drop(port);
        if ring {
            self.0.irq.trigger();
        }
        taken
    }

    /// Waits until there is room; how much, 0 when the time is over or input is closed.
    pub fn wait_for_room(&self, timeout: Duration) -> usize {
        let full = |port: &mut Port| port.room() == 0 && !port.closed;
        let waited = self.0.room.wait_timeout_while(self.0.lock(), timeout, full);
        let (mut port, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if port.closed { 0 } else { port.room() }
    }

    /// Undoes [`Self::close`], when the machine is put back.
    pub fn reopen(&self) {
        self.0.lock().closed = false;
    }

    /// Ends every wait, now and later. For whoever stops the machine.
    pub fn close(&self) {
        self.0.lock().closed = true;
        self.0.room.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::super::testing;
    use super::*;

    #[derive(Default)]
    struct Bell(AtomicUsize);

    impl IrqLine for Bell {
        fn trigger(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Pc {
        serial: Arc<Serial>,
        console: Arc<Console>,
        bell: Arc<Bell>,
        wanted: Arc<Bell>,
    }

    impl Pc {
        fn new() -> Self {
            let (console, bell) = (testing::console(), Arc::<Bell>::default());
            let wanted = Arc::<Bell>::default();
            let hook = wanted.clone();
            let serial =
                Serial::new(console.clone(), bell.clone(), Box::new(move || hook.trigger()));
            Self { serial, console, bell, wanted }
        }
        fn outb(&self, offset: u64, value: u8) {
            self.serial.write(offset, &[value]);
        }
        fn inb(&self, offset: u64) -> u8 {
            let mut data = [0];
            self.serial.read(offset, &mut data);
            data[0]
        }
        /// Edges since the last call.
        fn rings(&self) -> usize {
            self.bell.0.swap(0, Ordering::Relaxed)
        }
        fn wanted(&self) -> usize {
            self.wanted.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn prints() {
        let pc = Pc::new();
        for byte in *b"hello" {
            assert_eq!(pc.inb(5) & 0x60, 0x60);
            pc.outb(0, byte);
        }
        assert_eq!(pc.console.captured(), b"hello");
    }

    #[test]
    fn the_divisor_is_not_output_and_not_the_interrupt_enable() {
        let pc = Pc::new();
        pc.outb(1, 0x02);
        pc.outb(3, 0x83);
        pc.outb(0, 0x01);
        pc.outb(1, 0x03);
        assert_eq!((pc.inb(0), pc.inb(1)), (0x01, 0x03));
        pc.outb(3, 0x03);
        assert_eq!(pc.inb(1), 0x02);
        assert_eq!((pc.console.total(), pc.wanted()), (0, 0));
    }

    #[test]
    fn wide_accesses_are_consecutive_ports() {
        let pc = Pc::new();
        pc.serial.write(3, &[0x80]);
        pc.serial.write(0, &[0x34, 0x12]);
        pc.serial.write(3, &[0x03, 0x0B, 0x00, 0x00]);
        let mut data = [0; 4];
        pc.serial.read(3, &mut data);
        assert_eq!(data, [0x03, 0x0B, 0x60, 0xB0]);
        pc.serial.write(0, &[b'x', 0x00]);
        assert_eq!(pc.console.captured(), b"x");
        pc.serial.input().push(b"yz");
        pc.serial.read(0, &mut data);
        assert_eq!(data, [b'y', 0x00, 0xC1, 0x03]);
    }

    #[test]
    fn no_input_byte_is_lost() {
        let pc = Pc::new();
        let input = pc.serial.input();
        let sent: Vec<u8> = (0..1000).map(|n| (n % 251) as u8).collect();
        let received = thread::scope(|scope| {
            scope.spawn(|| {
                let mut rest = &sent[..];
                while !rest.is_empty() {
                    assert!(input.wait_for_room(Duration::from_secs(60)) > 0);
                    rest = &rest[input.push(rest)..];
                }
            });
            let mut received = vec![];
            while received.len() < sent.len() {
                if pc.inb(5) & 1 != 0 {
                    received.push(pc.inb(0));
                }
            }
            received
        });
        assert_eq!(received, sent);
    }

    #[test]
    fn a_full_fifo_takes_nothing_and_says_so() {
        let pc = Pc::new();
        let input = pc.serial.input();
        assert_eq!(input.wait_for_room(Duration::ZERO), 64);
        assert_eq!(input.push(&[7; 100]), 64);
        assert_eq!(input.push(&[8; 100]), 0);
        assert_eq!(input.wait_for_room(Duration::from_millis(1)), 0);
        assert_eq!(pc.inb(0), 7);
        assert_eq!(input.wait_for_room(Duration::ZERO), 1);
    }

    #[test]
    fn loopback_cuts_the_line_off() {
        let pc = Pc::new();
        let input = pc.serial.input();
        pc.outb(4, 0x1E);
        assert_eq!((input.push(b"outside"), input.wait_for_room(Duration::ZERO)), (0, 0));
        pc.outb(0, 0xAE);
        assert_eq!((pc.inb(5) & 1, pc.inb(0)), (1, 0xAE));
        assert_eq!(pc.console.total(), 0);
        pc.outb(4, 0x0B);
        assert_eq!(input.push(b"outside"), 7);
    }

    #[test]
    fn closing_ends_a_wait() {
        let pc = Pc::new();
        let input = pc.serial.input();
        input.push(&[0; 64]);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| input.wait_for_room(Duration::from_secs(60)));
            pc.serial.input().close();
            assert_eq!(waiter.join().unwrap(), 0);
        });
        assert_eq!((pc.inb(0), input.wait_for_room(Duration::from_secs(60))), (0, 0));
    }

    #[test]
    fn input_is_wanted_once_and_not_before_the_guest_looks() {
        for look in [|pc: &Pc| _ = pc.inb(5), |pc: &Pc| _ = pc.inb(0), |pc: &Pc| pc.outb(1, 1)] {
            let pc = Pc::new();
            pc.outb(1, 0x02);
            pc.outb(0, b'x');
            pc.outb(4, 0x0B);
            pc.inb(2);
            assert_eq!(pc.wanted(), 0);
            look(&pc);
            look(&pc);
            assert_eq!(pc.wanted(), 1);
        }
    }

    #[test]
    fn received_bytes_ring_until_they_are_read() {
        let pc = Pc::new();
        let input = pc.serial.input();
        input.push(b"a");
        assert_eq!((pc.rings(), pc.inb(2)), (0, 0xC1));
        pc.outb(1, 0x01);
        assert_eq!((pc.rings(), pc.inb(2), pc.inb(2)), (1, 0xC4, 0xC4));
        input.push(b"b");
        assert_eq!(pc.rings(), 0);
        // A handler that takes one byte an interrupt gets another for the next.
        assert_eq!((pc.inb(0), pc.rings()), (b'a', 1));
        assert_eq!((pc.inb(0), pc.rings(), pc.inb(2)), (b'b', 0, 0xC1));
        input.push(b"c");
        assert_eq!(pc.rings(), 1);
    }

    #[test]
    fn an_empty_transmitter_rings_once_a_byte() {
        let pc = Pc::new();
        pc.outb(1, 0x02);
        assert_eq!((pc.rings(), pc.inb(2), pc.inb(2)), (1, 0xC2, 0xC1));
        pc.outb(0, b'x');
        assert_eq!(pc.rings(), 1);
        pc.outb(0, b'y');
        assert_eq!((pc.rings(), pc.inb(2), pc.inb(2)), (1, 0xC2, 0xC1));
        // As Linux's console does around a message: masked, then enabled again.
        pc.outb(1, 0x00);
        pc.outb(0, b'z');
        assert_eq!((pc.rings(), pc.inb(2)), (0, 0xC1));
        pc.outb(1, 0x02);
        assert_eq!((pc.rings(), pc.inb(2)), (1, 0xC2));
    }

    #[test]
    fn received_data_comes_before_an_empty_transmitter() {
        let pc = Pc::new();
        pc.outb(1, 0x03);
        pc.serial.input().push(b"q");
        assert_eq!((pc.rings(), pc.inb(2)), (1, 0xC4));
        assert_eq!((pc.inb(0), pc.rings()), (b'q', 1));
        assert_eq!((pc.inb(2), pc.inb(2)), (0xC2, 0xC1));
    }
}
