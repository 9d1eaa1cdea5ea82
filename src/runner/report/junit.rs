//! JUnit XML, as Jenkins, GitLab and GitHub actions read it. The file is replaced as a whole now
//! and then, so that it is valid whenever the run is killed; until the run's end it says that there
//! is more to come.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestRerun, TestSuite};

use super::text::{lines, one_line};
use super::{Progress, Report, Totals};
use crate::machine::{is_replaced, write_whole};
use crate::runner::outcome::{Attempt, Record, Status};

/// How often the file is written while tests run, at most.
const PERIOD: Duration = Duration::from_secs(1);

/// Writing takes no more than one part of so many of the time.
const SHARE: u32 = 20;

/// A JUnit file.
pub struct Junit {
    path: PathBuf,
    suites: BTreeMap<String, TestSuite>,
    next: Instant,
    written: bool,
}

impl Junit {
    /// A file; `-` is standard output.
    pub fn new(path: &Path) -> Self {
        let (path, suites) = (path.to_owned(), BTreeMap::new());
        Self { path, suites, next: Instant::now(), written: false }
    }

    fn write(&mut self, took: Option<Duration>) -> io::Result<()> {
        let began = Instant::now();
        let mut report = quick_junit::Report::new("ringfence");
        match took {
            Some(took) => report.set_time(took),
            None => report.add_test_suite(unfinished()),
        };
        report.add_test_suites(self.suites.values().cloned());
        let text = report.to_string().map_err(io::Error::other)?;
        write_whole(&self.path, text.as_bytes())?;
        self.written = true;
        self.next = Instant::now() + PERIOD.max(began.elapsed() * SHARE);
        Ok(())
    }

    fn write_sometimes(&mut self) -> io::Result<()> {
        if self.written || !is_replaced(&self.path) || Instant::now() < self.next {
            return Ok(());
        }
        self.write(None)
    }
}

impl Report for Junit {
    fn name(&self) -> String {
        format!("the JUnit report {}", self.path.display())
    }

    fn open(&mut self) -> io::Result<()> {
        if is_replaced(&self.path) { self.write(None) } else { Ok(()) }
    }

    fn finished(&mut self, record: &Record) -> io::Result<()> {
        let name = suite_name(record);
        let suite = self.suites.entry(name.clone()).or_insert_with(|| TestSuite::new(name));
        let so_far = suite.time.unwrap_or_default();
        suite.set_time(so_far + Duration::from_secs_f64(record.seconds()));
        suite.add_test_case(case(record));
        self.written = false;
        self.write_sometimes()
    }

    fn tick(&mut self, _: &mut dyn FnMut() -> Progress) -> io::Result<()> {
        self.write_sometimes()
    }

    fn end(&mut self, totals: &Totals) -> io::Result<()> {
        self.write(Some(totals.took))
    }
}

/// What a report holds until the run's end: read alone, it does not pass.
fn unfinished() -> TestSuite {
    let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
    status.set_message("the run did not come to its end: what is not in this report did not run");
    status.set_type(Status::NotRun.words().replace(' ', "-"));
    let mut suite = TestSuite::new("ringfence");
    suite.add_test_case(TestCase::new("the whole run", status));
    suite
}

/// Images that were named one by one are a suite too.
fn suite_name(record: &Record) -> String {
    let suite = record.test.suite.as_str();
    one_line(if suite.is_empty() { "images" } else { suite })
}

fn case(record: &Record) -> TestCase {
    let mut status = match record.status {
        Status::Passed => TestCaseStatus::success(),
        Status::Skipped => TestCaseStatus::skipped(),
        status => TestCaseStatus::non_success(kind(status)),
    };
    let cause = one_line(&record.cause);
    status.set_message(cause).set_type(type_of(record.status, record.deciding()));
    if let Some(autopsy) = record.deciding().and_then(|it| it.autopsy.as_deref()) {
        status.set_description(lines(autopsy));
    }
    let before = record.attempts.len().saturating_sub(1);
    status.add_reruns(record.attempts.iter().take(before).map(rerun));
    let mut case = TestCase::new(one_line(&record.name), status);
    case.set_classname(suite_name(record));
    case.set_time(Duration::from_secs_f64(record.seconds()));
    if let Some(last) = record.last() {
        case.set_system_out(lines(&last.serial));
    }
    case
}

/// A guest that did not pass is a failure; what kept it from running is an error.
fn kind(status: Status) -> NonSuccessKind {
    match status {
        Status::Broken | Status::NotRun => NonSuccessKind::Error,
        _ => NonSuccessKind::Failure,
    }
}

fn type_of(status: Status, attempt: Option<&Attempt>) -> String {
    match (status, attempt) {
        (Status::Died | Status::Broken, Some(attempt)) => attempt.verdict.clone(),
        _ => status.words().replace(' ', "-"),
    }
}

fn rerun(attempt: &Attempt) -> TestRerun {
    let mut rerun = TestRerun::new(kind(attempt.status));
    rerun.set_type(type_of(attempt.status, Some(attempt)));
    rerun.set_message(one_line(&attempt.cause));
    rerun.set_time(Duration::from_secs_f64(attempt.seconds));
    rerun.set_system_out(lines(&attempt.serial));
    if let Some(autopsy) = &attempt.autopsy {
        rerun.set_description(lines(autopsy));
    }
    rerun
}
