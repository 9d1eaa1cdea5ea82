//! A host's files, below any directory.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// A host as it shows itself in /proc, /sys, /dev and /etc.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
    open: fn(&Path) -> io::Result<()>,
}

impl Host {
    /// The one that this program runs on.
    pub fn here() -> Self {
        Self::new("/", |path| OpenOptions::new().read(true).write(true).open(path).map(drop))
    }

    /// One whose files lie below `root`; `open` tries whether a device node opens.
    pub fn new(root: impl Into<PathBuf>, open: fn(&Path) -> io::Result<()>) -> Self {
        Self { root: root.into(), open }
    }

    /// Where its file `path` lies.
    pub(super) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A file's text, without white space around it.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path)).ok().map(|text| text.trim().to_owned())
    }

    pub(super) fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// Tries to open a device node.
    pub(super) fn open(&self, path: impl AsRef<Path>) -> io::Result<()> {
        (self.open)(&self.path(path))
    }

    /// The words for a node that a device cgroup keeps, and what to do; `None` where it was not that.
    /// It refuses with EPERM, a node's own mode with EACCES (Linux,
    /// Documentation/admin-guide/cgroup-v1/devices.rst).
    pub(super) fn kept(&self, error: &io::Error, node: &Path) -> Option<(String, String)> {
        if error.raw_os_error() != Some(libc::EPERM) {
            return None;
        }
        let node = node.display();
        let why = "a device cgroup forbids it, whatever the node's mode is";
        let advice = match self.is_container() {
            true => format!("start the container with --device {node}; a volume does not do"),
            false => format!(
                "start the container with --device {node}, the unit of systemd with DeviceAllow={node} rw"
            ),
        };
        Some((why.to_owned(), advice))
    }

    /// The entries of a directory; none where it is not there.
    pub(super) fn entries(&self, path: impl AsRef<Path>) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    /// A line `NAME: value` of this process's status (proc(5)).
    pub(super) fn status(&self, name: &str) -> Option<String> {
        let text = self.text("/proc/self/status")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim().to_owned())
    }

    /// Has the first processor this flag in /proc/cpuinfo?
    pub(super) fn cpu_has(&self, flag: &str) -> bool {
        let text = self.text("/proc/cpuinfo").unwrap_or_default();
        let flags = text.lines().find(|line| line.starts_with("flags"));
        flags.is_some_and(|flags| flags.split_whitespace().any(|word| word == flag))
    }

    /// Docker and podman leave these files in every container.
    pub(super) fn is_container(&self) -> bool {
        self.exists("/.dockerenv") || self.exists("/run/.containerenv")
    }

    /// Version and patch level of the kernel.
    pub(super) fn kernel(&self) -> (u32, u32) {
        let text = self.text("/proc/sys/kernel/osrelease").unwrap_or_default();
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }

    /// The name of a group.
    pub(super) fn group_name(&self, gid: u32) -> Option<String> {
        let text = self.text("/etc/group")?;
        text.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
        })
    }
}
