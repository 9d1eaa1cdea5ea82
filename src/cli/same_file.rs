//! Whether what `ringfence run` writes would destroy what it reads, or something else that it
//! writes. Looked at before a file is opened for writing.

use std::path::{Path, PathBuf};

use super::args::RunArgs;
use crate::config::{Description, ModuleFile, SerialTarget, SymbolFile, is_carried};
use crate::control::gdb;
use crate::machine::{Location, location};

/// A file, and what it is called where it was given.
type Named = (&'static str, PathBuf);

/// Are the files that a run writes each a file of its own? Else says which are not.
pub(super) fn check(args: &RunArgs, described: &Description) -> Result<(), String> {
    let (outputs, inputs) = (located(outputs(args, described)), located(inputs(args, described)));
    for (at, (output, path, place)) in outputs.iter().enumerate() {
        let path = path.display();
        if let Some((input, ..)) = inputs.iter().find(|(.., it)| it == place) {
            return Err(format!("{output} {path} is {input} too, and would overwrite it"));
        }
        if let Some((other, ..)) = outputs[..at].iter().find(|(.., it)| it == place) {
            return Err(format!("{output} {path} is what {other} writes too"));
        }
    }
    Ok(())
}

/// Those of which each needs a place of its own.
fn located(files: Vec<Named>) -> Vec<(&'static str, PathBuf, Location)> {
    let located = files.into_iter().map(|(what, path)| {
        let place = location(&path)?;
        Some((what, path, place))
    });
    located.flatten().collect()
}

fn outputs(args: &RunArgs, described: &Description) -> Vec<Named> {
    let serial = match described.serial.as_deref().map(str::parse) {
        Some(Ok(SerialTarget::File(path))) => Some(path),
        _ => None,
    };
    let gdb = match &args.gdb {
        Some(gdb::Address::Unix(path)) => Some(path.clone()),
        _ => None,
    };
    given([
        ("--serial", serial),
        ("--trace", args.trace.clone()),
        ("--report", args.report.clone()),
        ("--profile", args.profile.clone()),
        ("--coverage", args.coverage.clone()),
        ("--core", described.core.clone()),
        ("--control", args.control.clone()),
        ("--gdb", gdb),
    ])
}

fn inputs(args: &RunArgs, described: &Description) -> Vec<Named> {
    let mut inputs = read_for(described);
    inputs.extend(args.config.clone().map(|path| ("the machine description", path)));
    inputs
}

/// What a machine is made from.
pub(super) fn read_for(described: &Description) -> Vec<Named> {
    let mut inputs = given([
        ("the image", described.image.clone()),
        ("the initial RAM disk", described.initrd.clone()),
    ]);
    let modules = described.modules.iter().flatten().filter_map(|it| it.parse().ok());
    inputs.extend(modules.map(|it: ModuleFile| ("a module", it.path)));
    let symbols = described.symbols.iter().flatten().filter_map(|it| it.parse().ok());
    inputs.extend(symbols.map(|it: SymbolFile| ("a file of symbols", it.path)));
    inputs.retain(|(_, path): &Named| !is_carried(path));
    inputs
}

fn given<const N: usize>(files: [(&'static str, Option<PathBuf>); N]) -> Vec<Named> {
    files.into_iter().filter_map(|(what, path)| Some((what, path?))).collect()
}

/// Are they one file, which both would write?
pub(super) fn is_same(one: &Path, other: &Path) -> bool {
    location(one).is_some_and(|place| location(other) == Some(place))
}
