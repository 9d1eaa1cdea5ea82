//! What people and machines are told of a run: one [`Report`] a format, and [`Reports`] over
//! those that were asked for.

mod github;
mod json;
mod junit;
mod screen;
mod tap;
mod text;
mod totals;

use std::io;
use std::time::Duration;

pub use github::GitHub;
pub use json::Json;
pub use junit::Junit;
pub use screen::{Screen, Style};
pub use tap::Tap;
pub use text::one_line;
pub use totals::Totals;

use super::outcome::Record;

/// What is known before the first test runs.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How many tests there will be; `None` where they run until one fails.
    pub tests: Option<usize>,
    /// How many run at a time.
    pub jobs: usize,
}

/// Where a run stands.
pub struct Progress {
    /// What runs, and since when.
    pub running: Vec<(String, Duration)>,
    /// Time until all have run, as far as anybody knows; `None` while the tests of images are
    /// being found out.
    pub left: Option<Duration>,
}

/// A format. Each call leaves what it writes whole: a run may be killed at any time.
pub trait Report {
    /// What it is called in errors: "the JUnit report FILE".
    fn name(&self) -> String;

    /// Before it is known which tests there are.
    fn open(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Before the first test.
    fn begin(&mut self, _plan: &Plan) -> io::Result<()> {
        Ok(())
    }

    /// A test has come to its end, or will not run.
    fn finished(&mut self, record: &Record) -> io::Result<()>;

    /// Some time has gone by.
    fn tick(&mut self, _progress: &mut dyn FnMut() -> Progress) -> io::Result<()> {
        Ok(())
    }

    /// After the last test.
    fn end(&mut self, totals: &Totals) -> io::Result<()>;

    /// Instead of the end: the run came to nothing, and `why`.
    fn abandon(&mut self, _why: &str) -> io::Result<()> {
        Ok(())
    }
}

/// All reports of a run. One that cannot be written is given up, and the rest go on.
#[derive(Default)]
pub struct Reports {
    reports: Vec<Box<dyn Report>>,
    /// What could not be written.
    failures: Vec<String>,
}

impl Reports {
    /// Adds one.
    pub fn add(&mut self, report: impl Report + 'static) {
        self.reports.push(Box::new(report));
    }

    /// What could not be written, and why.
    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    /// Puts the beginnings of reports in the place of what an earlier run has left.
    pub fn open(&mut self) {
        self.each(|report| report.open());
    }

    /// Ends reports that were opened of a run that came to nothing, for this reason.
    pub fn abandon(&mut self, why: &str) {
        self.each(|report| report.abandon(why));
    }

    pub(super) fn begin(&mut self, plan: &Plan) {
        self.each(|report| report.begin(plan));
    }

    pub(super) fn finished(&mut self, record: &Record) {
        self.each(|report| report.finished(record));
    }

    pub(super) fn tick(&mut self, progress: &mut dyn FnMut() -> Progress) {
        self.each(|report| report.tick(progress));
    }

    pub(super) fn end(&mut self, totals: &Totals) {
        self.each(|report| report.end(totals));
    }

    fn each(&mut self, mut tell: impl FnMut(&mut dyn Report) -> io::Result<()>) {
        let failures = &mut self.failures;
        self.reports.retain_mut(|report| match tell(&mut **report) {
            Ok(()) => true,
            // Its reader has seen enough.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => false,
            Err(e) => {
                failures.push(format!("cannot write {}: {e}", report.name()));
                false
            }
        });
    }
}
