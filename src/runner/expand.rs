//! Images that are several tests: each is booted up to its READY to learn which.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::Error;
use super::crew::broken;
use super::lead::{Lead, TICK, Watch, Workforce};
use super::outcome::{Attempt, Status};
use super::protocol::{Listing, Reply};
use super::queue::{Item, Queue};
use super::report::Reports;
use super::sources::none_twice;
use super::test::Test;

/// Puts the tests that an image announces in the place of the image. One that ends by itself before
/// it is ready, and announces nothing, stays one test, which has ended with that. One whose tests
/// cannot be told stays one test that has failed, or for a signal did not run: see [`Test::ended`].
///
/// # Errors
/// Those of threads; names that are not unique.
pub fn expand(
    tests: Vec<Test>,
    force: &Workforce<'_>,
    reports: &mut Reports,
) -> Result<Vec<Test>, Error> {
    let is_suite = |test: &&Test| test.mailbox && test.skip.is_none();
    let item = |test: &Test| Item {
        test: Arc::new(test.clone()),
        name: test.name.clone(),
        expected: Duration::ZERO,
    };
    let suites: Vec<_> = tests.iter().filter(is_suite).map(item).collect();
    // One image's machine may as well be kept for its tests; of several each keeps room from others.
    let keep = suites.len() == 1;
    let jobs = force.jobs.min(suites.len());
    let queue = Queue::new(suites, force.budget, Some(1));
    let watch = Watch::default();
    let mut listed = BTreeMap::new();
    thread::scope(|scope| {
        let (events, news) = channel();
        for slot in 0..jobs {
            let (queue, events) = (&queue, events.clone());
            let lead = Lead::new(slot, *force, &watch);
            thread::Builder::new()
                .name(format!("list{slot}"))
                .spawn_scoped(scope, move || list_all(lead, queue, keep, &events))
                .map_err(|source| Error::Host { doing: "start a thread".to_owned(), source })?;
        }
        drop(events);
        listed = hear(&news, &queue, &watch, force, reports);
        Ok::<(), Error>(())
    })?;
    let all = tests.into_iter().flat_map(|test| match listed.remove(&test.name) {
        Some(listed) => listed.tests(test),
        None => vec![test],
    });
    let all: Vec<_> = all.collect();
    none_twice(&all)?;
    Ok(all)
}

/// What an image was found to be.
struct Listed {
    listing: Listing,
    /// Attempts to list it that came to nothing.
    before: Vec<Attempt>,
    took: Duration,
}

impl Listed {
    /// One that nobody came to: a signal ended the run before.
    fn unasked(signal: u8) -> Self {
        let attempt = Attempt::ended_by(signal, Duration::ZERO);
        Self { listing: Listing::Ended(attempt), before: Vec::new(), took: Duration::ZERO }
    }

    fn tests(self, image: Test) -> Vec<Test> {
        let Self { listing, before: mut ended, took } = self;
        match listing {
            Listing::Whole(attempt) | Listing::Ended(attempt) => {
                ended.push(attempt);
                vec![Test { ended, ..image }]
            }
            Listing::Tests(names) => {
                let mut tests: Vec<_> = image.members(names).collect();
                if !ended.is_empty() {
                    // To be told as flaky: its tests say nothing of its first boots.
                    ended.push(Attempt::announced(tests.len(), took));
                    tests.insert(0, Test { ended, is_of_boots: true, ..image });
                }
                tests
            }
        }
    }
}

fn list_all(mut lead: Lead<'_>, queue: &Queue, keep: bool, events: &Sender<(String, Listed)>) {
    while let Some(item) = queue.take() {
        let listed = list(&mut lead, &item, keep);
        queue.give_back(&item);
        if events.send((item.name, listed)).is_err() {
            break; // nobody listens any more
        }
    }
    lead.end();
}

/// Lists an image until that succeeds, or its retries are used up.
fn list(lead: &mut Lead<'_>, item: &Item, keep: bool) -> Listed {
    let began = Instant::now();
    let mut before = Vec::new();
    let order = lead.order_to_list(&item.test, keep);
    loop {
        let reply = lead.ask(item, &order);
        let listing = match reply {
            Ok(Reply::Listed(listing)) => *listing,
            Ok(_) => Listing::Ended(broken(&item.test, began, super::crew::OTHER.to_owned())),
            Err(attempt) => Listing::Ended(attempt),
        };
        match listing {
            Listing::Ended(attempt) | Listing::Whole(attempt)
                if attempt.status.is_bad()
                    && attempt.status != Status::NotRun
                    && before.len() < item.test.retries as usize =>
            {
                before.push(attempt);
            }
            listing => return Listed { listing, before, took: began.elapsed() },
        }
    }
}

/// Collects what is found, until nobody has anything more to say.
fn hear(
    news: &Receiver<(String, Listed)>,
    queue: &Queue,
    watch: &Watch,
    force: &Workforce<'_>,
    reports: &mut Reports,
) -> BTreeMap<String, Listed> {
    let mut listed = BTreeMap::new();
    loop {
        match news.recv_timeout(TICK) {
            Ok((name, found)) => _ = listed.insert(name, found),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if force.signal().is_some() {
            queue.stop();
            watch.kill_all();
        }
        watch.kill_late();
        reports.tick(&mut || watch.progress(None, force.jobs));
    }
    if let Some(signal) = force.signal() {
        let (rest, _) = queue.rest();
        listed.extend(rest.into_iter().map(|item| (item.name, Listed::unasked(signal))));
    }
    listed
}
