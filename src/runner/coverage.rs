//! Coverage of many tests: each worker sums the counters of an image in a file of its own, and
//! the runner makes one of them at the end. A run that is killed leaves the workers' files,
//! which are as good. Called by workers and by the command line.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::test::Test;
use super::worker::Hooks;
use crate::machine::{self, Coverage, CoverageError, Machine, write_whole};

const SUFFIX: &str = ".profraw";

/// What a worker counts, by file.
pub struct Collector {
    directory: PathBuf,
    sums: BTreeMap<PathBuf, Coverage>,
}

impl Collector {
    /// Collects in this directory, which exists.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, sums: BTreeMap::new() }
    }

    fn add(&mut self, image: &Path, coverage: Coverage) -> io::Result<()> {
        let image = image.file_stem().unwrap_or(image.as_os_str()).to_string_lossy();
        let image = image.trim_start_matches('@');
        let (signature, process) = (coverage.signature(), std::process::id());
        let path = self.directory.join(format!("{image}-{signature:016x}-{process}{SUFFIX}"));
        let sum = match self.sums.get_mut(&path) {
            Some(sum) => {
                sum.add(&coverage);
                &*sum
            }
            None => self.sums.entry(path.clone()).or_insert(coverage),
        };
        write_whole(&path, &sum.to_bytes())
    }
}

impl Hooks for Collector {
    fn finished(&mut self, machine: &mut Machine, test: &Test) -> Result<(), String> {
        let coverage = match machine.coverage() {
            Ok(coverage) => coverage,
            // One image of many that need not all be compiled for it.
            Err(machine::Error::Coverage { source: CoverageError::NotInstrumented, .. }) => {
                return Ok(());
            }
            Err(e) => return Err(machine::chain(&e)),
        };
        let image = test.machine.image.clone().unwrap_or_default();
        self.add(&image, coverage).map_err(|e| format!("cannot write the coverage: {e}"))
    }
}

/// Makes the directory, and removes what an earlier run left in it.
///
/// # Errors
/// Those of the files.
pub fn begin(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    profiles(directory)?.iter().try_for_each(fs::remove_file)
}

/// Makes one file an image of those of all workers; gives back how many images there are.
///
/// # Errors
/// Those of the files.
pub fn merge(directory: &Path) -> io::Result<usize> {
    let mut sums: BTreeMap<PathBuf, Coverage> = BTreeMap::new();
    let parts = profiles(directory)?;
    for part in &parts {
        let Some(coverage) = Coverage::from_bytes(&fs::read(part)?) else { continue };
        let name = part.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let image = name.rsplit_once('-').map_or(name.as_str(), |(image, _)| image);
        let whole = directory.join(format!("{image}{SUFFIX}"));
        if let Some(sum) = sums.get_mut(&whole) {
            sum.add(&coverage);
        } else {
            sums.insert(whole, coverage);
        }
    }
    for (path, sum) in &sums {
        write_whole(path, &sum.to_bytes())?;
    }
    parts.iter().filter(|part| !sums.contains_key(*part)).try_for_each(fs::remove_file)?;
    Ok(sums.len())
}

/// The profiles in a directory.
fn profiles(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let paths = fs::read_dir(directory)?.map(|entry| Ok(entry?.path()));
    let paths: io::Result<Vec<_>> = paths.collect();
    let is_profile = |path: &PathBuf| path.to_string_lossy().ends_with(SUFFIX);
    Ok(paths?.into_iter().filter(is_profile).collect())
}
