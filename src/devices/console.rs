//! Where a guest's characters go: one [`Console`] that the serial port, the debug console
//! and the print hypercall share. Written to by devices on vCPU threads, read by `machine`
//! for the report; knows no device.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::verdict::{Refusal, StopLine, Verdict};

/// How much of the output's end a report shows, in bytes.
pub const TAIL: usize = 4096;

/// SIGPIPE's number (signal(7)): what a program dies of whose reader has gone.
const SIGPIPE: u8 = 13;

/// How long to wait for a sink that is in non-blocking mode (a terminal whose other user
/// wants it so) and takes nothing now.
const RETRY: Duration = Duration::from_millis(1);

/// The guest's output.
pub struct Console {
    /// Taken before `record` and held while a byte is written, so that the order in the sink
    /// and in the record is the same. A write may block as long as the reader likes.
    sink: Mutex<Sink>,
    /// Never held while anything blocks: a report can be written although a vCPU hangs in
    /// the sink.
    record: Mutex<Record>,
    stop: Arc<dyn StopLine>,
    name: String,
}

struct Sink {
    output: Box<dyn Write + Send>,
    failed: bool,
}

struct Record {
    tail: VecDeque<u8>,
    total: u64,
    /// What `total` was when the guest last started.
    start: u64,
    capture: Vec<u8>,
    limit: usize,
}

/// A point in a console's record, to which it can be put back.
#[derive(Clone, Debug)]
pub struct Position {
    tail: Vec<u8>,
    total: u64,
    captured: usize,
}

/// What a [`Console`] is made of, beside its stop line. Without an output, bytes vanish.
pub struct Builder {
    stop: Arc<dyn StopLine>,
    output: Box<dyn Write + Send>,
    name: String,
    limit: usize,
}

impl Builder {
    /// Every byte goes to `output` at once: give it something unbuffered, and something that
    /// gives up (by taking the bytes) when the machine is to end, or its end waits for a
    /// reader. `name` is what an error calls it: "standard output", or a path.
    pub fn output(mut self, name: impl Into<String>, output: Box<dyn Write + Send>) -> Self {
        (self.output, self.name) = (output, name.into());
        self
    }

    /// Also keeps the first `limit` bytes, for [`Console::captured`].
    pub fn capture(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// Done.
    pub fn build(self) -> Arc<Console> {
        Arc::new(Console {
            sink: Mutex::new(Sink { output: self.output, failed: false }),
            record: Mutex::new(Record {
                tail: VecDeque::with_capacity(TAIL),
                total: 0,
                start: 0,
                capture: Vec::new(),
                limit: self.limit,
            }),
            stop: self.stop,
            name: self.name,
        })
    }
}

impl Console {
    /// Begins a console. A failed write ends the machine through `stop`, once.
    pub fn builder(stop: Arc<dyn StopLine>) -> Builder {
        Builder { stop, output: Box::new(io::sink()), name: "nowhere".to_owned(), limit: 0 }
    }

    /// Writes. After a failure, bytes vanish from the sink; the record goes on.
    pub fn write(&self, bytes: &[u8]) {
        let mut sink = lock(&self.sink);
        lock(&self.record).add(bytes);
        if sink.failed {
            return;
        }
        if let Err(error) = Self::send(&mut *sink.output, bytes) {
            sink.failed = true;
            self.stop.stop(self.failure(&error));
        }
    }

    /// The last [`TAIL`] bytes.
    pub fn tail(&self) -> Vec<u8> {
        lock(&self.record).tail.iter().copied().collect()
    }

    /// The guest starts again.
    pub fn starts_again(&self) {
        let mut record = lock(&self.record);
        record.start = record.total;
    }

    /// Of the last [`TAIL`] bytes those since the guest's last start.
    pub fn last_words(&self) -> Vec<u8> {
        let Record { tail, total, start, .. } = &*lock(&self.record);
        let own = usize::try_from(total - start).unwrap_or(usize::MAX).min(tail.len());
        tail.iter().skip(tail.len() - own).copied().collect()
    }

    /// How many bytes the guest has written.
    pub fn total(&self) -> u64 {
        lock(&self.record).total
    }

    /// The first bytes, as many as the console was told to capture.
    pub fn captured(&self) -> Vec<u8> {
        lock(&self.record).capture.clone()
    }

    /// Where the record stands.
    pub fn position(&self) -> Position {
        let Record { tail, total, capture, .. } = &*lock(&self.record);
        Position { tail: tail.iter().copied().collect(), total: *total, captured: capture.len() }
    }

    /// Puts the record back to an earlier position. What has gone to the sink stays there.
    pub fn rewind(&self, to: &Position) {
        let mut record = lock(&self.record);
        record.tail.clear();
        record.tail.extend(&to.tail);
        record.total = to.total;
        record.start = record.start.min(to.total);
        record.capture.truncate(to.captured);
    }

    /// What was captured since a position.
    pub fn captured_since(&self, position: &Position) -> Vec<u8> {
        lock(&self.record).capture.get(position.captured..).unwrap_or_default().to_vec()
    }

    /// `Write::write_all` that waits where a sink in non-blocking mode would lose bytes.
    fn send(output: &mut dyn Write, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match output.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn failure(&self, error: &io::Error) -> Verdict {
        if error.kind() == ErrorKind::BrokenPipe {
            return Verdict::Signal(SIGPIPE);
        }
        let message = format!(
            "cannot write the guest's output to {}: {error} (make room there, or send it elsewhere with --serial)",
            self.name
        );
        Verdict::Refused { refusal: Refusal::Host, message }
    }
}

impl Record {
    fn add(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let room = self.limit - self.capture.len();
        self.capture.extend(bytes.iter().take(room));
        let last = &bytes[bytes.len().saturating_sub(TAIL)..];
        let excess = (self.tail.len() + last.len()).saturating_sub(TAIL);
        self.tail.drain(..excess);
        self.tail.extend(last);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Stops;
    use super::*;

    /// A sink that answers as it was told to, then takes everything one byte at a time.
    struct Script(Vec<ErrorKind>, Arc<Mutex<Vec<u8>>>);

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if let Some(kind) = self.0.pop() {
                return Err(kind.into());
            }
            self.1.lock().unwrap().push(bytes[0]);
            Ok(1)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn scripted(errors: &[ErrorKind]) -> (Arc<Console>, Arc<Stops>, Arc<Mutex<Vec<u8>>>) {
        let (stops, written) = (Stops::new(), Arc::default());
        let script = Script(errors.to_vec(), Arc::clone(&written));
        let console = Console::builder(stops.clone()).output("out.txt", Box::new(script)).build();
        (console, stops, written)
    }

    #[test]
    fn short_and_interrupted_writes_lose_nothing() {
        let (console, stops, written) =
            scripted(&[ErrorKind::WouldBlock, ErrorKind::Interrupted, ErrorKind::WouldBlock]);
        console.write(b"hello");
        assert_eq!(*written.lock().unwrap(), b"hello");
        assert_eq!(stops.take(), []);
    }

    #[test]
    fn a_full_disk_ends_the_machine_once() {
        let (console, stops, written) = scripted(&[ErrorKind::StorageFull, ErrorKind::StorageFull]);
        console.write(b"one");
        let verdicts = stops.take();
        let [Verdict::Refused { refusal: Refusal::Host, message }] = &verdicts[..] else {
            panic!("{verdicts:?}")
        };
        assert!(message.contains("out.txt") && message.contains("--serial"), "{message}");
        console.write(b"two");
        assert_eq!(stops.take(), []);
        assert_eq!(*written.lock().unwrap(), b"");
        assert_eq!(console.tail(), b"onetwo");
    }

    #[test]
    fn a_closed_pipe_is_sigpipe() {
        let (console, stops, _) = scripted(&[ErrorKind::BrokenPipe]);
        console.write(b"x");
        assert_eq!(stops.take(), [Verdict::Signal(13)]);
    }

    #[test]
    fn the_tail_can_be_read_while_a_write_hangs() {
        struct Hang(std::sync::mpsc::Sender<()>, std::sync::mpsc::Receiver<()>);
        impl Write for Hang {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.send(()).unwrap();
                self.1.recv().unwrap();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (begun, begins) = std::sync::mpsc::channel();
        let (release, released) = std::sync::mpsc::channel();
        let sink = Box::new(Hang(begun, released));
        let console = Console::builder(Stops::new()).output("a pipe", sink).build();
        thread::scope(|scope| {
            scope.spawn(|| console.write(b"stuck"));
            begins.recv().unwrap();
            assert_eq!(console.tail(), b"stuck");
            release.send(()).unwrap();
        });
    }

    #[test]
    fn tail_and_capture_are_bounded() {
        let console = Console::builder(Stops::new()).capture(10).build();
        let text: Vec<u8> = (0..TAIL * 2 + 100).map(|n| n as u8).collect();
        console.write(&text[..5]);
        console.write(&text[5..TAIL + 50]);
        assert_eq!(console.tail(), text[50..TAIL + 50]);
        console.write(&text[TAIL + 50..]);
        assert_eq!(console.tail(), text[TAIL + 100..]);
        assert_eq!(console.captured(), text[..10]);
        assert_eq!(console.total(), text.len() as u64);
        assert_eq!(console.last_words(), console.tail());
        console.starts_again();
        console.write(b"again");
        assert_eq!(console.last_words(), b"again");
    }
}
