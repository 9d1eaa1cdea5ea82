//! For people: a line a test, the output of those that did not pass, and on a terminal a line
//! that says what goes on.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use super::text::{ended, lines, one_line, plural, seconds};
use super::{Plan, Progress, Report, Totals};
use crate::runner::outcome::{Record, Status};

/// How often the progress line is drawn anew.
const REDRAW: Duration = Duration::from_millis(100);

/// How it looks.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// In colour.
    pub colour: bool,
    /// With a line at the bottom that says what goes on.
    pub progress: bool,
    /// With a line for tests that passed.
    pub passes: bool,
    /// Columns of the terminal, as they are now.
    pub width: fn() -> usize,
}

/// A run on standard output.
pub struct Screen<W> {
    out: W,
    style: Style,
    tests: Option<usize>,
    done: usize,
    bad: Vec<String>,
    flaky: Vec<String>,
    drawn: Option<Instant>,
}

impl<W: Write> Screen<W> {
    /// A run, shown on `out`.
    pub fn new(out: W, style: Style) -> Self {
        Self { out, style, tests: None, done: 0, bad: vec![], flaky: vec![], drawn: None }
    }

    fn painted(&self, colour: &str, text: &str) -> String {
        if self.style.colour { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn label(&self, record: &Record) -> String {
        match record.status {
            Status::Passed if record.is_flaky() => self.painted("33", "FLAKY   "),
            Status::Passed => self.painted("32", "PASS    "),
            Status::Failed => self.painted("31;1", "FAIL    "),
            Status::Died => self.painted("31;1", "DIED    "),
            Status::TimedOut => self.painted("31;1", "TIMEOUT "),
            Status::Broken => self.painted("31;1", "BROKEN  "),
            Status::Skipped => self.painted("33", "SKIP    "),
            Status::NotRun => self.painted("33", "NOT RUN "),
        }
    }

    fn line(&self, record: &Record) -> String {
        let name = one_line(&record.name);
        let time = match record.last() {
            Some(last) => format!("{:>8}", seconds(Duration::from_secs_f64(last.seconds))),
            None => " ".repeat(8),
        };
        let attempts = record.attempts.len();
        let tries = match record.status {
            Status::Passed if attempts > 1 => format!(" (at attempt {attempts})"),
            _ if attempts > 1 => format!(" ({attempts} attempts)"),
            _ => String::new(),
        };
        let cause = match record.status {
            Status::Passed => String::new(),
            _ => format!(": {}", one_line(&record.cause)),
        };
        format!("{}{time}  {name}{tries}{cause}\n", self.label(record))
    }

    /// What a test that did not pass left behind, of each attempt.
    fn page(&self, record: &Record) -> String {
        let mut page = String::new();
        for (at, attempt) in record.attempts.iter().enumerate() {
            let of = match record.attempts.len() {
                1 => String::new(),
                n => format!(", attempt {} of {n}", at + 1),
            };
            if attempt.status == Status::Passed {
                continue;
            }
            let name = one_line(&record.name);
            if !attempt.serial.is_empty() {
                let head = self.painted("1", &format!("--- output of {name}{of}"));
                page += &format!("{head}\n{}", ended(lines(&attempt.serial)));
            }
            if let Some(autopsy) = &attempt.autopsy {
                let head = self.painted("1", &format!("--- autopsy of {name}{of}"));
                page += &format!("{head}\n{}", ended(lines(autopsy)));
            }
        }
        if page.is_empty() { page } else { page + &self.painted("1", "---") + "\n" }
    }

    /// Writes, with the progress line out of the way.
    fn say(&mut self, text: &str) -> io::Result<()> {
        let clear = if self.drawn.take().is_some() { "\r\x1b[K" } else { "" };
        self.out.write_all(format!("{clear}{text}").as_bytes())?;
        self.out.flush()
    }
}

impl<W: Write> Report for Screen<W> {
    fn name(&self) -> String {
        "standard output".to_owned()
    }

    fn begin(&mut self, plan: &Plan) -> io::Result<()> {
        self.tests = plan.tests;
        let tests = plan.tests.map_or("tests until one fails".to_owned(), |n| plural(n, "test"));
        self.say(&format!("ringfence: {tests}, {} at a time\n", plan.jobs))
    }

    fn finished(&mut self, record: &Record) -> io::Result<()> {
        self.done += 1;
        if record.is_flaky() {
            self.flaky.push(self.line(record));
        }
        if record.status.is_bad() {
            self.bad.push(self.line(record));
        }
        let shown = match record.status {
            Status::Passed => self.style.passes || record.is_flaky(),
            Status::NotRun => false, // the end lists them
            _ => true,
        };
        if !shown {
            return Ok(());
        }
        let text = self.line(record)
            + &if record.is_flaky() || record.status.is_bad() {
                self.page(record)
            } else {
                String::new()
            };
        self.say(&text)
    }

    fn tick(&mut self, progress: &mut dyn FnMut() -> Progress) -> io::Result<()> {
        if !self.style.progress || self.drawn.is_some_and(|drawn| drawn.elapsed() < REDRAW) {
            return Ok(());
        }
        let Progress { running, left } = progress();
        let names: Vec<_> = running
            .iter()
            .map(|(name, since)| format!("{} {}s", one_line(name), since.as_secs()))
            .collect();
        let names = names.join(", ");
        let of = self.tests.map_or(String::new(), |tests| format!("/{tests}"));
        let (done, bad) = (self.done, self.bad.len());
        let text = match left.map(|left| left.as_secs()) {
            Some(left) => format!("{done}{of} done, {bad} not passed, about {left}s left: {names}"),
            None => format!("finding out which tests there are: {names}"),
        };
        let text: String = text.chars().take((self.style.width)().saturating_sub(1)).collect();
        write!(self.out, "\r\x1b[K{text}")?;
        self.drawn = Some(Instant::now());
        self.out.flush()
    }

    fn end(&mut self, totals: &Totals) -> io::Result<()> {
        let mut text = String::new();
        for (head, lines) in [("flaky", &self.flaky), ("not passed", &self.bad)] {
            if !lines.is_empty() {
                text += &format!("ringfence: {head}:\n{}", lines.concat());
            }
        }
        for reason in totals.reasons() {
            text += &format!("ringfence: {reason}\n");
        }
        let colour = if totals.exit_code() == 0 { "32;1" } else { "31;1" };
        text += &format!("ringfence: {}\n", self.painted(colour, &totals.line()));
        self.say(&text)
    }

    /// The reason is said on standard error, on a line of its own.
    fn abandon(&mut self, _: &str) -> io::Result<()> {
        self.say("")
    }
}
