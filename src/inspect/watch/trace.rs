//! `--trace`: every exit as a line, text or JSON, to a file or a pipe.
//!
//! Each vCPU writes its lines into a buffer of its own and hands over whole lines, so that
//! lines never mix; between vCPUs their order is only that of the buffers.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::Filter;
use super::naming::function_of;
use crate::inspect::Functions;
use crate::kvm::ExitKind;
use crate::vcpu::Record;
use crate::verdict::{Refusal, StopLine, Verdict};

/// How a trace is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// What is wanted of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceStyle {
    /// How it is written.
    pub format: Format,
    /// Which exits are shown.
    pub filter: Filter,
    /// Does each line have the time?
    pub time: bool,
}

/// Bytes after which a vCPU hands its lines over.
const FULL: usize = 16 << 10;

/// Where the lines of all vCPUs go.
pub(super) struct Sink {
    /// Held for the write of one vCPU's buffer.
    out: Mutex<Box<dyn Write + Send>>,
    name: String,
    stop: Arc<dyn StopLine>,
    style: TraceStyle,
    /// Why it has a gap.
    failed: Mutex<Option<io::Error>>,
}

impl Sink {
    pub(super) fn new(
        name: String,
        out: Box<dyn Write + Send>,
        style: TraceStyle,
        stop: Arc<dyn StopLine>,
    ) -> Self {
        Self { out: Mutex::new(out), name, stop, style, failed: Mutex::new(None) }
    }

    pub(super) fn wants_time(&self) -> bool {
        self.style.time
    }

    /// A trace that cannot be written ends the machine: one with a gap would mislead.
    fn write(&self, lines: &str) {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(e) = out.write_all(lines.as_bytes()).and_then(|()| out.flush()) {
            let message = format!("cannot write the trace to {}: {e}", self.name);
            self.stop.stop(Verdict::Refused { refusal: Refusal::Host, message });
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
        }
    }

    /// The name, and why not all of it was written; once.
    pub(super) fn failure(&self) -> Option<(String, io::Error)> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        failed.map(|e| (self.name.clone(), e))
    }
}

/// One exit as JSON.
#[derive(Serialize)]
struct Line<'a> {
    vcpu: u32,
    /// Counts this vCPU's exits from 0, shown or not.
    number: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_ns: Option<u64>,
    #[serde(flatten)]
    record: &'a Record,
    #[serde(skip_serializing_if = "Option::is_none")]
    function: Option<&'a str>,
}

/// The trace of one vCPU.
pub(super) struct Tracer {
    sink: Arc<Sink>,
    functions: Arc<Functions>,
    vcpu: u32,
    number: u64,
    lines: String,
}

impl Tracer {
    pub(super) fn new(sink: Arc<Sink>, functions: Arc<Functions>, vcpu: u32) -> Self {
        Self { sink, functions, vcpu, number: 0, lines: String::with_capacity(FULL + 256) }
    }

    pub(super) fn exit(&mut self, record: &Record) {
        let number = self.number;
        self.number += 1;
        if !self.sink.style.filter.shows(record) {
            return;
        }
        match self.sink.style.format {
            Format::Text => self.text(number, record),
            Format::Json => self.json(number, record),
        }
        // What an interrupted guest did last may be what somebody waits for.
        if self.lines.len() >= FULL || record.kind == ExitKind::Interrupted {
            self.flush();
        }
    }

    fn text(&mut self, number: u64, record: &Record) {
        let lines = &mut self.lines;
        if self.sink.style.time {
            let (seconds, rest) = (record.time / 1_000_000_000, record.time % 1_000_000_000);
            let _ = write!(lines, "{seconds:5}.{rest:09} "); // a String takes all
        }
        let _ = write!(lines, "cpu{} {number:7} {record}", self.vcpu);
        if let Some((name, offset)) = function_of(&self.functions, record) {
            let _ = write!(lines, " {name}+{offset:#x}");
        }
        lines.push('\n');
    }

    fn json(&mut self, number: u64, record: &Record) {
        let line = Line {
            vcpu: self.vcpu,
            number,
            time_ns: self.sink.style.time.then_some(record.time),
            record,
            function: function_of(&self.functions, record).map(|(name, _)| name),
        };
        // Integers and names always make JSON.
        self.lines.push_str(&serde_json::to_string(&line).unwrap_or_default());
        self.lines.push('\n');
    }

    pub(super) fn flush(&mut self) {
        if !self.lines.is_empty() {
            self.sink.write(&self.lines);
            self.lines.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::Exit;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[derive(Default)]
    struct Stops(Mutex<Option<Verdict>>);

    impl StopLine for Stops {
        fn stop(&self, verdict: Verdict) {
            *self.0.lock().unwrap() = Some(verdict);
        }
    }

    fn traced(style: TraceStyle) -> String {
        let out = Shared::default();
        let sink =
            Sink::new("t".to_owned(), Box::new(out.clone()), style, Arc::new(Stops::default()));
        let functions = Arc::new(Functions::named(&[(0x1000, 0x1100, "put_char")]));
        let mut tracer = Tracer::new(Arc::new(sink), functions, 1);
        tracer.exit(&Record::new(7, 5, &Exit::Hlt));
        let exit = Exit::PioOut { port: 0x3F8, size: 1, data: b"A" };
        tracer.exit(&Record::new(0x1004, 1_000_000_042, &exit));
        tracer.flush();
        let bytes = out.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn text_lines() {
        let style = TraceStyle { format: Format::Text, filter: Filter::default(), time: true };
        let text = traced(style);
        let lines: Vec<Vec<_>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["0.000000005", "cpu1", "0", "hlt", "rip", "0x7"]);
        let second = "1.000000042 cpu1 1 pio_out 0x3f8 = 0x41 rip 0x1004 put_char+0x4";
        assert_eq!(lines[1].join(" "), second);
    }

    #[test]
    fn json_lines_and_the_filter() {
        let filter = "pio".parse().unwrap();
        let text = traced(TraceStyle { format: Format::Json, filter, time: false });
        assert_eq!(
            text,
            "{\"vcpu\":1,\"number\":1,\"exit\":\"pio_out\",\"address\":1016,\"size\":1,\"count\":1,\"value\":65,\"rip\":4100,\"function\":\"put_char\"}\n"
        );
    }

    #[test]
    fn a_full_disk_ends_the_machine() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let stops = Arc::new(Stops::default());
        let style = TraceStyle { format: Format::Text, filter: Filter::default(), time: false };
        let sink = Sink::new("full".to_owned(), Box::new(Full), style, stops.clone());
        let mut tracer = Tracer::new(Arc::new(sink), Arc::default(), 0);
        tracer.exit(&Record::new(7, 5, &Exit::Hlt));
        assert_eq!(*stops.0.lock().unwrap(), None);
        tracer.flush();
        let verdict = stops.0.lock().unwrap().clone().unwrap();
        assert!(verdict.to_string().contains("the trace to full"), "{verdict}");
    }
}
