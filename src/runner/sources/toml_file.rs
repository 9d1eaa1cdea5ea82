//! `ringfence-tests.toml`: `[defaults]`, and a `[[test]]` for each test. In both stand the keys of
//! a machine description, and a test's own beside them.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;
use toml::{Table, Value};

use super::{Facts, Sources};
use crate::config::Description;
use crate::irq::Irqchip;
use crate::machine::devices;
use crate::runner::Error;
use crate::runner::test::{Expect, Test};

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    defaults: Table,
    #[serde(default)]
    test: Vec<Table>,
}

/// A test's own keys, beside those of its machine.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Own {
    name: Option<String>,
    expect: Option<Value>,
    tags: Option<Vec<String>>,
    backends: Option<Vec<String>>,
    retries: Option<u32>,
    skip: Option<String>,
    mailbox: Option<bool>,
    /// Devices that it needs, by the names that `run --dry-run` shows, or `irqchip=KIND`.
    devices: Option<Vec<String>>,
}

/// What [`Own`] takes out of a table.
const OWN: &[&str] =
    &["name", "expect", "tags", "backends", "retries", "skip", "mailbox", "devices"];

/// Kinds of KVM that a test may name.
const BACKENDS: &[&str] = &["kvm_pvm", "kvm_amd", "kvm_intel"];

pub(super) fn read(sources: &Sources<'_>, path: &Path) -> Result<Vec<Test>, Error> {
    let shown = path.display().to_string();
    let bytes = std::fs::read(path);
    let bytes = bytes.map_err(|source| Error::Read { path: shown.clone(), source })?;
    let bad = |reason: String| Error::Tests { path: shown.clone(), reason };
    let text = String::from_utf8(bytes).map_err(|e| bad(e.to_string()))?;
    let file: File = toml::from_str(&text).map_err(|e| bad(crate::config::one_line(&e, &text)))?;
    let defaults = Entry::read(file.defaults).map_err(|e| bad(format!("[defaults]: {e}")))?;
    if defaults.own.name.is_some() {
        return Err(bad("[defaults]: a name is a test's own".to_owned()));
    }
    let mut names = BTreeSet::new();
    let mut tests = Vec::new();
    for (at, table) in file.test.into_iter().enumerate() {
        let which = match table.get("name") {
            Some(Value::String(name)) => format!("test {} ({name:?})", at + 1),
            _ => format!("test {}", at + 1),
        };
        let entry = Entry::read(table).map_err(|e| bad(format!("{which}: {e}")))?;
        let test = entry.over(defaults.clone()).test(sources, path);
        let test = test.map_err(|e| bad(format!("{which}: {e}")))?;
        if !names.insert(test.name.clone()) {
            return Err(bad(format!("two tests are called {:?}", test.name)));
        }
        tests.push(test);
    }
    if tests.is_empty() {
        return Err(Error::NoTest(format!("there is no [[test]] in {shown}")));
    }
    Ok(tests)
}

/// A table of the file.
#[derive(Clone)]
struct Entry {
    own: Own,
    machine: Description,
}

impl Entry {
    fn read(mut table: Table) -> Result<Self, String> {
        let own: Table = OWN.iter().filter_map(|key| table.remove_entry(*key)).collect();
        let words = |e: toml::de::Error| e.message().replace('\n', "; ");
        let own = Own::deserialize(Value::Table(own)).map_err(words)?;
        let machine = Description::deserialize(Value::Table(table)).map_err(|e| {
            let (words, keys) = (words(e), OWN.join("`, `"));
            let unknown = words.starts_with("unknown field");
            if unknown { format!("{words}; or of a test `{keys}`") } else { words }
        })?;
        if machine.core.is_some() {
            return Err(
                "core: the runner writes none; `ringfence run` does, with --core".to_owned()
            );
        }
        if machine.serial.is_some() {
            return Err("serial: the runner takes down what a test says; leave it out".to_owned());
        }
        Ok(Self { own, machine })
    }

    fn over(self, below: Self) -> Self {
        let (own, below_own) = (self.own, below.own);
        let own = Own {
            name: own.name,
            expect: own.expect.or(below_own.expect),
            tags: own.tags.or(below_own.tags),
            backends: own.backends.or(below_own.backends),
            retries: own.retries.or(below_own.retries),
            skip: own.skip.or(below_own.skip),
            mailbox: own.mailbox.or(below_own.mailbox),
            devices: own.devices.or(below_own.devices),
        };
        Self { own, machine: self.machine.over(below.machine) }
    }

    fn test(self, sources: &Sources<'_>, path: &Path) -> Result<Test, String> {
        let Self { own, mut machine } = self;
        for device in own.devices.iter().flatten() {
            need(device, &mut machine)?;
        }
        let stem = machine.image.as_ref().and_then(|image| image.file_stem());
        let name = own.name.or(stem.map(|stem| stem.to_string_lossy().into_owned()));
        let name = name.filter(|name| !name.is_empty()).ok_or("it has neither name nor image")?;
        let facts = Facts {
            expect: own.expect.as_ref().map(expect).transpose()?,
            retries: own.retries.unwrap_or(0),
            tags: own.tags.unwrap_or_default(),
            skip: own
                .skip
                .map_or_else(|| foreign(own.backends, sources.backend), |it| Ok(Some(it)))?,
            mailbox: own.mailbox,
            ..Facts::default()
        };
        let machine = machine.relative_to(path.parent().unwrap_or(Path::new("")));
        sources.test(name, path.display().to_string(), machine, facts)
    }
}

fn expect(value: &Value) -> Result<Expect, String> {
    match value {
        Value::String(text) => text.parse(),
        Value::Integer(code) => code.to_string().parse(),
        _ => Err("expect: an exit code, or a verdict's name".to_owned()),
    }
}

/// Sees that a device is there: those of the platform are in every machine.
fn need(device: &str, machine: &mut Description) -> Result<(), String> {
    if let Some(kind) = device.strip_prefix("irqchip=") {
        let unknown = |_| format!("devices: there is no irqchip {kind:?}");
        let kind = Irqchip::deserialize(Value::from(kind)).map_err(unknown)?;
        if machine.irqchip.is_some_and(|other| other != kind) {
            return Err("devices: `irqchip` says otherwise".to_owned());
        }
        machine.irqchip = Some(kind);
        return Ok(());
    }
    let names: Vec<_> = devices().into_iter().map(|it| it.name).collect();
    if names.contains(&device) {
        return Ok(());
    }
    let names = names.join(", ");
    Err(format!("devices: there is no {device:?}; there are irqchip=KIND, {names}"))
}

/// Why a test is not to run on this kind of KVM.
fn foreign(backends: Option<Vec<String>>, here: &str) -> Result<Option<String>, String> {
    let Some(backends) = backends else { return Ok(None) };
    if backends.is_empty() {
        return Err("backends: none is named".to_owned());
    }
    if let Some(unknown) = backends.iter().find(|it| !BACKENDS.contains(&it.as_str())) {
        return Err(format!("there is no backend {unknown:?}: {}", BACKENDS.join(", ")));
    }
    let named = backends.iter().any(|it| it == here);
    Ok((!named).then(|| format!("only on {}; this is {here}", backends.join(", "))))
}
