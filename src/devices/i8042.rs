//! The keyboard controller (ports 0x60 and 0x64) without a keyboard: what a kernel needs to
//! switch address line 20, to find the controller and nothing behind it, and to reset.
//!
//! Commands and registers: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and
//! Auxiliary Device Controller". The controller answers at once, so its input buffer is
//! never full; it raises no interrupt, there being no key to press.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bitflags::bitflags;

use crate::bus::Device;
use crate::state::{self, Malformed};
use crate::verdict::{Death, StopLine, Verdict};

bitflags! {
    /// The status register. IBF (bit 1) is never set.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Status: u8 {
        /// A byte waits at the data port.
        const OUTPUT_FULL = 1 << 0;
        /// The self test has passed.
        const SYSTEM = 1 << 2;
        /// The last write went to the command port.
        const COMMAND = 1 << 3;
        /// The keyboard lock is open.
        const UNLOCKED = 1 << 4;
        /// The keyboard did not answer in time.
        const TIMEOUT = 1 << 6;
    }
}

/// Command byte: the system flag, which the status register shows.
const SYSTEM_FLAG: u8 = 1 << 2;
/// Command byte: the keyboard is disabled.
const KEYBOARD_OFF: u8 = 1 << 4;
/// Command byte: the second port is disabled. Stays set whatever is written: by this a
/// kernel sees that there is no second port.
const SECOND_OFF: u8 = 1 << 5;
/// Output port: the processor's reset line, active low.
const NOT_RESET: u8 = 1 << 0;
/// Output port: address line 20. KVM has no gate to hold it low, so it is always on.
const A20: u8 = 1 << 1;
/// Output port: the output buffer is full.
const PORT_OUTPUT_FULL: u8 = 1 << 4;
/// Input port: keyboard not locked, no manufacturing jumper.
const INPUT_PORT: u8 = 0xA0;
/// What the controller gives for a device that did not answer ("resend").
const NO_ANSWER: u8 = 0xFE;
/// Result of the second port's test: its clock line is stuck low. Nobody is there.
const NO_SECOND_PORT: u8 = 0x01;

/// What the next byte to the data port is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Keyboard,
    Ram(u8),
    OutputPort,
    Echo,
    SecondDevice,
    Nothing,
}

struct Controller {
    stop: Arc<dyn StopLine>,
    status: Status,
    /// The last byte that was given; reads of an empty buffer give it again.
    output: u8,
    next: Next,
    output_port: u8,
    /// Byte 0 is the command byte.
    ram: [u8; 32],
}

impl Controller {
    fn give(&mut self, byte: u8) {
        self.output = byte;
        self.status.remove(Status::TIMEOUT);
        self.status.insert(Status::OUTPUT_FULL);
    }

    fn give_no_answer(&mut self) {
        self.give(NO_ANSWER);
        self.status.insert(Status::TIMEOUT);
    }

    fn take_data(&mut self) -> u8 {
        self.status.remove(Status::OUTPUT_FULL | Status::TIMEOUT);
        self.output
    }

    fn command(&mut self, command: u8) {
        self.status.insert(Status::COMMAND);
        self.next = Next::Keyboard;
        match command {
            0x20..=0x3F => self.give(self.ram[usize::from(command & 0x1F)]),
            0x60..=0x7F => self.next = Next::Ram(command & 0x1F),
            0xA9 => self.give(NO_SECOND_PORT),
            0xAA => {
                self.set_ram(0, self.ram[0] | SYSTEM_FLAG | KEYBOARD_OFF);
                self.give(0x55);
            }
            0xAB => self.give(0x00),
            0xAD => self.ram[0] |= KEYBOARD_OFF,
            0xAE => self.ram[0] &= !KEYBOARD_OFF,
            0xC0 => self.give(INPUT_PORT),
            0xD0 => self.give(self.output_port()),
            0xD1 => self.next = Next::OutputPort,
            0xD2 => self.next = Next::Echo,
            0xD3 => self.next = Next::Nothing,
            0xD4 => self.next = Next::SecondDevice,
            0xE0 => self.give(0x00),
            // Pulses the output port's lines whose bit is 0; 0xFE is the usual one.
            0xF0..=0xFF if command & NOT_RESET == 0 => self.reset(),
            // Among them the second port's 0xA7 and 0xA8: there is none.
            _ => {}
        }
    }

    fn data(&mut self, byte: u8) {
        self.status.remove(Status::COMMAND);
        match std::mem::replace(&mut self.next, Next::Keyboard) {
            Next::Keyboard | Next::SecondDevice => self.give_no_answer(),
            Next::Ram(address) => self.set_ram(usize::from(address), byte),
            Next::OutputPort => {
                self.output_port = byte | A20 | NOT_RESET;
                if byte & NOT_RESET == 0 {
                    self.reset();
                }
            }
            Next::Echo => self.give(byte),
            Next::Nothing => {}
        }
    }

    fn set_ram(&mut self, address: usize, byte: u8) {
        self.ram[address] = byte;
        self.ram[0] |= SECOND_OFF;
        self.status.set(Status::SYSTEM, self.ram[0] & SYSTEM_FLAG != 0);
    }

    fn output_port(&self) -> u8 {
        let full = self.status.contains(Status::OUTPUT_FULL);
        self.output_port & !PORT_OUTPUT_FULL | if full { PORT_OUTPUT_FULL } else { 0 }
    }

    fn reset(&self) {
        self.stop.stop(Verdict::died(Death::Reset, "by the keyboard controller"));
    }
}

impl Controller {
    fn save(&self) -> Vec<u8> {
        let Self { stop: _, status, output, next, output_port, ram } = self;
        let next = match *next {
            Next::Keyboard => state::I8042Next::Keyboard,
            Next::Ram(address) => state::I8042Next::Ram(address),
            Next::OutputPort => state::I8042Next::OutputPort,
            Next::Echo => state::I8042Next::Echo,
            Next::SecondDevice => state::I8042Next::SecondDevice,
            Next::Nothing => state::I8042Next::Nothing,
        };
        let (status, output, output_port) = (status.bits(), *output, *output_port);
        state::encode(&state::I8042 { status, output, next, output_port, ram: *ram })
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Malformed> {
        let state::I8042 { status, output, next, output_port, ram } = state::decode(state)?;
        self.next = match next {
            state::I8042Next::Keyboard => Next::Keyboard,
            state::I8042Next::Ram(address) => Next::Ram(address & 0x1F),
            state::I8042Next::OutputPort => Next::OutputPort,
            state::I8042Next::Echo => Next::Echo,
            state::I8042Next::SecondDevice => Next::SecondDevice,
            state::I8042Next::Nothing => Next::Nothing,
        };
        self.status = Status::from_bits_truncate(status);
        (self.output, self.output_port, self.ram) = (output, output_port, ram);
        Ok(())
    }
}

/// The data port, 0x60.
struct DataPort(Arc<Mutex<Controller>>);

/// The command and status port, 0x64.
struct CommandPort(Arc<Mutex<Controller>>);

/// The data port and the command port: two devices, each of one byte, because what lies
/// between them (0x61, the timer's gate and the speaker) is not the controller's.
pub fn ports(stop: Arc<dyn StopLine>) -> (Arc<dyn Device>, Arc<dyn Device>) {
    let controller = Arc::new(Mutex::new(Controller {
        stop,
        status: Status::UNLOCKED,
        output: 0,
        next: Next::Keyboard,
        output_port: A20 | NOT_RESET,
        ram: std::array::from_fn(|n| if n == 0 { SECOND_OFF } else { 0 }),
    }));
    (Arc::new(DataPort(controller.clone())), Arc::new(CommandPort(controller)))
}

impl Device for DataPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(lock(&self.0).take_data());
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        lock(&self.0).data(data[0]);
    }

    /// What both ports share is saved by the other one.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&self, _state: &[u8]) -> Result<(), Malformed> {
        Ok(())
    }
}

impl Device for CommandPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(lock(&self.0).status.bits());
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        lock(&self.0).command(data[0]);
    }

    fn save(&self) -> Vec<u8> {
        lock(&self.0).save()
    }

    fn restore(&self, state: &[u8]) -> Result<(), Malformed> {
        lock(&self.0).restore(state)
    }
}

fn lock(controller: &Mutex<Controller>) -> MutexGuard<'_, Controller> {
    controller.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Stops;
    use super::*;

    struct Pc {
        data: Arc<dyn Device>,
        command: Arc<dyn Device>,
        stops: Arc<Stops>,
    }

    impl Pc {
        fn new() -> Self {
            let stops = Stops::new();
            let (data, command) = ports(stops.clone());
            Self { data, command, stops }
        }
        fn command(&self, byte: u8) {
            self.command.write(0, &[byte]);
        }
        fn send(&self, byte: u8) {
            self.data.write(0, &[byte]);
        }
        fn status(&self) -> Status {
            let mut data = [0];
            self.command.read(0, &mut data);
            Status::from_bits(data[0]).expect("IBF and the unused bits are clear")
        }
        /// As a driver does: only when the status says so.
        fn answer(&self) -> Option<u8> {
            let mut data = [0];
            self.status().contains(Status::OUTPUT_FULL).then(|| self.data.read(0, &mut data))?;
            assert!(!self.status().contains(Status::OUTPUT_FULL));
            Some(data[0])
        }
        fn ask(&self, command: u8) -> Option<u8> {
            self.command(command);
            self.answer()
        }
    }

    #[test]
    fn commands_answer_as_the_table_says() {
        let pc = Pc::new();
        assert_eq!(pc.answer(), None);
        for (command, answer) in [
            (0x20, Some(0x20)),
            (0xAA, Some(0x55)),
            (0x20, Some(0x34)),
            (0xAB, Some(0x00)),
            (0xAE, None),
            (0x20, Some(0x24)),
            (0xAD, None),
            (0x20, Some(0x34)),
            (0xA8, None),
            (0x20, Some(0x34)),
            (0xA9, Some(0x01)),
            (0xC0, Some(0xA0)),
            (0xD0, Some(0x03)),
            (0xE0, Some(0x00)),
            (0x00, None),
            (0xFF, None),
        ] {
            assert_eq!(pc.ask(command), answer, "{command:#x}");
        }
        assert_eq!(pc.stops.take(), []);
    }

    #[test]
    fn the_status_follows_the_self_test_and_the_last_write() {
        let pc = Pc::new();
        assert_eq!(pc.status(), Status::UNLOCKED);
        pc.ask(0xAA);
        assert_eq!(pc.status(), Status::UNLOCKED | Status::SYSTEM | Status::COMMAND);
        pc.command(0x60);
        pc.send(0x01);
        assert_eq!(pc.status(), Status::UNLOCKED);
        assert_eq!(pc.ask(0x20), Some(0x21));
    }

    #[test]
    fn address_line_20_cannot_be_switched_off() {
        let pc = Pc::new();
        pc.command(0xD1);
        pc.send(0xDD);
        assert_eq!(pc.ask(0xD0), Some(0xDD & !0x10 | 0x02));
        pc.command(0xD0);
        assert_eq!(pc.ask(0xD0), Some(0xDD | 0x02), "the output buffer was full");
        assert_eq!(pc.stops.take(), []);
    }

    #[test]
    fn resets() {
        let reset = [Verdict::died(Death::Reset, "by the keyboard controller")];
        let pc = Pc::new();
        pc.command(0xFE);
        assert_eq!(pc.stops.take(), reset);
        pc.command(0xD1);
        pc.send(0x02);
        assert_eq!(pc.stops.take(), reset);
        pc.send(0x02);
        pc.command(0xFD);
        assert_eq!(pc.stops.take(), []);
    }

    #[test]
    fn no_keyboard_answers() {
        let pc = Pc::new();
        pc.send(0xFF);
        assert!(pc.status().contains(Status::TIMEOUT));
        assert_eq!(pc.answer(), Some(0xFE));
        assert!(!pc.status().contains(Status::TIMEOUT));
        pc.command(0xD4);
        pc.send(0xF2);
        assert_eq!(pc.answer(), Some(0xFE));
    }

    #[test]
    fn loopbacks() {
        let pc = Pc::new();
        pc.command(0xD2);
        pc.send(0x5A);
        assert_eq!(pc.answer(), Some(0x5A));
        pc.command(0xD3);
        pc.send(0x5A);
        assert_eq!(pc.answer(), None);
        pc.command(0x7F);
        pc.send(0xA5);
        assert_eq!(pc.ask(0x3F), Some(0xA5));
    }
}
