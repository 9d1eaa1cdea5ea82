//! A Unix socket to listen on, for its user alone; the gdb stub and the control socket are
//! behind it. Knows nothing of what is said there.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A listening socket whose file goes when it does.
#[derive(Debug)]
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: another file under this name is not ours to remove.
    file: (u64, u64),
}

impl Socket {
    /// Listens. A socket that an earlier run left behind is taken over; one that somebody
    /// listens on, or another file, is an error.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        remove_stale(path);
        let listener = UnixListener::bind(path).map_err(|e| taken(path, e))?;
        listener.set_nonblocking(true)?;
        let file = identity(path)?;
        let socket = Self { listener, path: path.to_owned(), file };
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        // Whoever came while the mode was that of the umask is sent away.
        while socket.accept()?.is_some() {}
        Ok(socket)
    }

    /// Who waits; `None` when there is nobody (any more).
    pub(super) fn accept(&self) -> io::Result<Option<UnixStream>> {
        use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
        match self.listener.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(e) if matches!(e.kind(), ConnectionAborted | Interrupted | WouldBlock) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|file| file == self.file) {
            let _ = fs::remove_file(&self.path); // a read-only directory keeps it
        }
    }
}

/// Says what is there, where the system says that the address is in use.
fn taken(path: &Path, e: io::Error) -> io::Error {
    let there = path.symlink_metadata().map(|it| it.file_type());
    match there {
        Ok(kind) if e.kind() == io::ErrorKind::AddrInUse && !kind.is_socket() => {
            io::Error::new(e.kind(), "something that is no socket is there, and was left alone")
        }
        _ => e,
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    path.symlink_metadata().map(|it| (it.dev(), it.ino()))
}

/// A socket that an earlier run left behind: nobody listens on it.
fn remove_stale(path: &Path) {
    let is_socket = path.symlink_metadata().is_ok_and(|it| it.file_type().is_socket());
    let refused = |e: io::Error| e.kind() == io::ErrorKind::ConnectionRefused;
    if is_socket && UnixStream::connect(path).err().is_some_and(refused) {
        let _ = fs::remove_file(path); // bind says what is wrong if this does not work
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_taken_over_only_from_the_dead() {
        let dir = std::env::temp_dir().join(format!("ringfence-socket-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("socket");
        drop(UnixListener::bind(&path).unwrap()); // leaves its path behind
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(path.symlink_metadata().unwrap().mode() & 0o7777, 0o600);
        assert!(Socket::bind(&path).is_err());
        drop(socket);
        assert!(!path.exists());
        fs::write(&path, "no socket").unwrap();
        assert!(Socket::bind(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"no socket");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_file_that_took_its_place_stays() {
        let dir = std::env::temp_dir().join(format!("ringfence-placed-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("socket");
        let socket = Socket::bind(&path).unwrap();
        fs::write(dir.join("other"), "").unwrap();
        fs::rename(dir.join("other"), &path).unwrap();
        drop(socket);
        assert!(path.exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}
