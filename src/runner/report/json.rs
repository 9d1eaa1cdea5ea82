//! JSON lines: an object when the run begins, one a test, one when it ends.

use std::io::{self, Write};

use serde::Serialize;

use super::{Plan, Report, Totals};
use crate::runner::outcome::{Attempt, Record, Status};
use crate::runner::send;

/// The version of what the lines hold: grows when a field changes its meaning or goes.
const VERSION: u32 = 1;

/// A stream of JSON lines.
pub struct Json<W> {
    name: String,
    out: W,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Line<'a> {
    Begin {
        version: u32,
        ringfence: &'static str,
        tests: Option<usize>,
        jobs: usize,
    },
    Test(Test<'a>),
    End {
        exit_code: u8,
        total: usize,
        #[serde(flatten)]
        totals: &'a Totals,
    },
}

#[derive(Serialize)]
struct Test<'a> {
    name: &'a str,
    suite: &'a str,
    tags: &'a [String],
    status: Status,
    flaky: bool,
    cause: &'a str,
    seconds: f64,
    attempts: &'a [Attempt],
}

impl<W: Write> Json<W> {
    /// A stream to `out`; `name` is for errors.
    pub fn new(name: String, out: W) -> Self {
        Self { name, out }
    }
}

impl<W: Write> Report for Json<W> {
    fn name(&self) -> String {
        format!("the JSON lines {}", self.name)
    }

    fn begin(&mut self, plan: &Plan) -> io::Result<()> {
        let ringfence = env!("CARGO_PKG_VERSION");
        let (tests, jobs) = (plan.tests, plan.jobs);
        send(&mut self.out, &Line::Begin { version: VERSION, ringfence, tests, jobs })
    }

    fn finished(&mut self, record: &Record) -> io::Result<()> {
        let line = Line::Test(Test {
            name: &record.name,
            suite: &record.test.suite,
            tags: &record.test.tags,
            status: record.status,
            flaky: record.is_flaky(),
            cause: &record.cause,
            seconds: record.seconds(),
            attempts: &record.attempts,
        });
        send(&mut self.out, &line)
    }

    fn end(&mut self, totals: &Totals) -> io::Result<()> {
        let (exit_code, total) = (totals.exit_code(), totals.total());
        send(&mut self.out, &Line::End { exit_code, total, totals })
    }
}
