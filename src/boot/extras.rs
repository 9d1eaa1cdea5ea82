//! What goes with an image in every protocol that can carry it: the command line and the
//! modules, with the initial RAM disk as the first of them.

use super::place::{Placer, Room};
use super::{Error, Request};
use crate::mem::{PAGE_SIZE, Range};

/// A module in guest memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlacedModule {
    pub(super) range: Range,
    /// Address of its string.
    pub(super) string: u64,
}

/// What goes with an image, in guest memory.
#[derive(Debug)]
pub(super) struct Extras {
    /// Address of the command line; there is always one, if an empty one.
    pub(super) cmdline: u64,
    pub(super) modules: Vec<PlacedModule>,
}

/// The modules of a request, with their strings, the initial RAM disk first.
pub(super) fn modules<'a>(request: &Request<'a>) -> impl Iterator<Item = (&'a [u8], &'a str)> {
    let modules = request.modules.iter().map(|module| (module.data, module.cmdline));
    request.initrd.map(|data| (data, "initrd")).into_iter().chain(modules)
}

/// Places each module at a page of its own, above the image.
pub(super) fn put_modules(
    placer: &mut Placer<'_>,
    request: &Request<'_>,
) -> Result<Vec<Range>, Error> {
    modules(request)
        .map(|(data, string)| {
            let name = string.split(' ').next().unwrap_or_default();
            placer.put(&format!("module {name}"), data, PAGE_SIZE, Room::AboveImage)
        })
        .collect()
}

/// Places modules, their strings and the command line.
pub(super) fn put(
    placer: &mut Placer<'_>,
    request: &Request<'_>,
    cmdline: &str,
) -> Result<Extras, Error> {
    let ranges = put_modules(placer, request)?;
    let mut strings = terminated(cmdline);
    let mut offsets = Vec::with_capacity(ranges.len());
    for (_, string) in modules(request) {
        offsets.push(strings.len() as u64);
        strings.extend_from_slice(&terminated(string));
    }
    let what = if ranges.is_empty() { "command line" } else { "command line, module strings" };
    let at = placer.put(what, &strings, 8, Room::Block)?.start;
    let placed = ranges.into_iter().zip(offsets);
    let modules = placed.map(|(range, offset)| PlacedModule { range, string: at + offset });
    Ok(Extras { cmdline: at, modules: modules.collect() })
}

fn terminated(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}
