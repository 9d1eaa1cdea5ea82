//! What the runner and its workers say to each other: one JSON value a line.

use std::io::{self, BufRead, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::outcome::Attempt;
use super::test::Test;

/// To a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// Run this test.
    Run { test: Box<Test>, how: How },
    /// Boot the image up to its READY and say what it announces.
    /// The machine is kept for the tests, or taken apart.
    List { test: Box<Test>, how: How, keep: bool },
    /// Take a machine apart that is kept for more tests.
    LetGo,
}

/// How all tests run.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct How {
    /// What guests say is shown while they run.
    pub live: bool,
    /// A boot for each test, even where the machine could be put back to a checkpoint.
    pub boot_each: bool,
}

/// From a worker: one for each order.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// To [`Order::Run`].
    Ran(Attempt),
    /// To [`Order::List`].
    Listed(Box<Listing>),
    /// To [`Order::LetGo`].
    LetGone,
}

/// What an image is.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Listing {
    /// These tests.
    Tests(Vec<String>),
    /// One test, which ended by itself: this is its first attempt.
    Whole(Attempt),
    /// It did not come to say; how it ended instead.
    Ended(Attempt),
}

/// Writes a value and its line end at once.
pub(super) fn send(to: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// Reads a value; `None` at the end.
pub(super) fn receive<T: DeserializeOwned>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    if from.read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}
