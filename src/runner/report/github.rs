//! Annotations of a GitHub workflow: a command on standard output for each test that did not
//! pass, or passed late. Around them commands are stopped, for a guest may say what looks like one.
//! (GitHub's documentation, "Workflow commands for GitHub Actions", stopping and starting them)

use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};

use super::text::one_line;
use super::{Report, Totals};
use crate::runner::outcome::{Record, Status};

/// GitHub shows ten errors a step; the rest would be noise in the log.
const MOST: usize = 10;

/// Bytes of a message: annotations are small.
const LONGEST: usize = 4000;

/// Annotations.
pub struct GitHub<W> {
    out: W,
    said: usize,
    /// What lets commands go on: no guest may guess it.
    token: String,
}

impl<W: Write> GitHub<W> {
    /// Annotations, written to `out`.
    pub fn new(out: W) -> Self {
        // The standard library's keys are the system's randomness.
        let random = || RandomState::new().hash_one(0);
        Self { out, said: 0, token: format!("{:016x}{:016x}", random(), random()) }
    }
}

impl<W: Write> GitHub<W> {
    /// All at once: what a guest says meanwhile comes before or behind it.
    fn say(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }
}

impl<W: Write> Report for GitHub<W> {
    fn name(&self) -> String {
        "the annotations for GitHub".to_owned()
    }

    /// Before the first guest says anything, which is when images are asked for their tests.
    fn open(&mut self) -> io::Result<()> {
        self.say(&format!("::stop-commands::{}\n", self.token))
    }

    fn finished(&mut self, record: &Record) -> io::Result<()> {
        let level = match record.status {
            Status::NotRun => return Ok(()),
            status if status.is_bad() => "error",
            _ if record.is_flaky() => "warning",
            _ => return Ok(()),
        };
        self.said += 1;
        if self.said > MOST {
            return Ok(());
        }
        let cause = match record.is_flaky() {
            true => format!("flaky: passed at attempt {}", record.attempts.len()),
            false => record.cause.clone(),
        };
        let autopsy = record.deciding().and_then(|it| it.autopsy.as_deref()).unwrap_or_default();
        let message = format!("{cause}\n{}", autopsy.lines().next().unwrap_or_default());
        let message: String = message.trim_end().chars().take(LONGEST).collect();
        let title = property(&one_line(&record.name));
        let (token, message) = (&self.token, data(&message));
        self.say(&format!(
            "::{token}::\n::{level} title={title}::{message}\n::stop-commands::{token}\n"
        ))
    }

    fn end(&mut self, _: &Totals) -> io::Result<()> {
        self.say(&format!("::{}::\n", self.token))
    }

    fn abandon(&mut self, _: &str) -> io::Result<()> {
        self.say(&format!("::{}::\n", self.token))
    }
}

/// What stands behind the second `::`.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// What stands behind a `=`.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}
