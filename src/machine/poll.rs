//! poll(2), for those who wait for the host.

use std::io;
use std::os::fd::RawFd;

/// Waits for `events` of each file descriptor (a negative one is passed over), at most
/// `patience` ms (-1: for ever). What happened to each; all zero when nothing did.
pub(super) fn poll<const N: usize>(
    fds: [(RawFd, libc::c_short); N],
    patience: libc::c_int,
) -> io::Result<[libc::c_short; N]> {
    let mut fds = fds.map(|(fd, events)| libc::pollfd { fd, events, revents: 0 });
    // SAFETY: N pollfds, which outlive the call.
    match unsafe { libc::poll(fds.as_mut_ptr(), N as libc::nfds_t, patience) } {
        0.. => Ok(fds.map(|fd| fd.revents)),
        _ => match io::Error::last_os_error() {
            e if e.kind() == io::ErrorKind::Interrupted => Ok([0; N]),
            e => Err(e),
        },
    }
}
