//! TAP 14 (testanything.org): a line a test, and a YAML block for one that has more to say.

use std::io::{self, Write};

use super::text::{lines, one_line};
use super::{Plan, Report, Totals};
use crate::runner::outcome::{Record, Status};

/// A TAP stream.
pub struct Tap<W> {
    name: String,
    out: W,
    tests: Option<usize>,
    written: usize,
}

impl<W: Write> Tap<W> {
    /// A stream to `out`; `name` is for errors.
    pub fn new(name: String, out: W) -> Self {
        Self { name, out, tests: None, written: 0 }
    }

    /// All at once: what is killed leaves whole lines.
    fn write(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }
}

impl<W: Write> Report for Tap<W> {
    fn name(&self) -> String {
        format!("the TAP stream {}", self.name)
    }

    fn open(&mut self) -> io::Result<()> {
        self.write("TAP version 14\n")
    }

    /// The plan; a run without an end has its plan at the end.
    fn begin(&mut self, plan: &Plan) -> io::Result<()> {
        self.tests = plan.tests;
        let plan = plan.tests.map_or(String::new(), |tests| format!("1..{tests}\n"));
        self.write(&plan)
    }

    fn finished(&mut self, record: &Record) -> io::Result<()> {
        if record.status == Status::NotRun {
            return Ok(()); // the plan says that it is missing, the end says why
        }
        self.written += 1;
        let ok = if record.status.is_bad() { "not ok" } else { "ok" };
        let mut text = format!("{ok} {} - {}", self.written, escaped(&record.name));
        if record.status == Status::Skipped {
            text += &format!(" # SKIP {}", escaped(&record.cause));
        }
        text.push('\n');
        if record.status.is_bad() || record.is_flaky() {
            text += &yaml(record);
        }
        self.write(&text)
    }

    fn end(&mut self, totals: &Totals) -> io::Result<()> {
        let mut text = String::new();
        if self.tests.is_none() {
            text += &format!("1..{}\n", self.written);
        }
        text += &match totals.signal {
            Some(signal) => format!("Bail out! ended by signal {signal}\n"),
            None if totals.not_run > 0 => {
                format!("Bail out! a test failed, and {} did not run\n", totals.not_run)
            }
            None => String::new(),
        };
        self.write(&text)
    }

    fn abandon(&mut self, why: &str) -> io::Result<()> {
        self.write(&format!("Bail out! {}\n", one_line(why)))
    }
}

/// A description: `#` would begin a directive.
fn escaped(text: &str) -> String {
    one_line(text).replace('\\', "\\\\").replace('#', "\\#")
}

/// A JSON string is a YAML one but for what YAML does not print, and for what it takes as a line's
/// end (YAML 1.1, 5.1 and 5.4).
fn quoted(text: &str) -> String {
    let json = serde_json::Value::from(text).to_string();
    let mut quoted = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\u{7F}'..='\u{9F}'
            | '\u{2028}'
            | '\u{2029}'
            | '\u{FEFF}'
            | '\u{FFFE}'
            | '\u{FFFF}' => {
                quoted += &format!("\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted
}

fn yaml(record: &Record) -> String {
    let mut text = String::from("  ---\n");
    text += &format!("  message: {}\n", quoted(&record.cause));
    text += &format!("  status: {}\n", quoted(record.status.words()));
    text += &format!("  flaky: {}\n", record.is_flaky());
    text += "  attempts:\n";
    for attempt in &record.attempts {
        text += &format!("    - verdict: {}\n", quoted(&attempt.verdict));
        text += &format!("      exit_code: {}\n", attempt.exit_code);
        text += &format!("      seconds: {:.6}\n", attempt.seconds);
        text += &format!("      message: {}\n", quoted(&attempt.cause));
        text += &format!("      serial: {}\n", quoted(&lines(&attempt.serial)));
        if let Some(autopsy) = &attempt.autopsy {
            text += &format!("      autopsy: {}\n", quoted(autopsy));
        }
    }
    text + "  ...\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_stays_one_line_that_yaml_prints() {
        let text = "\"\n\u{85}\u{2028}\u{FFFF}\u{7F}\u{1F600}";
        let there = quoted(text);
        assert_eq!(
            there,
            r#""\"\n\u0085\u2028\uffff\u007f\u{1F600}""#.replace("\\u{1F600}", "\u{1F600}")
        );
        assert_eq!(serde_json::from_str::<String>(&there).unwrap(), text);
    }
}
