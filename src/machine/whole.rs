//! Files that a reader never finds half of: what writes reports, profiles, coverage and cores.
//!
//! A regular file is replaced by a finished one, at the end of the links that lead to it. What
//! is no regular file is never replaced, but written to.

use std::collections::hash_map::RandomState;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Writes a file whole or not at all; `-` is standard output. A device, a FIFO and a file that
/// is standard output or standard error already are written to as they are.
///
/// # Errors
/// Those of the file.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match Target::of(path)? {
        Target::File(path) => replace(&path, |mut file| file.write_all(bytes)),
        Target::Stdout => {
            let mut stdout = io::stdout();
            stdout.write_all(bytes).and_then(|()| stdout.flush())
        }
        Target::Stderr => io::stderr().write_all(bytes),
        Target::Special(_) => {
            OpenOptions::new().write(true).truncate(true).open(path)?.write_all(bytes)
        }
    }
}

/// Will [`write_whole`] put a new file there, so that it can be called again and again?
pub fn is_replaced(path: &Path) -> bool {
    matches!(Target::of(path), Ok(Target::File(_)))
}

/// Can a file be written there? To be asked before a guest runs for an hour.
///
/// # Errors
/// Those that writing it would have now.
pub fn check_writable(path: &Path) -> io::Result<()> {
    match Target::of(path)? {
        Target::File(path) => make_part(&path).and_then(|(_, part)| fs::remove_file(part)),
        Target::Special(kind) if kind.is_dir() => Err(ErrorKind::IsADirectory.into()),
        _ => Ok(()), // a FIFO's reader may come later
    }
}

/// What tells a file from all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A file that is there: its device and inode.
    There(u64, u64),
    /// One that is not there yet: its path without links.
    NotYet(PathBuf),
}

/// Where a file is, or will be, which one writer alone may have. `None` for what takes what comes
/// from several (`-`, standard output and error, devices, FIFOs) and for what cannot be written.
pub fn location(path: &Path) -> Option<Location> {
    if path == Path::new("-") {
        return None;
    }
    let there = match fs::metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return resolved(path).ok().map(Location::NotYet);
        }
        there => there.ok()?,
    };
    let shared = !there.is_file() || is_same(&there, io::stdout()) || is_same(&there, io::stderr());
    (!shared).then(|| Location::There(there.dev(), there.ino()))
}

/// As [`check_writable`], for what is written here and there, as a core is.
pub(super) fn check_regular(path: &Path) -> io::Result<()> {
    regular(path).and_then(|_| check_writable(path))
}

/// As [`write_whole`], by a function that may leave holes; a regular file only.
pub(super) fn fill_whole(
    path: &Path,
    fill: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    replace(&regular(path)?, fill)
}

/// Where the bytes go.
enum Target {
    /// A regular file, or nothing yet; at the end of all links.
    File(PathBuf),
    Stdout,
    Stderr,
    /// What cannot be replaced.
    Special(fs::FileType),
}

impl Target {
    fn of(path: &Path) -> io::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Stdout);
        }
        let there = match fs::metadata(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return resolved(path).map(Self::File),
            there => there?,
        };
        // Replaced, it would lose what is in it, or comes later, from that stream.
        if is_same(&there, io::stdout()) {
            return Ok(Self::Stdout);
        }
        if is_same(&there, io::stderr()) {
            return Ok(Self::Stderr);
        }
        // An open file of a process has no directory to put another one in.
        let whole = resolved(path).ok().filter(|_| there.is_file() && !is_open_file(path));
        Ok(whole.map_or(Self::Special(there.file_type()), Self::File))
    }
}

fn is_same(file: &fs::Metadata, stream: impl AsFd) -> bool {
    let stream = stream.as_fd().try_clone_to_owned().and_then(|fd| File::from(fd).metadata());
    stream.is_ok_and(|it| (it.dev(), it.ino()) == (file.dev(), file.ino()))
}

/// Is it `/proc/PID/fd/N`, as `/dev/fd/N` is?
fn is_open_file(path: &Path) -> bool {
    directory(path).canonicalize().is_ok_and(|directory| directory.starts_with("/proc"))
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The path without links, also of what is not there yet.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        known => return known,
    }
    // A link that leads in a circle is another error than "not found".
    if let Ok(to) = fs::read_link(path) {
        return resolved(&directory(path).join(to));
    }
    let name = path.file_name().ok_or(ErrorKind::NotFound)?;
    Ok(directory(path).canonicalize()?.join(name))
}

fn regular(path: &Path) -> io::Result<PathBuf> {
    let kind = match Target::of(path)? {
        Target::File(path) => return Ok(path),
        Target::Stdout => "standard output",
        Target::Stderr => "standard error",
        Target::Special(kind) if kind.is_dir() => "a directory",
        Target::Special(kind) if kind.is_fifo() => "a FIFO",
        Target::Special(_) => "a device or a socket",
    };
    Err(io::Error::other(format!("it is {kind}; a regular file is needed")))
}

/// Puts a file that `fill` has filled into the place of another, with that one's permissions.
fn replace(path: &Path, fill: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    let (file, part) = make_part(path)?;
    let permissions = || match fs::metadata(path) {
        Ok(old) => file.set_permissions(old.permissions()),
        Err(_) => Ok(()),
    };
    let written = permissions().and_then(|()| fill(&file)).and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        let _ = fs::remove_file(&part); // the first error is the one to tell
    }
    written
}

/// A new file beside `path`: of a name that nobody can have put a link at.
fn make_part(path: &Path) -> io::Result<(File, PathBuf)> {
    let random = RandomState::new().build_hasher().finish(); // its keys are the system's
    let part = directory(path).join(format!(".ringfence-{random:016x}.part"));
    let file = OpenOptions::new().write(true).create_new(true).open(&part)?;
    Ok((file, part))
}
