//! Where tests come from: what was typed, a path each, becomes a list of [`Test`]s.

mod environment;
mod images;
mod qemu;
mod toml_file;
mod unit_tests;
mod words;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::Error;
use super::test::{DEFAULT_LIMIT, Expect, Test};
use crate::config::{Config, Description, is_carried, parse_limit};
use crate::machine::has_mailbox;

/// A directory's own list of tests: ours, that of kvm-unit-tests' x86 directory, and that of
/// their whole tree.
const LISTS: &[&str] = &["ringfence-tests.toml", "unittests.cfg", "x86/unittests.cfg"];

/// What all sources have to know.
pub struct Sources<'a> {
    /// What was typed, which goes before all that tests say.
    pub typed: Description,
    /// The kind of KVM here.
    pub backend: &'a str,
    /// The arguments that a guest needs which ringfence carries.
    pub carried: &'a dyn Fn(&Path) -> Description,
    /// How a test has to end that says nothing of it.
    pub expect: Expect,
    /// Retries that were typed.
    pub retries: Option<u32>,
}

/// What a test says of itself beside its machine.
#[derive(Default)]
struct Facts {
    /// `None`: as is usual where it was found.
    expect: Option<Expect>,
    retries: u32,
    tags: Vec<String>,
    skip: Option<String>,
    manual: bool,
    notes: Vec<String>,
    mailbox: Option<bool>,
}

impl Sources<'_> {
    /// All tests of these paths: images, `@NAME`, files of tests, directories.
    ///
    /// # Errors
    /// A file that is not understood, names that are not unique, nothing found at all.
    pub fn tests(&self, paths: &[PathBuf]) -> Result<Vec<Test>, Error> {
        let mut tests = Vec::new();
        for path in paths {
            let found = self.of_path(path)?;
            if found.is_empty() {
                return Err(Error::NoTest(format!("there is no test in {}", path.display())));
            }
            tests.extend(found);
        }
        unique(&mut tests)?;
        Ok(tests)
    }

    fn of_path(&self, path: &Path) -> Result<Vec<Test>, Error> {
        if is_carried(path) {
            return Ok(vec![self.image(path, "", path.display().to_string())?]);
        }
        let read = |source| Error::Read { path: path.display().to_string(), source };
        if fs::metadata(path).map_err(read)?.is_dir() {
            return self.of_directory(path);
        }
        match path.extension().and_then(|end| end.to_str()) {
            Some("toml") => toml_file::read(self, path),
            Some("cfg") => unit_tests::read(self, path),
            _ => {
                let name = text_of(Path::new(path.file_stem().unwrap_or(path.as_os_str())));
                Ok(vec![self.image(path, "", name)?])
            }
        }
    }

    fn of_directory(&self, path: &Path) -> Result<Vec<Test>, Error> {
        list_of(path).map_or_else(|| images::find(self, path), |list| self.of_path(&list))
    }

    /// An image that is a test as it is.
    fn image(&self, path: &Path, suite: &str, name: String) -> Result<Test, Error> {
        let machine = Description { image: Some(path.to_owned()), ..Description::default() };
        let bad = |reason| Error::Tests { path: path.display().to_string(), reason };
        self.test(name, suite.to_owned(), machine, Facts::default()).map_err(bad)
    }

    /// Puts a test together; what is wrong with its machine comes back in words.
    fn test(
        &self,
        name: String,
        suite: String,
        machine: Description,
        facts: Facts,
    ) -> Result<Test, String> {
        let mut machine = self.typed.clone().over(machine);
        if let Some(image) = machine.image.clone().filter(|image| is_carried(image)) {
            machine = machine.over((self.carried)(&image));
        }
        let config = Config::resolve(machine.clone()).map_err(|e| e.to_string())?;
        let limit = machine.timeout.as_deref().map(parse_limit).transpose()?;
        Ok(Test {
            name,
            suite,
            memory: config.memory,
            mailbox: facts.mailbox.unwrap_or_else(|| has_mailbox(&config.image)),
            must_announce: facts.mailbox == Some(true),
            member: None,
            announced: None,
            ended: Vec::new(),
            is_of_boots: false,
            machine,
            module: None,
            expect: facts.expect.unwrap_or_else(|| self.expect.clone()),
            limit: limit.unwrap_or(DEFAULT_LIMIT),
            retries: self.retries.unwrap_or(facts.retries),
            tags: facts.tags,
            skip: facts.skip,
            manual: facts.manual,
            notes: facts.notes,
        })
    }
}

/// Is there a list of tests of this name?
pub fn is_list(path: &Path) -> bool {
    path.exists() && LISTS.iter().any(|list| path.ends_with(list))
}

/// The list of tests that a directory has.
fn list_of(directory: &Path) -> Option<PathBuf> {
    LISTS.iter().map(|list| directory.join(list)).find(|list| is_there(list))
}

/// A link that leads nowhere is there: it is not to be passed over in silence.
fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Text in which no two paths are the same: bytes that are no UTF-8 are escaped.
fn text_of(path: &Path) -> String {
    let chunks = path.as_os_str().as_encoded_bytes().utf8_chunks();
    chunks.fold(String::new(), |text, chunk| {
        text + chunk.valid() + &chunk.invalid().escape_ascii().to_string()
    })
}

/// Two tests of the same name could not be told apart; they get their whole path, or that of the
/// file or directory that they are from.
fn unique(tests: &mut [Test]) -> Result<(), Error> {
    let mut seen = BTreeSet::new();
    let doubled: BTreeSet<_> = tests
        .iter()
        .map(|test| test.name.clone())
        .filter(|name| !seen.insert(name.clone()))
        .collect();
    for test in tests.iter_mut().filter(|test| doubled.contains(&test.name)) {
        match &test.machine.image {
            Some(image) if test.suite.is_empty() => test.name = text_of(image),
            _ => test.name = format!("{}/{}", test.suite, test.name),
        }
    }
    none_twice(tests)
}

/// Each name belongs to one test.
pub(super) fn none_twice(tests: &[Test]) -> Result<(), Error> {
    let mut seen = BTreeSet::new();
    match tests.iter().find(|test| !seen.insert(&test.name)) {
        Some(double) => {
            let reason =
                format!("two tests are called {:?}: each needs a name of its own", double.name);
            match double.suite.as_str() {
                "" => Err(Error::Usage(reason)), // they were typed
                suite => Err(Error::Tests { path: suite.to_owned(), reason }),
            }
        }
        None => Ok(()),
    }
}
