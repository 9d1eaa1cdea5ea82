//! Hypercalls: what a guest can ask of ringfence itself. The functions stand here once;
//! [`HypercallPorts`] is the form for every processor mode and backend, and `machine` calls
//! [`Hypercalls::call`] for a VMCALL or VMMCALL that KVM hands to user space.
//!
//! # By port
//! Three 32-bit registers: a write to the function register at 0 executes the function with
//! the argument last stored at 4, and leaves the result at 8. A narrow write is extended
//! with zeros. There is one set of registers: processors that call at the same time take
//! turns by a lock of the guest's.

use std::sync::Arc;

use super::{Console, low_u32};
use crate::bus::MutDevice;
use crate::state::{self, Malformed};
use crate::verdict::{StopLine, Verdict};

/// A hypercall's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Function {
    /// Is ringfence there? Results in [`PRESENT`].
    Probe = 0,
    /// Prints the argument's low byte on the console.
    Print = 1,
    /// Ends the machine with the argument as the guest's code.
    Exit = 2,
    /// The number of processors.
    Processors = 3,
    /// The size of RAM in MiB.
    Memory = 4,
}

/// The probe's result: "ring", the r first in memory's last place.
pub const PRESENT: u32 = 0x676E_6972;

/// The result of a function that does not exist.
pub const UNKNOWN: u32 = 0xFFFF_FFFF;

impl Function {
    /// The function of a number.
    pub fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Probe,
            1 => Self::Print,
            2 => Self::Exit,
            3 => Self::Processors,
            4 => Self::Memory,
            _ => return None,
        })
    }
}

/// The functions, and what they need.
pub struct Hypercalls {
    /// Where prints go.
    pub console: Arc<Console>,
    /// What ends the machine.
    pub stop: Arc<dyn StopLine>,
    /// The number of processors.
    pub processors: u32,
    /// The size of RAM in bytes.
    pub memory: u64,
}

impl Hypercalls {
    /// Executes a function; the result is for the guest.
    pub fn call(&self, function: u32, argument: u32) -> u32 {
        match Function::from_number(function) {
            Some(Function::Probe) => PRESENT,
            Some(Function::Print) => {
                self.console.write(&[argument as u8]);
                0
            }
            Some(Function::Exit) => {
                self.stop.stop(Verdict::from_guest_code(argument));
                0
            }
            Some(Function::Processors) => self.processors,
            Some(Function::Memory) => u32::try_from(self.memory >> 20).unwrap_or(u32::MAX),
            None => UNKNOWN,
        }
    }
}

/// Offset of the function register.
const FUNCTION: u64 = 0;
/// Offset of the argument register.
const ARGUMENT: u64 = 4;

/// Hypercalls by port.
pub struct HypercallPorts {
    calls: Arc<Hypercalls>,
    function: u32,
    argument: u32,
    result: u32,
}

impl HypercallPorts {
    /// Ports that it takes.
    pub const LEN: u64 = 12;

    /// Executes `calls`.
    pub fn new(calls: Arc<Hypercalls>) -> Self {
        Self { calls, function: 0, argument: 0, result: 0 }
    }
}

impl MutDevice for HypercallPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let registers = [self.function, self.argument, self.result];
        let bytes = registers.into_iter().flat_map(u32::to_le_bytes).skip(offset as usize);
        data.iter_mut().zip(bytes).for_each(|(byte, register)| *byte = register);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match offset {
            FUNCTION => {
                self.function = low_u32(data);
                self.result = self.calls.call(self.function, self.argument);
            }
            ARGUMENT => self.argument = low_u32(data),
            _ => {}
        }
    }

    fn save(&self) -> Vec<u8> {
        let Self { calls: _, function, argument, result } = self;
        state::encode(&state::HypercallPorts {
            function: *function,
            argument: *argument,
            result: *result,
        })
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Malformed> {
        let state::HypercallPorts { function, argument, result } = state::decode(state)?;
        (self.function, self.argument, self.result) = (function, argument, result);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Stops};
    use super::*;
    use crate::verdict::Success;

    fn calls() -> (Arc<Hypercalls>, Arc<Console>, Arc<Stops>) {
        let (console, stop) = (testing::console(), Stops::new());
        let (memory, processors) = (5 << 30, 3);
        let calls = Hypercalls { console: console.clone(), stop: stop.clone(), processors, memory };
        (Arc::new(calls), console, stop)
    }

    fn by_port(ports: &mut HypercallPorts, function: u32, argument: u32) -> u32 {
        ports.write(4, &argument.to_le_bytes());
        ports.write(0, &function.to_le_bytes());
        let mut data = [0; 4];
        ports.read(8, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn both_forms_share_the_functions() {
        let (calls, console, stops) = calls();
        let mut ports = HypercallPorts::new(calls.clone());
        for (function, argument, result) in [
            (0, 7, u32::from_le_bytes(*b"ring")),
            (1, 0x1234_5600 | u32::from(b'!'), 0),
            (2, 0, 0),
            (3, 0, 3),
            (4, 0, 5120),
            (5, 0, u32::MAX),
            (u32::MAX, 0, u32::MAX),
        ] {
            assert_eq!(calls.call(function, argument), result);
            assert_eq!(by_port(&mut ports, function, argument), result);
        }
        assert_eq!(console.captured(), b"!!");
        assert_eq!(stops.take(), vec![Verdict::Success(Success::DebugExit); 2]);
        calls.call(2, 300);
        assert_eq!(stops.take(), [Verdict::Failed { code: 300 }]);
    }

    #[test]
    fn narrow_accesses() {
        let (calls, console, _) = calls();
        let mut ports = HypercallPorts::new(calls);
        ports.write(4, &[0xFF; 4]);
        ports.write(4, b"A");
        ports.write(0, &[1]);
        assert_eq!(console.captured(), b"A");
        ports.write(0, &[0, 0]);
        let mut data = [0; 2];
        ports.read(9, &mut data);
        assert_eq!(data, [b'i', b'n']);
    }

    #[test]
    fn other_places_take_nothing() {
        let (calls, console, stops) = calls();
        let mut ports = HypercallPorts::new(calls);
        for offset in [1, 2, 3, 5, 8, 11] {
            ports.write(offset, &[2]);
        }
        let mut data = [0xFF; 8];
        ports.read(4, &mut data);
        assert_eq!((data, stops.take(), console.total()), ([0; 8], vec![], 0));
    }
}
