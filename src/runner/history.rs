//! How long tests took before, so that the longest begin first. A file that cannot be read or
//! written costs the order, and nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::machine::write_whole;

/// Tests that are remembered at most: beyond them the file is begun anew.
const MOST: usize = 100_000;

/// What a test is thought to take that has never run: it begins early, for it may be long.
const UNKNOWN: Duration = Duration::from_secs(1);

/// Durations by test.
#[derive(Debug, Default)]
pub struct History {
    path: Option<PathBuf>,
    seconds: BTreeMap<String, f64>,
    changed: bool,
}

#[derive(Serialize, Deserialize)]
struct File {
    seconds: BTreeMap<String, f64>,
}

impl History {
    /// Nothing, and kept nowhere.
    pub fn none() -> Self {
        Self::default()
    }

    /// What the file holds.
    pub fn read(path: &Path) -> Self {
        let read = || serde_json::from_slice::<File>(&fs::read(path).ok()?).ok();
        let seconds = read().map(|file| file.seconds).unwrap_or_default();
        Self { path: Some(path.to_owned()), seconds, changed: false }
    }

    /// How long a test will take.
    pub fn expected(&self, name: &str) -> Duration {
        let known = self.seconds.get(name).and_then(|it| Duration::try_from_secs_f64(*it).ok());
        known.unwrap_or(UNKNOWN)
    }

    pub(super) fn note(&mut self, name: &str, seconds: f64) {
        // The mean with what was: one slow day does not turn everything round.
        let known = self.seconds.get(name).copied().unwrap_or(seconds);
        self.seconds.insert(name.to_owned(), (known + seconds) / 2.0);
        self.changed = true;
    }

    /// Writes the file, whole or not at all.
    pub fn write(&mut self) {
        let Some(path) = self.path.as_ref().filter(|_| self.changed) else { return };
        if self.seconds.len() > MOST {
            self.seconds.clear();
        }
        let file = File { seconds: std::mem::take(&mut self.seconds) };
        let written = path
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| write_whole(path, &serde_json::to_vec(&file)?));
        if let Err(e) = written {
            log::info!("cannot remember in {} how long tests take: {e}", path.display());
        }
        self.changed = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_read_again() {
        let path = std::env::temp_dir().join(format!("ringfence-history-{}", std::process::id()));
        let mut history = History::read(&path);
        assert_eq!(history.expected("a"), UNKNOWN);
        history.note("a", 4.0);
        history.note("a", 2.0);
        history.write();
        assert_eq!(History::read(&path).expected("a"), Duration::from_secs(3));
        fs::write(&path, "{\"seconds\": {\"a\": -1}}").unwrap();
        assert_eq!(History::read(&path).expected("a"), UNKNOWN);
        fs::write(&path, "no JSON").unwrap();
        assert_eq!(History::read(&path).expected("a"), UNKNOWN);
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn where_nothing_can_be_written_nothing_happens() {
        let mut history = History::read(Path::new("/proc/nowhere/durations.json"));
        history.note("a", 4.0);
        history.write();
    }
}
