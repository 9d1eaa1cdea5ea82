//! Worker processes, as the runner sees them.

use std::io::{self, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::outcome::Attempt;
use super::protocol::{How, Order, Reply, receive, send};
use super::test::Test;
use crate::verdict::{Refusal, Verdict};

/// Makes the command that starts a worker; its standard input and output are set here.
pub type Recruit<'a> = dyn Fn() -> Command + Sync + 'a;

/// Workers, and those of them that have nothing to do.
pub struct Crew<'a> {
    recruit: &'a Recruit<'a>,
    idle: Mutex<Vec<Worker>>,
    how: How,
}

impl<'a> Crew<'a> {
    /// Nobody yet.
    pub fn new(recruit: &'a Recruit<'a>, how: How) -> Self {
        Self { recruit, idle: Mutex::new(Vec::new()), how }
    }

    /// Runs a test once, in a worker that is idle or a new one.
    pub fn run(&self, test: &Test) -> Attempt {
        let began = Instant::now();
        match self.order(&self.order_to_run(test)) {
            Ok(Reply::Ran(attempt)) => attempt,
            Ok(_) => broken(test, began, OTHER.to_owned()),
            Err(why) => broken(test, began, why),
        }
    }

    fn order(&self, order: &Order) -> Result<Reply, String> {
        let mut worker = self.hire().map_err(|e| format!("cannot start a worker process: {e}"))?;
        let reply = worker.ask(order)?;
        self.rest(worker);
        Ok(reply)
    }

    pub(super) fn order_to_run(&self, test: &Test) -> Order {
        Order::Run { test: Box::new(test.clone()), how: self.how }
    }

    pub(super) fn order_to_list(&self, test: &Test, keep: bool) -> Order {
        Order::List { test: Box::new(test.clone()), how: self.how, keep }
    }

    pub(super) fn hire(&self) -> io::Result<Worker> {
        let idle = lock(&self.idle).pop();
        idle.map_or_else(|| Worker::start(self.recruit), Ok)
    }

    pub(super) fn rest(&self, worker: Worker) {
        lock(&self.idle).push(worker);
    }
}

/// A worker's reply to another order; cannot happen.
pub(super) const OTHER: &str = "a worker's reply is to another order; this is a bug in ringfence";

/// An attempt that came to nothing.
pub(super) fn broken(test: &Test, began: Instant, message: String) -> Attempt {
    let verdict = Verdict::Refused { refusal: Refusal::Host, message };
    Attempt::new(&verdict, &test.expect, began.elapsed())
}

/// A worker process.
pub(super) struct Worker {
    process: Process,
    /// Closed to end it.
    orders: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
}

/// The process of a worker, to be killed by whoever watches the clock.
#[derive(Clone)]
pub(super) struct Process(Arc<Mutex<Child>>);

impl Process {
    pub(super) fn kill(&self) {
        let _ = lock(&self.0).kill(); // it may be gone already
    }

    fn end(&self) -> io::Result<ExitStatus> {
        lock(&self.0).wait()
    }
}

impl Worker {
    pub(super) fn start(recruit: &Recruit<'_>) -> io::Result<Self> {
        let mut command = recruit();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let missing = || io::Error::other("a worker without a pipe");
        let orders = child.stdin.take().ok_or_else(missing)?;
        let replies = BufReader::new(child.stdout.take().ok_or_else(missing)?);
        Ok(Self { process: Process(Arc::new(Mutex::new(child))), orders: Some(orders), replies })
    }

    pub(super) fn process(&self) -> Process {
        self.process.clone()
    }

    /// Has an order carried out.
    ///
    /// # Errors
    /// How the worker ended instead, in words.
    pub(super) fn ask(&mut self, order: &Order) -> Result<Reply, String> {
        let sent = self.orders.as_mut().map(|orders| send(orders, order));
        let reply = match sent {
            Some(Ok(())) => receive(&mut self.replies),
            // Not the pipe's, but the order's: nothing of it was written.
            Some(Err(e)) if e.get_ref().is_some_and(|e| e.is::<serde_json::Error>()) => {
                return Err(format!("a worker cannot be told of it: {e}"));
            }
            _ => Ok(None),
        };
        match reply {
            Ok(Some(reply)) => Ok(reply),
            Ok(None) => Err(self.fate()),
            Err(e) => {
                self.process.kill();
                Err(format!("{}: {e}", self.fate()))
            }
        }
    }

    fn fate(&mut self) -> String {
        self.orders = None;
        match self.process.end() {
            Ok(status) => match status.signal() {
                Some(signal) => format!("the process that ran it was ended by signal {signal}"),
                None => format!("the process that ran it ended by itself ({status})"),
            },
            Err(e) => format!("the process that ran it has gone: {e}"),
        }
    }
}

impl Drop for Worker {
    /// Without orders it ends by itself, at once.
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.process.end(); // it has no more to say
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
