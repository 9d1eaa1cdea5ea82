//! Runs tests: a thread leads each worker, the caller's thread hears what became of the tests,
//! looks at the clock and at signals, and tells the reports.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Instant;

use super::Error;
use super::crew::{OTHER, broken};
use super::history::History;
use super::lead::{Lead, TICK, Watch, Workforce};
use super::outcome::{Attempt, Record, Status};
use super::protocol::{Order, Reply};
use super::queue::{Item, Queue, round_name};
use super::report::{Plan, Reports, Totals};
use super::test::Test;

/// How tests are run.
pub struct Options<'a> {
    /// By whom.
    pub force: Workforce<'a>,
    /// Start nothing more after the first failure.
    pub fail_fast: bool,
    /// How often every test runs; `None`: until one fails.
    pub rounds: Option<u32>,
    /// Are there tests to run in other shards? None in this one is no mistake then.
    pub others: bool,
    /// When the run began.
    pub began: Instant,
    /// What is done when all tests have ended, before that is reported; where it fails, the exit
    /// code for that.
    pub afterwards: &'a (dyn Fn(&Totals) -> Option<u8> + Sync),
}

impl Options<'_> {
    fn ends_at_failure(&self) -> bool {
        self.fail_fast || self.rounds.is_none()
    }
}

/// Runs tests, the first of the list first.
///
/// # Errors
/// Where not one worker could be started. What becomes of tests is no error.
pub fn run(
    tests: &[Arc<Test>],
    history: &mut History,
    options: &Options<'_>,
    reports: &mut Reports,
) -> Result<Totals, Error> {
    let (settled, items) = items(tests, options.rounds, history);
    let force = &options.force;
    // Without an item there is no failure to wait for.
    let rounds = if items.is_empty() { Some(1) } else { options.rounds };
    let all = |rounds: u32| items.len().saturating_mul(rounds as usize) + settled.len();
    let plan = Plan { tests: rounds.map(all), jobs: force.jobs };
    let queue = Queue::new(items, force.budget, rounds);
    if options.ends_at_failure() && settled.iter().any(|record| record.status.is_bad()) {
        queue.stop();
    }
    let none_asked = tests.is_empty() || options.others;
    let totals = Totals { none_asked, ..Totals::default() };
    let mut desk = Desk { options, queue: &queue, history, totals, reports };
    desk.reports.begin(&plan);
    settled.into_iter().for_each(|record| desk.record(record));
    let watch = Watch::default();
    thread::scope(|scope| {
        let (events, news) = channel();
        for slot in 0..force.jobs {
            let (queue, events) = (&queue, events.clone());
            let leader = Lead::new(slot, *force, &watch);
            let named = thread::Builder::new().name(format!("lead{slot}"));
            named
                .spawn_scoped(scope, move || lead(leader, queue, options, &events))
                .map_err(|source| Error::Host { doing: "start a thread".to_owned(), source })?;
        }
        drop(events);
        desk.listen(&news, &watch);
        Ok(())
    })?;
    Ok(desk.finish())
}

/// What has come to its end or will not run, and what will.
fn items(tests: &[Arc<Test>], rounds: Option<u32>, history: &History) -> (Vec<Record>, Vec<Item>) {
    // An image that is one test has had its first run when it was asked for its tests. Of many
    // rounds that was none.
    let runs_again =
        |test: &Test| test.ended.is_empty() || !test.is_in_every_shard() && rounds != Some(1);
    let (mut settled, mut items) = (Vec::new(), Vec::new());
    for test in tests {
        let name = test.name.clone();
        if let Some(why) = &test.skip {
            let status = Status::Skipped;
            settled.push(Record::without_attempt(test.clone(), name, status, why.clone()));
        } else if !runs_again(test) {
            settled.push(Record::of(test.clone(), name, test.ended.clone()));
        } else {
            if test.ended.len() > 1 {
                // Not all went well before the first round.
                let name = round_name(&name, 0);
                settled.push(Record::of(test.clone(), name, test.ended.clone()));
            }
            let expected = history.expected(&name);
            items.push(Item { test: test.clone(), name, expected });
        }
    }
    (settled, items)
}

/// Leads one worker from test to test.
fn lead(mut lead: Lead<'_>, queue: &Queue, options: &Options<'_>, events: &Sender<Record>) {
    // Whose machine the worker keeps, and whose room in the budget that takes.
    let mut kept: Option<Item> = None;
    loop {
        let next = kept.as_ref().and_then(|kept| queue.take_after(kept));
        let next = next.or_else(|| {
            if let Some(kept) = kept.take() {
                if !queue.is_done() {
                    let _ = lead.ask(&kept, &Order::LetGo); // a worker that died has let go too
                }
                queue.give_back(&kept);
            }
            queue.take()
        });
        let Some(item) = next else { break };
        let record = attempts(&mut lead, options, &item);
        // Before this leader or another takes the next one.
        if record.status.is_bad() && options.ends_at_failure() {
            queue.stop();
        }
        if item.test.member.is_some() {
            kept = Some(item);
        } else {
            queue.give_back(&item);
        }
        if events.send(record).is_err() {
            break; // nobody listens any more
        }
    }
    lead.end();
}

/// Runs a test until it passes, or its retries are used up.
fn attempts(lead: &mut Lead<'_>, options: &Options<'_>, item: &Item) -> Record {
    let mut attempts = Vec::new();
    for _ in 0..=item.test.retries {
        if options.force.signal().is_some() && !attempts.is_empty() {
            break;
        }
        attempts.push(attempt(lead, options, item));
        if attempts.last().is_some_and(|it: &Attempt| !it.status.is_bad()) {
            break;
        }
    }
    Record::of(item.test.clone(), item.name.clone(), attempts)
}

fn attempt(lead: &mut Lead<'_>, options: &Options<'_>, item: &Item) -> Attempt {
    let began = Instant::now();
    match lead.ask(item, &options.force.crew.order_to_run(&item.test)) {
        Ok(Reply::Ran(attempt)) => attempt,
        Ok(_) => broken(&item.test, began, OTHER.to_owned()),
        Err(attempt) => attempt,
    }
}

/// Where the news comes in.
struct Desk<'a> {
    options: &'a Options<'a>,
    queue: &'a Queue,
    history: &'a mut History,
    totals: Totals,
    reports: &'a mut Reports,
}

impl Desk<'_> {
    fn listen(&mut self, news: &Receiver<Record>, watch: &Watch) {
        loop {
            match news.recv_timeout(TICK) {
                Ok(record) => self.record(record),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.options.force.signal().is_some() {
                self.queue.stop();
                watch.kill_all();
            }
            watch.kill_late();
            let (queue, jobs) = (self.queue, self.options.force.jobs);
            self.reports.tick(&mut || watch.progress(Some(queue.expected()), jobs));
        }
    }

    fn record(&mut self, record: Record) {
        self.totals.count(&record);
        if let (Some(last), false) = (record.last(), record.status == Status::NotRun) {
            self.history.note(&record.test.name, last.seconds);
        }
        self.reports.finished(&record);
    }

    /// What was to run and did not.
    fn finish(mut self) -> Totals {
        let signal = self.options.force.signal();
        let why = match signal {
            None => "another test had failed before".to_owned(),
            Some(signal) => format!("the run was ended by signal {signal}"),
        };
        self.totals.signal = signal;
        let (rest, later) = self.queue.rest();
        // Of later rounds there may be a million.
        self.totals.not_run += later;
        let rest = if self.options.rounds.is_some() { rest } else { Vec::new() };
        for item in rest {
            let (test, name) = (item.test, item.name);
            self.record(Record::without_attempt(test, name, Status::NotRun, why.clone()));
        }
        self.totals.afterwards = (self.options.afterwards)(&self.totals);
        self.totals.took = self.options.began.elapsed();
        self.reports.end(&self.totals);
        self.totals
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::runner::test::Expect;
    use crate::verdict::Verdict;

    #[test]
    fn a_failure_before_the_first_round_is_told() {
        let attempt =
            |code| Attempt::new(&Verdict::from_guest_code(code), &Expect::Success, Duration::ZERO);
        let after = |codes: &[u32], rounds| {
            let ended = codes.iter().map(|code| attempt(*code)).collect();
            let test = Arc::new(Test { ended, ..Test::for_tests("t", 1) });
            let (settled, items) = items(&[test], rounds, &History::none());
            let settled: Vec<_> =
                settled.iter().map(|it| (it.name.clone(), it.is_flaky())).collect();
            (settled, items.len())
        };
        assert_eq!(after(&[], Some(1)), (vec![], 1));
        assert_eq!(after(&[1, 0], Some(1)), (vec![("t".to_owned(), true)], 0));
        for rounds in [Some(2), None] {
            assert_eq!(after(&[0], rounds), (vec![], 1));
            assert_eq!(after(&[1, 0], rounds), (vec![("t #0".to_owned(), true)], 1));
            assert_eq!(after(&[1], rounds), (vec![("t".to_owned(), false)], 0));
        }
    }
}
