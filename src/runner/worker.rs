//! A worker: a process that runs one test after another, each in a machine of its own, or in one
//! that is put back to a checkpoint.
//! Orders come on its standard input, replies go to its standard output, and what a guest
//! says while it runs, where somebody wants to see it, to its standard error.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Instant;

use super::outcome::{Attempt, Status, serial_text, skip_reason, summary};
use super::protocol::{How, Listing, Order, Reply, receive, send};
use super::test::{Expect, Test, fingerprint};
use crate::config::{Config, SerialTarget};
use crate::machine::{Checkpoint, Error, Machine, Output, Reached};
use crate::verdict::{Refusal, Success, Verdict};

/// Machines that may wait for their end. More than a few hold memory for nothing.
const CLOSING: usize = 4;

/// What is done in a worker beside running tests.
pub trait Hooks {
    /// A test has come to its end; its machine still stands as it did then.
    ///
    /// # Errors
    /// What went wrong, in words: the test then counts as broken.
    fn finished(&mut self, _machine: &mut Machine, _test: &Test) -> Result<(), String> {
        Ok(())
    }
}

/// Nothing beside.
pub struct NoHooks;

impl Hooks for NoHooks {}

/// Takes orders until there are no more.
///
/// # Errors
/// Those of the pipe to the runner, and of threads.
pub fn work(
    orders: impl Read + Send + 'static,
    mut replies: impl Write,
    hooks: &mut dyn Hooks,
) -> io::Result<()> {
    let orders = read_ahead(orders)?;
    let mut bench = Bench { kept: None, closer: Closer::start()?, hooks };
    for order in orders {
        let reply = match order {
            Order::Run { test, how } => Reply::Ran(bench.run(&test, how)),
            Order::List { test, how, keep } => {
                Reply::Listed(Box::new(bench.list(&test, how, keep)))
            }
            Order::LetGo => {
                bench.kept = None; // at once: others wait for its memory
                Reply::LetGone
            }
        };
        send(&mut replies, &reply)?;
    }
    Ok(())
}

/// Reads orders on a thread of its own, which ends the process when the runner has gone: a
/// guest that runs for ever must not outlive whoever asked for it.
fn read_ahead(orders: impl Read + Send + 'static) -> io::Result<Receiver<Order>> {
    let (to, from) = sync_channel(1);
    let mut orders = BufReader::new(orders);
    let read = move || {
        while let Ok(Some(order)) = receive(&mut orders) {
            if to.send(order).is_err() {
                return; // the worker itself ends, by an error of its own
            }
        }
        std::process::exit(0);
    };
    thread::Builder::new().name("orders".to_owned()).spawn(read)?;
    Ok(from)
}

/// Takes machines apart on a thread of its own: the end of a VM with interrupt controllers
/// waits 12 to 15 ms for the kernel, without using a processor.
struct Closer(SyncSender<Machine>);

impl Closer {
    fn start() -> io::Result<Self> {
        let (to, from) = sync_channel(CLOSING);
        let close = move || from.into_iter().for_each(drop::<Machine>);
        thread::Builder::new().name("closer".to_owned()).spawn(close)?;
        Ok(Self(to))
    }

    fn close(&self, machine: Machine) {
        let _ = self.0.send(machine); // without the thread it goes right here
    }
}

/// Where tests are run.
struct Bench<'a> {
    kept: Option<Kept>,
    closer: Closer,
    hooks: &'a mut dyn Hooks,
}

/// A machine that was ready once, and is put back to that for each test of its image.
struct Kept {
    /// What it was made from.
    image: String,
    machine: Machine,
    checkpoint: Checkpoint,
    /// What this boot has announced.
    names: BTreeSet<String>,
}

/// Why there is no machine for a test.
enum NoMachine {
    Error(Error),
    /// The guest ended before it was ready.
    Ended(Box<Machine>, Verdict),
    /// What it announced is not what it should be.
    Odd(Box<Machine>, String),
}

impl From<Error> for NoMachine {
    fn from(e: Error) -> Self {
        Self::Error(e)
    }
}

impl Bench<'_> {
    fn run(&mut self, test: &Test, how: How) -> Attempt {
        match &test.member {
            Some(member) if !how.boot_each => self.put_back(test, member, how),
            member => self.boot(test, member.as_deref(), how),
        }
    }

    /// A test in a machine of its own.
    fn boot(&mut self, test: &Test, member: Option<&str>, how: How) -> Attempt {
        self.let_go();
        let began = Instant::now();
        let machine = match member {
            None => build(test, how).map_err(NoMachine::Error),
            Some(_) => ready(test, how),
        };
        let mut machine = match machine {
            Ok(machine) => machine,
            Err(none) => return self.without_machine(test, began, none),
        };
        if let Some(member) = member {
            if let Err(why) = names(&machine).and_then(|names| same_names(test, &names)) {
                let none = NoMachine::Odd(Box::new(machine), why);
                return self.without_machine(test, began, none);
            }
            machine.set_test(member);
        }
        let verdict = machine.run();
        let mut attempt = self.conclude(test, &mut machine, &verdict, began);
        if member.is_none() && test.mailbox && !machine.announced().is_empty() {
            let why =
                "this boot announced tests, as the one before did not: nobody chose among them";
            attempt.count_as_broken(Refusal::BadImage, why.to_owned());
        }
        self.closer.close(machine);
        attempt
    }

    /// A test in a machine that is put back to where its image was ready.
    fn put_back(&mut self, test: &Test, member: &str, how: How) -> Attempt {
        let began = Instant::now();
        let mut kept = match self.keep(test, how) {
            Ok(kept) => kept,
            Err(none) => return self.without_machine(test, began, none),
        };
        let mut began = Instant::now(); // the boot is not this test's
        if kept.machine.reset(&kept.checkpoint).is_err() {
            // The test before has left it so (it may have started its machine again): another.
            self.closer.close(kept.machine);
            kept = match self.keep(test, how) {
                Ok(kept) => kept,
                Err(none) => return self.without_machine(test, began, none),
            };
            began = Instant::now(); // nor is this one
        }
        if let Err(why) = same_names(test, &kept.names) {
            let none = NoMachine::Odd(Box::new(kept.machine), why);
            return self.without_machine(test, began, none);
        }
        kept.machine.set_test(member);
        kept.machine.set_timeout(Some(test.limit));
        let verdict = kept.machine.run();
        let attempt = self.conclude(test, &mut kept.machine, &verdict, began);
        self.kept = Some(kept);
        attempt
    }

    /// The tests that an image announces.
    fn list(&mut self, test: &Test, how: How, keep: bool) -> Listing {
        let began = Instant::now();
        self.kept = None;
        match ready(test, how) {
            Ok(machine) => match names(&machine) {
                // In the guest's order.
                Ok(_) => {
                    let names = machine.announced();
                    // A checkpoint takes as much room again.
                    if keep && let Ok(kept) = kept(test, how, machine) {
                        self.kept = Some(kept);
                    }
                    Listing::Tests(names)
                }
                Err(why) => {
                    let none = NoMachine::Odd(Box::new(machine), why);
                    Listing::Ended(self.without_machine(test, began, none))
                }
            },
            Err(NoMachine::Ended(mut machine, verdict)) if machine.announced().is_empty() => {
                let mut attempt = self.conclude(test, &mut machine, &verdict, began);
                self.closer.close(*machine);
                match verdict {
                    Verdict::Success(_) | Verdict::Failed { .. } | Verdict::Died { .. } => {
                        must_have_announced(test, &verdict, &mut attempt);
                        Listing::Whole(attempt)
                    }
                    _ => Listing::Ended(attempt),
                }
            }
            Err(none) => Listing::Ended(self.without_machine(test, began, none)),
        }
    }

    /// The machine that is kept, if it is this image's, else a new one.
    fn keep(&mut self, test: &Test, how: How) -> Result<Kept, NoMachine> {
        let image = image_of(test, how);
        if let Some(kept) = self.kept.take_if(|kept| kept.image == image) {
            return Ok(kept);
        }
        self.let_go();
        kept(test, how, ready(test, how)?)
    }

    fn let_go(&mut self) {
        if let Some(kept) = self.kept.take() {
            self.closer.close(kept.machine);
        }
    }

    fn without_machine(&mut self, test: &Test, began: Instant, none: NoMachine) -> Attempt {
        match none {
            NoMachine::Error(e) => Attempt::new(&e.verdict(), &test.expect, began.elapsed()),
            NoMachine::Ended(mut machine, verdict) => {
                let mut attempt = self.conclude(test, &mut machine, &verdict, began);
                attempt.cause = format!("before it was ready: {}", attempt.cause);
                if !attempt.status.is_bad() {
                    attempt.status = Status::Failed;
                }
                self.closer.close(*machine);
                attempt
            }
            NoMachine::Odd(mut machine, message) => {
                let verdict = Verdict::Refused { refusal: Refusal::BadImage, message };
                let attempt = self.conclude(test, &mut machine, &verdict, began);
                self.closer.close(*machine);
                attempt
            }
        }
    }

    /// What became of a test whose machine has come to its end.
    fn conclude(
        &mut self,
        test: &Test,
        machine: &mut Machine,
        verdict: &Verdict,
        began: Instant,
    ) -> Attempt {
        let mut attempt = Attempt::new(verdict, &test.expect, began.elapsed());
        attempt.serial = serial_text(&machine.serial_since_checkpoint());
        if let (Expect::KvmUnitTests, Some(summary)) = (&test.expect, summary(&attempt.serial)) {
            attempt.cause = format!("{} ({summary})", attempt.cause);
        }
        if attempt.status == Status::Skipped
            && let Some(reason) = skip_reason(&attempt.serial)
        {
            attempt.cause = reason.to_owned();
        }
        must_have_said_so(test, verdict, &mut attempt);
        if attempt.status.is_bad() {
            attempt.autopsy = machine.autopsy().map(ToString::to_string);
        }
        if machine.announced_late() && !attempt.status.is_bad() {
            let why = "it announces tests behind READY, and nobody runs these";
            attempt.count_as_broken(Refusal::BadImage, why.to_owned());
        }
        if let Err(why) = self.hooks.finished(machine, test)
            && !attempt.status.is_bad()
        {
            attempt.count_as_broken(Refusal::Host, why);
        }
        attempt
    }
}

/// What a kept machine was made from.
fn image_of(test: &Test, how: How) -> String {
    format!("{:?} {:?} {}", test.machine, test.module, how.live)
}

fn kept(test: &Test, how: How, mut machine: Machine) -> Result<Kept, NoMachine> {
    let names = match names(&machine) {
        Ok(names) => names,
        Err(why) => return Err(NoMachine::Odd(Box::new(machine), why)),
    };
    let checkpoint = machine.checkpoint()?;
    Ok(Kept { image: image_of(test, how), machine, checkpoint, names })
}

/// The tests that a machine has announced.
///
/// # Errors
/// Not each of them can be run and told apart, in words.
fn names(machine: &Machine) -> Result<BTreeSet<String>, String> {
    if let Some(fault) = machine.announce_fault() {
        return Err(format!("what it announces cannot be run: {fault}"));
    }
    let mut names = BTreeSet::new();
    for name in machine.announced() {
        if let Some(double) = names.replace(name) {
            return Err(format!(
                "it announces two tests by the name {double:?}: each needs a name of its own"
            ));
        }
    }
    if names.is_empty() {
        return Err("it said READY and has announced no test".to_owned());
    }
    Ok(names)
}

/// Has this boot announced what the image did when it was asked for its tests?
///
/// # Errors
/// It has not, in words.
fn same_names(test: &Test, names: &BTreeSet<String>) -> Result<(), String> {
    let now = fingerprint(names.iter().map(String::as_str));
    match &test.member {
        Some(member) if !names.contains(member) => Err(format!(
            "this boot of the image has not announced {member:?}, as the one before did"
        )),
        _ if test.announced.is_some_and(|then| then != now) => Err(format!(
            "this boot of the image has announced other tests than the one before ({} of them): \
             which of them would run is chance",
            names.len()
        )),
        _ => Ok(()),
    }
}

/// A test of the mailbox's passes by its debug exit: to power off is how a kernel ends that gave up.
fn must_have_said_so(test: &Test, verdict: &Verdict, attempt: &mut Attempt) {
    let powered_off = *verdict == Verdict::Success(Success::PowerOff);
    if test.member.is_some()
        && powered_off
        && attempt.status == Status::Passed
        && test.expect == Expect::Success
    {
        attempt.status = Status::Failed;
        attempt.cause = format!("it ended without a verdict (debug exit): {}", attempt.cause);
    }
}

/// An image that takes part in the mailbox and has announced nothing passes as one test only where
/// it says so itself: to power off is how a kernel ends that could not start.
fn must_have_announced(test: &Test, verdict: &Verdict, attempt: &mut Attempt) {
    let says_so =
        *verdict == Verdict::Success(Success::DebugExit) || test.expect != Expect::Success;
    if attempt.status == Status::Passed && (test.must_announce || !says_so) {
        attempt.status = Status::Failed;
        attempt.cause = format!("it has announced no test, and ended: {}", attempt.cause);
    }
}

/// A machine whose guest has said READY.
fn ready(test: &Test, how: How) -> Result<Machine, NoMachine> {
    let mut machine = build(test, how)?;
    match machine.run_to_ready() {
        Reached::Ready => Ok(machine),
        Reached::End(verdict) => Err(NoMachine::Ended(Box::new(machine), verdict)),
    }
}

fn build(test: &Test, how: How) -> Result<Machine, Error> {
    let config = Config {
        timeout: Some(test.limit),
        serial: SerialTarget::Null,
        ..Config::resolve(test.machine.clone())?
    };
    let mut builder = Machine::builder(config.image.clone()).config(config);
    if let Some((string, text)) = &test.module {
        builder = builder.module_bytes(string, text.as_bytes());
    }
    if how.live {
        let copy = io::stderr().as_fd().try_clone_to_owned();
        let doing = "show the guest's output".to_owned();
        let file = File::from(copy.map_err(|source| Error::Host { doing, source })?);
        builder = builder.output(Output::Both("standard output".to_owned(), file));
    }
    builder.build()
}
