//! The images in a directory, and in those below it; of one below that has a list of tests, these.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Sources, list_of, text_of};
use crate::machine::is_image;
use crate::runner::Error;
use crate::runner::test::Test;

pub(super) fn find(sources: &Sources<'_>, root: &Path) -> Result<Vec<Test>, Error> {
    let mut found = Found::default();
    walk(root, &mut found)?;
    // What lies behind links, if it was not found without.
    while let Some(link) = found.links.pop_first() {
        look_into(link, &mut found)?;
    }
    let suite = text_of(root);
    let images = names(root, found.images);
    let tests = images.into_iter().map(|(name, path)| sources.image(&path, &suite, name));
    let mut tests = tests.collect::<Result<Vec<_>, _>>()?;
    found.listed.sort();
    for directory in found.listed {
        let below = text_of(directory.strip_prefix(root).unwrap_or(&directory));
        let listed = sources.of_directory(&directory)?.into_iter();
        tests.extend(listed.map(|test| Test { name: format!("{below}/{}", test.name), ..test }));
    }
    Ok(tests)
}

/// What there is in a directory, and below it.
#[derive(Default)]
struct Found {
    images: Vec<PathBuf>,
    /// Directories that have a list of tests.
    listed: Vec<PathBuf>,
    /// Links to directories.
    links: BTreeSet<PathBuf>,
    /// Directories that were looked into: device and inode.
    seen: BTreeSet<(u64, u64)>,
}

/// Each path by its name below `root`, without its ending where that leaves each its own.
fn names(root: &Path, paths: Vec<PathBuf>) -> BTreeMap<String, PathBuf> {
    let below = |path: &Path| text_of(path.strip_prefix(root).unwrap_or(path));
    let count = paths.len();
    let short = |path: &PathBuf| (below(&path.with_extension("")), path.clone());
    let short: BTreeMap<_, _> = paths.iter().map(short).collect();
    if short.len() == count {
        return short;
    }
    paths.into_iter().map(|path| (below(&path), path)).collect()
}

fn walk(directory: &Path, found: &mut Found) -> Result<(), Error> {
    let read = |source| Error::Read { path: directory.display().to_string(), source };
    let this = fs::metadata(directory).map_err(read)?;
    if !found.seen.insert((this.dev(), this.ino())) {
        return Ok(());
    }
    for entry in fs::read_dir(directory).map_err(read)? {
        let path = entry.map_err(read)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
        if hidden {
            continue;
        }
        if path.is_dir() {
            if path.is_symlink() {
                found.links.insert(path);
            } else {
                look_into(path, found)?;
            }
        } else if is_lost(&path) || is_image(&path).unwrap_or(true) {
            // One that cannot be read may be an image, and is a test that cannot be run.
            found.images.push(path);
        }
    }
    Ok(())
}

fn look_into(directory: PathBuf, found: &mut Found) -> Result<(), Error> {
    if list_of(&directory).is_none() {
        return walk(&directory, found);
    }
    let read = |source| Error::Read { path: directory.display().to_string(), source };
    let this = fs::metadata(&directory).map_err(read)?;
    if found.seen.insert((this.dev(), this.ino())) {
        found.listed.push(directory);
    }
    Ok(())
}

/// Was it to be an image? A link that leads nowhere, an ELF file without a byte.
fn is_lost(path: &Path) -> bool {
    let is_elf = path.extension().is_some_and(|end| end == "elf");
    match fs::metadata(path) {
        Ok(file) => is_elf && file.is_file() && file.len() == 0,
        Err(_) => path.is_symlink(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn every_file_has_a_name_of_its_own() {
        let names = |paths: &[&[u8]]| {
            let paths = paths.iter().map(|path| Path::new("d").join(OsStr::from_bytes(path)));
            names(Path::new("d"), paths.collect()).into_keys().collect::<Vec<_>>()
        };
        assert_eq!(names(&[b"k.elf", b"sub/k.elf"]), ["k", "sub/k"]);
        assert_eq!(names(&[b"k.elf", b"k.bin", b"v.1.elf"]), ["k.bin", "k.elf", "v.1.elf"]);
        assert_eq!(names(&[b"a\xFF.elf", b"a\xFE.elf"]), ["a\\xfe", "a\\xff"]);
    }
}
