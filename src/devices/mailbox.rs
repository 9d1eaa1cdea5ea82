//! The mailbox (ports 0x5E0 to 0x5E3), by which a guest full of tests takes part in being
//! booted once and tested many times.
//!
//! | port | direction | |
//! |---|---|---|
//! | 0x5E0 | OUT | ANNOUNCE: one byte of a test's name; a NUL ends the name |
//! | 0x5E0 | IN | [`PRESENT`]: a mailbox is there (where none is, all ones) |
//! | 0x5E1 | OUT | READY, with any value: the guest is put back to here for each test |
//! | 0x5E2 | IN, 8 bits | the next byte of the name of the test to run; a NUL ends it, zeros follow |
//! | 0x5E2 | IN, 16 bits | its number in the order of announcing, from 0; [`NONE`] for none |
//!
//! A guest announces its tests, says READY, and then reads which test it is to run; `rep insb`
//! will do. No test (an empty name, [`NONE`]) means that nobody chooses: it runs all of them by
//! itself. The test's end is an ordinary end of the machine: debug exit 0 is a pass, [`SKIPPED`] says that the
//! test does not apply here, every other code is a failure, and so is a death or a time-out.
//!
//! Other accesses are of single bytes; a wider one is an access to each of the ports in turn. A
//! second READY does nothing but start the name again. Names after READY are not taken, and
//! [`Mailbox::is_late`] tells that there was one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bus::Device;
use crate::state::{self, Malformed};

/// What a read of ANNOUNCE gives: 'M'.
pub const PRESENT: u8 = 0x4D;

/// The debug exit code of a test that does not apply, as automake's.
pub const SKIPPED: u32 = 77;

/// The number of no test.
pub const NONE: u16 = 0xFFFF;

/// Bytes that a name may have; the rest of a longer one is dropped, and [`Mailbox::fault`] says so.
pub const MAX_NAME: usize = 255;
/// Names that a guest may announce; those beyond are dropped, and [`Mailbox::fault`] says so.
pub const MAX_NAMES: usize = 4096;

/// Offsets of the ports.
mod port {
    pub const ANNOUNCE: u64 = 0;
    pub const READY: u64 = 1;
    pub const TEST: u64 = 2;
}

/// Who is told that the guest is ready.
pub trait ReadyLine: Send + Sync {
    /// It is: its processor stands behind the OUT when it next leaves the guest.
    fn ready(&self);
}

/// The mailbox.
pub struct Mailbox {
    /// Not held while the line is told.
    letters: Mutex<Letters>,
    line: Arc<dyn ReadyLine>,
}

#[derive(Default)]
struct Letters {
    /// As they are saved, a NUL behind each: a reset copies them as one.
    names: Vec<u8>,
    count: usize,
    partial: Vec<u8>,
    ready: bool,
    test: Vec<u8>,
    position: usize,
    late: Late,
    /// What was wrong first. The host's alone: a reset leaves it as it is, for names are taken
    /// before READY only.
    fault: Option<&'static str>,
}

/// What came of a name behind READY, since then or since the mailbox was put back.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Late {
    #[default]
    Nothing,
    /// Bytes, and not the end of a name: nothing that a guest that writes to all ports would do.
    Bytes,
    Name,
}

impl Mailbox {
    /// Ports that it takes.
    pub const LEN: u64 = 4;

    /// Tells `line` when the guest is ready.
    pub fn new(line: Arc<dyn ReadyLine>) -> Arc<Self> {
        Arc::new(Self { letters: Mutex::default(), line })
    }

    /// The names that the guest announced, in its order; what is no UTF-8 is replaced.
    pub fn announced(&self) -> Vec<String> {
        let letters = self.lock();
        letters.names().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
    }

    /// Why not all that was announced can be told apart and run, in words for the guest's author.
    pub fn fault(&self) -> Option<&'static str> {
        self.lock().fault
    }

    /// Has the guest announced a test behind READY, since then or since it was put back?
    pub fn is_late(&self) -> bool {
        self.lock().late == Late::Name
    }

    /// The name of the test to run, from its first byte on, up to a NUL. Empty for none.
    pub fn set_test(&self, name: &[u8]) {
        let mut letters = self.lock();
        letters.test = name.iter().copied().take_while(|byte| *byte != 0).collect();
        letters.position = 0;
    }

    fn lock(&self) -> MutexGuard<'_, Letters> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Letters {
    fn announce(&mut self, byte: u8) {
        if self.ready {
            self.late = match (self.late, byte) {
                (Late::Nothing, 0) => Late::Nothing,
                (Late::Nothing, _) => Late::Bytes,
                (_, 0) => Late::Name,
                (late, _) => late,
            };
            return;
        }
        if byte != 0 {
            if self.partial.len() < MAX_NAME {
                self.partial.push(byte);
            } else {
                self.fault.get_or_insert("the name of a test is longer than 255 bytes");
            }
            return;
        }
        let name = std::mem::take(&mut self.partial);
        if name.is_empty() {
            self.fault.get_or_insert("the name of a test is empty");
        } else if std::str::from_utf8(&name).is_err() {
            self.fault.get_or_insert("the name of a test is not UTF-8");
        } else if name.iter().any(u8::is_ascii_control) {
            self.fault.get_or_insert("the name of a test has a control character");
        } else if self.count >= MAX_NAMES {
            self.fault.get_or_insert("there are more than 4096 tests");
        }
        if !name.is_empty() && self.count < MAX_NAMES {
            self.names.extend(name.iter().chain(&[0]));
            self.count += 1;
        }
    }

    fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.names.split(|byte| *byte == 0).take(self.count)
    }

    /// The test's number. Names beyond [`MAX_NAMES`] have none.
    fn number(&self) -> u16 {
        let place = self.names().position(|name| *name == self.test);
        place.map_or(NONE, |place| place as u16)
    }

    fn next(&mut self) -> u8 {
        let byte = self.test.get(self.position).copied().unwrap_or(0);
        self.position = self.test.len().min(self.position + 1);
        byte
    }
}

impl Device for Mailbox {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut letters = self.lock();
        if let (port::TEST, [low, high]) = (offset, &mut *data) {
            [*low, *high] = letters.number().to_le_bytes();
            return;
        }
        for (byte, port) in data.iter_mut().zip(offset..) {
            *byte = match port {
                port::ANNOUNCE => PRESENT,
                port::TEST => letters.next(),
                _ => 0,
            };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (byte, port) in data.iter().zip(offset..) {
            match port {
                port::ANNOUNCE => self.lock().announce(*byte),
                port::READY => {
                    let mut letters = self.lock();
                    if !letters.ready && !letters.partial.is_empty() {
                        letters
                            .fault
                            .get_or_insert("the name of the last test has no NUL behind it");
                    }
                    (letters.ready, letters.position) = (true, 0);
                    drop(letters);
                    self.line.ready();
                }
                _ => {}
            }
        }
    }

    fn save(&self) -> Vec<u8> {
        let letters = self.lock();
        let Letters { names, count: _, partial, ready, test, position, late: _, fault: _ } =
            &*letters;
        state::encode(&state::Mailbox {
            names: names.clone(),
            partial: partial.clone(),
            ready: *ready,
            test: test.clone(),
            position: *position as u32, // no longer than a name
        })
    }

    fn restore(&self, state: &[u8]) -> Result<(), Malformed> {
        let state::Mailbox { names, partial, ready, test, position } = state::decode(state)?;
        let count = names.iter().filter(|byte| **byte == 0).count();
        if count > MAX_NAMES {
            return Err(Malformed("too many names".to_owned()));
        }
        let mut letters = self.lock();
        let (position, fault) = (position as usize, letters.fault);
        let late = Late::Nothing;
        *letters = Letters { names, count, partial, ready, test, position, late, fault };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Bell(AtomicUsize);

    impl ReadyLine for Bell {
        fn ready(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn mailbox() -> (Arc<Mailbox>, Arc<Bell>) {
        let bell = Arc::<Bell>::default();
        (Mailbox::new(bell.clone()), bell)
    }

    fn announce(mailbox: &Mailbox, names: &[u8]) {
        names.iter().for_each(|byte| mailbox.write(0, &[*byte]));
    }

    fn read(mailbox: &Mailbox, bytes: usize) -> Vec<u8> {
        let mut data = vec![0xFF; bytes];
        data.iter_mut().for_each(|byte| mailbox.read(2, std::slice::from_mut(byte)));
        data
    }

    #[test]
    fn names_go_out_and_one_comes_back() {
        let (mailbox, bell) = mailbox();
        let mut present = [0];
        mailbox.read(0, &mut present);
        assert_eq!(present, [PRESENT]);
        announce(&mailbox, b"first\0second one\0");
        assert_eq!(mailbox.announced(), ["first", "second one"]);
        assert_eq!(read(&mailbox, 2), [0, 0]);
        mailbox.write(1, &[7]);
        assert_eq!(bell.0.load(Ordering::Relaxed), 1);
        announce(&mailbox, b"\0late");
        assert!(!mailbox.is_late());
        announce(&mailbox, b"r\0");
        assert_eq!((mailbox.announced().len(), mailbox.fault()), (2, None));
        assert!(mailbox.is_late());
        mailbox.restore(&mailbox.save()).unwrap();
        assert!(!mailbox.is_late());
        mailbox.set_test(b"second one\0and more");
        assert_eq!(read(&mailbox, 13), b"second one\0\0\0");
        mailbox.write(1, &[0]);
        assert_eq!(read(&mailbox, 7), b"second ");
        let number = |name: &[u8]| {
            mailbox.set_test(name);
            let mut data = [0; 2];
            mailbox.read(2, &mut data);
            u16::from_le_bytes(data)
        };
        assert_eq!((number(b"first"), number(b"second one")), (0, 1));
        assert_eq!((number(b""), number(b"late")), (NONE, NONE));
    }

    #[test]
    fn a_hostile_guest_takes_no_more_than_its_due() {
        let (mailbox, _) = mailbox();
        announce(&mailbox, &[b'x'; 3 * MAX_NAME]);
        announce(&mailbox, b"\0\xFF\xFE\0");
        (0..2 * MAX_NAMES).for_each(|_| announce(&mailbox, b"n\0"));
        let names = mailbox.announced();
        assert_eq!((names.len(), names[0].len()), (MAX_NAMES, MAX_NAME));
        assert_eq!(names[1], "\u{FFFD}\u{FFFD}");
    }

    #[test]
    fn names_that_are_lost_are_told() {
        let fault = |names: &[u8]| {
            let (mailbox, _) = mailbox();
            announce(&mailbox, names);
            mailbox.write(1, &[1]);
            let saved = mailbox.save();
            mailbox.restore(&saved).unwrap();
            mailbox.fault().unwrap_or_default()
        };
        assert_eq!(fault(&[&[b'x'; MAX_NAME][..], b"\0"].concat()), "");
        assert!(fault(&[&[b'x'; MAX_NAME + 1][..], b"\0"].concat()).contains("255"));
        assert_eq!(fault(&b"n\0".repeat(MAX_NAMES)), "");
        assert!(fault(&b"n\0".repeat(MAX_NAMES + 1)).contains("4096"));
        assert!(fault(b"a\0\xFF\0").contains("UTF-8"));
        assert!(fault(b"a\0b\x1B\0").contains("control"));
        assert!(fault(b"a\0\0b\0").contains("empty"));
        assert!(fault(b"a\0b").contains("NUL"));
    }

    #[test]
    fn it_is_put_back() {
        let (mailbox, _) = mailbox();
        announce(&mailbox, b"a\0b\0rest");
        mailbox.write(1, &[1]);
        mailbox.set_test(b"a");
        let saved = mailbox.save();
        read(&mailbox, 9);
        mailbox.set_test(b"something else");
        mailbox.restore(&saved).unwrap();
        assert_eq!(mailbox.save(), saved);
        assert_eq!((mailbox.announced().len(), read(&mailbox, 2)), (2, b"a\0".to_vec()));
        assert!(mailbox.restore(&[0x13]).is_err());
    }
}
